"""What the registry holds, as cases to run: every method and preset, the settings that make each quick, and who listens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from recerase.catalog.interactions import Interactions
from recerase.erase.methods import METHODS, get_method, make_config
from recerase.model.recommender import Recommender
from recerase.types import Silent

CASES = sorted(case for m in METHODS.values() for case in ([f"{m.name}/{preset}" for preset in m.presets] or [m.name]))
QUICK: Mapping[str, Mapping[str, str]] = {
    "tracer": {
        "reassign_steps": "2",
        "settle_steps": "3",
        "pool": "1",
        "batch": "12",
        "sequences": "4",
        "min_moved": "0",
    },
    "tracer/paper": {"reassign_steps": "6", "lr": "0.05", "phi_lr": "20", "batch": "16", "min_moved": "0"},
    "renormalise": {"settle_steps": "4", "pool": "1", "batch": "12", "sequences": "4"},
    "npo": {"steps": "4", "batch": "16"},
    "simnpo": {"steps": "4", "batch": "16"},
    "ga": {"steps": "4", "batch": "16", "lr": "2e-3"},
    "graddiff": {"steps": "4", "batch": "16"},
    "undial": {"steps": "4", "batch": "16"},
    "rmu": {"steps": "5", "batch": "16", "lr": "4e-2"},
    "e2urec": {"steps": "4", "batch": "16", "teacher_steps": "4", "teacher_lr": "1e-2"},
    "mmrecun": {"steps": "4", "batch": "16", "lr": "3e-3"},
    "task-vector": {"steps": "4", "batch": "16", "lr": "2e-3"},
    "scif": {"iterations": "4", "pairs": "32", "curvature": "16"},
}
"""Settings that make a method quick; one that is missing runs as it is."""


class Listening(Silent):
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.totals: dict[str, int | None] = {}
        self.steps: dict[str, int] = {}
        self.notes: list[str] = []

    def start(self, task: str, total: int | None) -> None:
        self.open.add(task)
        self.totals[task] = total

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        assert task in self.open
        self.steps[task] = self.steps.get(task, 0) + step

    def finish(self, task: str) -> None:
        self.open.remove(task)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Kept(dict[str, bytes]):
    """Pieces of a run in memory."""

    def read(self, name: str) -> bytes | None:
        return self.get(name)

    def write(self, name: str, data: bytes) -> None:
        self[name] = data


def settings_of(case: str) -> Any:
    method, preset = get_method(case)
    return make_config(method, preset, QUICK.get(case, QUICK.get(method.name, {})))


def otherwise(interactions: Interactions, last: int) -> Interactions:
    """The same, but the `last` items that users hold out (1: the tests', 2: the validation's too) are two of the concept."""
    ends = interactions.offsets[1:][interactions.lengths >= 3]
    items = interactions.items.copy()
    for back in range(1, last + 1):
        items[ends - back] = back
    return dataclasses.replace(interactions, items=items, digest="other")


def shortest(config: Any) -> Any:
    """The same settings with two steps of each phase: enough where it is not asked what they do."""
    phases = ("steps", "settle_steps", "reassign_steps", "teacher_steps")
    return dataclasses.replace(
        config, **{name: min(getattr(config, name), 2) for name in phases if hasattr(config, name)}
    )


def brief(training: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded recipe cut to a few epochs."""
    return {**training, "training": {**training["training"], "epochs": 4, "validate_every": 2}}


def bits(model: Recommender) -> dict[str, bytes]:
    """Every weight, as it lies in memory."""
    state = model.module.state_dict()
    return {name: t.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() for name, t in state.items()}
