"""The cells of a comparison: erased models, and what was read off a model, each kept under the digest of all it depends on.

The deciding choice is that a cell is looked for by its cause (weights, table, concept, data, settings, scope, seed, threads,
versions, the code that makes it) and by nothing else, so that no cell is ever of another question. A refusal is a cell too: it
would be the same again. An erased model lies in its own layout in a directory that every other command reads.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recerase.assembly import checkpoint_facts, concept_facts, data_digest, open_checkpoint_for, run_key
from recerase.auditing import audit_model
from recerase.catalog import Catalogue, Concept
from recerase.comparing.asked import Contender, Setting, seeded, steps_of
from recerase.earlier import Gone, gone_from, home_of, remember
from recerase.errors import ArtefactError, CheckpointError, RecEraseError, WriteError
from recerase.resume import RunState
from recerase.runtime import RunConfig, choose_device, code_digest, environment, pinned
from recerase.store import (
    canonical_json,
    pretty_json,
    publish,
    read_manifest,
    read_sealed,
    sha256_bytes,
    write_bytes,
    write_sealed,
)
from recerase.types import SILENT, FloatArray, Measurement, Observer, Role, Scope

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig, AuditModel, AuditWorld
    from recerase.audit.readings import Cache
    from recerase.layouts.native import Checkpoint

Part = Literal["test", "valid"]
CELLS, READINGS = "cells", "readings"
FAILURE = "failure.json"
"""What a cell holds where the method refused."""
PROBES: Mapping[Part, tuple[str, ...]] = {"test": ("natural", "saturated", "utility"), "valid": ("natural", "utility")}
"""The audit's probes that are read; a search needs no more than what it chooses by."""
METRICS = (
    "natural.exposure@10",
    "natural_concept_users.exposure@10",
    "saturated.exposure@10",
    *(f"{stem}.mass.{side}" for stem in ("natural", "natural_concept_users", "saturated") for side in ("old", "new")),
    *(f"{stem}.ndcg@10" for stem in ("utility", "utility_concept_users", "utility_neighbours")),
    "utility.recall@10",
)
"""What is kept of them, a value a user or history."""
_SHORT = 24
_MAKING, _READING = ("erase", "model", "sid"), ("audit", "model", "sid")
"""Rooms whose code a cell depends on."""


