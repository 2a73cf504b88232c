"""What is read off one model, kept as arrays by name: the audit's own figures, and what likeness to references is told by.

The deciding choice is that one pass reads it all. What a model does with a user (likeness) is made of the lists and masses that
its figures are made of, so a separate cell would decode every list twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from recerase.errors import CheckpointError
from recerase.types import FloatArray, Measurement

if TYPE_CHECKING:
    from recerase.audit.readings import Readings

Part = Literal["test", "valid"]
PROBES: Mapping[Part, tuple[str, ...]] = {"test": ("natural", "saturated", "utility"), "valid": ("natural", "utility")}
"""The audit's probes that are read; a search needs no more than what it chooses by."""
INFLUENCE = "influence.history"
METRICS = (
    "natural.exposure@10",
    "natural_concept_users.exposure@10",
    "saturated.exposure@10",
    *(f"{stem}.mass.{side}" for stem in ("natural", "natural_concept_users", "saturated") for side in ("old", "new")),
    *(f"{stem}.ndcg@10" for stem in ("utility", "utility_concept_users", "utility_neighbours")),
    "utility.recall@10",
    INFLUENCE,
)
"""What is kept of them, a value a user or history."""
FEATURES = "features."
"""In front of the names of what likeness is told by."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read off one model: metric -> [n] values, or why it could not be read."""

    values: Mapping[str, FloatArray]
    failure: str = ""

    def under(self, prefix: str) -> dict[str, FloatArray]:
        """The values whose names begin with `prefix`, without it."""
        return {name[len(prefix) :]: found for name, found in self.values.items() if name.startswith(prefix)}


def measured(readings: Readings, part: Part) -> Reading:
    """The probes of a part, and for the test what likeness and the influence of histories are told by."""
    from recerase.audit.cards import load_probe
    from recerase.audit.influence import history_influence
    from recerase.audit.likeness import user_features

    try:
        found = [x for name in PROBES[part] for x in load_probe(name)(readings)]
        more: dict[str, FloatArray] = {}
        if part == "test":
            influence = history_influence(readings)
            features = user_features(readings).arrays()
            more = {INFLUENCE: influence} if len(influence) else {}
            more |= {f"{FEATURES}{name}": values for name, values in features.items()}
    except CheckpointError as error:  # no finite probability
        return Reading({}, str(error))
    values = {x.metric: x.values for x in found if isinstance(x, Measurement) and x.values is not None}
    return Reading({name: values[name] for name in METRICS if name in values} | more)


def packed(reading: Reading) -> bytes:
    """A reading as it is kept: float32 as it is, the rest as float64."""
    from safetensors.numpy import save

    kept = {name: found.dtype if found.dtype == np.float32 else np.float64 for name, found in reading.values.items()}
    values = {name: np.ascontiguousarray(found, kept[name]) for name, found in reading.values.items()}
    return bytes(save(values, metadata={"failure": reading.failure}))


def unpacked(data: bytes) -> Reading:
    """The reading that `packed` made."""
    from safetensors.numpy import load

    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    return Reading(load(data), str(told["__metadata__"]["failure"]))