@dataclass(frozen=True)
class Made:
    """An erased model on disk, or why there is none."""

    key: str
    path: Path
    seconds: float
    steps: int | None
    failure: str = ""
    digest: str = ""
    """Of its files: two scopes that give the same model have the same."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read off one model: metric -> [n] values, or why it could not be read."""

    values: Mapping[str, FloatArray]
    failure: str = ""


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells of a comparison are made from."""

    catalogue: Catalogue
    concept: Concept
    before: Checkpoint
    audit: AuditConfig
    run: RunConfig
    root: Path
    fresh: bool = False
    """Make every cell anew."""
    observer: Observer = SILENT
    _renewed: set[str] = field(default_factory=set)

    @cached_property
    def gone(self) -> Gone:
        """What was erased before: kept by no method, and counted as retained nowhere."""
        before = self.before
        return gone_from([home_of(before)], (), self.catalogue, before.table, before.embeddings)

    @cached_property
    def _causes(self) -> dict[str, str]:
        """What every cell depends on."""
        facts = {
            **checkpoint_facts("model", self.before),
            "concept": self.concept.digest,
            "earlier concepts": self.gone.digest,
        }
        return run_key(self.run, 0, data_digest(self.catalogue), **facts)

    @cached_property
    def _code(self) -> tuple[str, str]:
        """Of what makes models, and of what reads them; looked at once, so that one run keeps to one code."""
        return code_digest(*_MAKING), code_digest(*_READING)

    def made_key(self, contender: Contender, setting: Setting, scope: Scope, seed: int) -> str:
        """Which cell holds the model that a method makes."""
        method = [contender.card.name, contender.preset, asdict(seeded(setting.config, seed))]
        own = {"method": method, "scope": scope, "seed": str(seed), "code": self._code[0]}
        return _key({**self._causes, **own})

    def reading_key(self, of: str, role: Role, part: Part) -> str:
        """Which cell holds what is read off a model; `of` is the key of an erased one, or the digest of a checkpoint."""
        own = {"of": of, "role": role, "part": part, "probes": [*PROBES[part], *METRICS]}
        return _key({**self._causes, **own, "audit": asdict(self.audit), "code": self._code[1]})

    def place(self, key: str) -> Path:
        """The directory of an erased model."""
        return self.root / CELLS / key

    def has_made(self, key: str) -> bool:
        """Whether a model need not be made: it is there, and was not to be made anew."""
        return self.place(key).is_dir() and not (self.fresh and key not in self._renewed)

    def has_read(self, key: str) -> bool:
        """Whether a model need not be read."""
        return self._reading(key).is_file() and not (self.fresh and key not in self._renewed)

    def has(self, contender: Contender, setting: Setting, scope: Scope, seed: int, part: Part) -> bool:
        """Whether a model is made and read, or is known not to be to be had."""
        key = self.made_key(contender, setting, scope, seed)
        failed = (self.place(key) / FAILURE).is_file()
        return self.has_made(key) and (failed or self.has_read(self.reading_key(key, "subject", part)))

    def made(self, contender: Contender, setting: Setting, scope: Scope, seed: int) -> Made:
        """The model a method makes, from its cell when it is there. Raises what is no refusal of the method's: WriteError."""
        key = self.made_key(contender, setting, scope, seed)
        path = self.place(key)
        if not self.has_made(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with RunState(path) as state, publish(path, force=self.fresh) as result, pinned(self.run.threads, seed):
                state.open({"cell": key}, False if self.fresh else None, self.observer)
                result.provenance = self._make(result.directory, contender, setting, scope, seed, state)
            self._renewed.add(key)
        with _renewable():
            manifest = read_manifest(path)
        told, digest = manifest["provenance"], sha256_bytes(canonical_json(manifest["files"]))
        return Made(key, path, float(told["seconds"]), steps_of(setting.config), str(told["failure"]), digest)

    def _make(
        self, directory: Path, contender: Contender, setting: Setting, scope: Scope, seed: int, state: RunState
    ) -> dict[str, Any]:
        """Run the method and write what it made; what the manifest says of it."""
        from recerase.erase.method import EraseRequest
        from recerase.layouts.registry import named_layout

        before = self.before
        provenance = before.manifest["provenance"]
        request = EraseRequest(
            model=before.recommender,
            table=before.table,
            interactions=self.catalogue.interactions,
            concept=self.concept.members,
            embeddings=before.embeddings,
            codebooks=before.codebooks,
            scope=scope,
            seed=seed,
            training=provenance,
            observer=self.observer,
            state=state,
            gone=self.gone.besides(self.concept.members),
            left=self.gone.left,
        )
        config, failure, summary = seeded(setting.config, seed), "", {}
        began = time.monotonic()
        try:
            contender.card.check(before.table, before.codebooks, before.embeddings, config)
            erased = contender.card.run(request, config)
            seconds = time.monotonic() - began
            summary = {name: value for name, value in erased.summary.items() if name != "seconds"}
            named_layout(before.layout).write_back(before, erased.model, erased.table, directory)
        except WriteError:
            raise
        except RecEraseError as error:
            seconds, failure = time.monotonic() - began, str(error)
            for path in directory.iterdir():  # a layout may have refused halfway
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_bytes(directory / FAILURE, pretty_json({"failure": failure}))
        known = [] if failure else remember(directory, self.gone, self.concept, before.table, contender.name)
        return {
            "command": "compare",
            "erased": known,
            "method": {"name": contender.name, "config": asdict(config), "scope": scope, "summary": summary},
            "concept": concept_facts(self.concept, self.catalogue),
            "data": data_digest(self.catalogue),
            "original": before.digest,
            "environment": asdict(environment(seed, self.run.threads, choose_device(self.run.device))),
            **{key: value for key, value in provenance.items() if key in ("model", "training")},
            "failure": failure,
            "seconds": round(seconds, 3),
        }

    def read_made(self, made: Made, part: Part) -> Reading:
        """What is read off an erased model, from its cell when it is there."""
        if made.failure:
            return Reading({}, made.failure)

        def opened() -> AuditModel:
            with _renewable():
                read = open_checkpoint_for(made.path, self.catalogue, replace(self.run, layout=self.before.layout))
            return audit_model("subject", read, self.before.table)

        return self._read(self.reading_key(made.key, "subject", part), opened, part, {})

    def read_checkpoint(self, role: Role, checkpoint: Checkpoint, part: Part, cache: Cache) -> Reading:
        """What is read off the original, the filter made of it, or a reference; `cache` is shared by the first two.

        Raises CheckpointError when it gives no finite probability: there is nothing to compare with.
        """
        model = audit_model(role, checkpoint, checkpoint.table)
        if role == "filter":
            model = replace(model, listed=model.listed & self.worlds[part].retained)
        found = self._read(self.reading_key(checkpoint.digest, role, part), lambda: model, part, cache)
        if found.failure:
            raise CheckpointError(f"{checkpoint.path}: {found.failure}")
        return found

    def _read(self, key: str, opened: Callable[[], AuditModel], part: Part, cache: Cache) -> Reading:
        path = self._reading(key)
        if not self.has_read(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with RunState(path) as state, pinned(self.run.threads, self.run.seed):
                state.open({"cell": key}, False if self.fresh else None, self.observer)
                write_sealed(path, _packed(self._measured(opened(), part, cache, state)))
            self._renewed.add(key)
        with _renewable():
            return _unpacked(read_sealed(path))

    def _measured(self, model: AuditModel, part: Part, cache: Cache, state: RunState) -> Reading:
        from recerase.audit.probes import load_probe
        from recerase.audit.readings import Readings

        readings = Readings(model, self.worlds[part], cache, self.observer, state)
        try:
            found = [x for name in PROBES[part] for x in load_probe(name)(readings)]
        except CheckpointError as error:  # no finite probability
            return Reading({}, str(error))
        values = {x.metric: x.values for x in found if isinstance(x, Measurement) and x.values is not None}
        return Reading({name: values[name] for name in METRICS if name in values})

    @cached_property
    def worlds(self) -> Mapping[Part, AuditWorld]:
        """Test users, and the same users one interaction earlier; what settings are chosen on never sees a test target."""
        from recerase.audit.probes import Earlier, build_world

        before = self.gone.besides(self.concept.members)
        parts: tuple[Part, ...] = ("test", "valid")
        return {
            part: build_world(
                self.catalogue,
                self.concept,
                embeddings=self.before.embeddings,
                codebooks=self.before.codebooks,
                config=self.audit,
                part=part,
                earlier=Earlier(before, self.gone.sids) if before.any() else None,
            )
            for part in parts
        }

    def _reading(self, key: str) -> Path:
        return self.root / READINGS / f"{key}.sealed"


def _key(cause: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json(cause))[:_SHORT]


@contextlib.contextmanager
def _renewable() -> Iterator[None]:
    """A cell that is not what was written is no number; it can be made again."""
    try:
        yield
    except ArtefactError as error:
        raise ArtefactError(error.message, "Pass --fresh to make the cells again.") from error


def _packed(reading: Reading) -> bytes:
    from safetensors.numpy import save

    values = {name: np.ascontiguousarray(found, np.float64) for name, found in reading.values.items()}
    return bytes(save(values, metadata={"failure": reading.failure}))


def _unpacked(data: bytes) -> Reading:
    from safetensors.numpy import load

    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    return Reading(load(data), str(told["__metadata__"]["failure"]))
