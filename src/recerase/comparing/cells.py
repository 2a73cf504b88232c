"""The cells of a comparison: erased models, and what was read off a model, each kept under the digest of all it depends on.

The deciding choice is that a cell is looked for by its cause (weights, table, concept, data, settings, scope, seed, threads,
versions, the code that makes it) and by nothing else, so that no cell is ever of another question. A refusal is a cell too: it
would be the same again. An erased model lies in its own layout in a directory that every other command reads.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.assembly import checkpoint_facts, concept_facts, data_digest, open_checkpoint_for, run_key
from recerase.auditing import audit_model
from recerase.catalog import Catalogue, Concept
from recerase.comparing.asked import Contender, Setting, seeded, steps_of
from recerase.comparing.clock import Clock
from recerase.comparing.reading import FEATURES, METRICS, PROBES, Part, Reading, measured, packed, unpacked
from recerase.earlier import Gone, remember
from recerase.errors import ArtefactError, CheckpointError, RecEraseError, WriteError
from recerase.preparing import prepared_for, told_settings
from recerase.resume import RunState
from recerase.runtime import RunConfig, choose_device, code_digest, environment, pinned, rooms_of
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
from recerase.types import SILENT, Observer, Role, Scope

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig, AuditModel, AuditWorld
    from recerase.audit.readings import Cache
    from recerase.erase.method import Method, Prepared
    from recerase.layouts.native import Checkpoint

CELLS, READINGS = "cells", "readings"
FAILURE = "failure.json"
"""What a cell holds where the method refused."""
_SHORT = 24
_MAKING = ("catalog", "model", "sid")
_CARDS = "erase/methods.py"
"""Imported for what it says of methods; what of a card matters to a model is in the cell's key."""
_READING = ("catalog", "audit", "model", "sid", *(f"comparing/{name}.py" for name in ("reading", "relearned", "ucan")))
"""Rooms and files whose code a cell depends on; one of a method also on what that method itself imports."""


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
    cpu_seconds: float | None = None
    """Processor time of the processes that made it; None in a cell that does not say."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells of a comparison are made from."""

    catalogue: Catalogue
    concept: Concept
    before: Checkpoint
    gone: Gone
    """What was erased before: kept by no method, and counted as retained nowhere."""
    audit: AuditConfig
    run: RunConfig
    root: Path
    search_users: int | None = None
    """Validation users that settings are chosen on; None: as many as `audit` reads."""
    fresh: bool = False
    """Make every cell anew."""
    observer: Observer = SILENT
    _renewed: set[str] = field(default_factory=set)
    _prepared: dict[tuple[str, str], Prepared | None] = field(default_factory=dict)
    _making: dict[str, str] = field(default_factory=dict)

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
    def _reading_code(self) -> str:
        """Of what reads models; looked at once, so that one run keeps to one code."""
        return code_digest(*_READING)

    def _making_code(self, method: Method) -> str:
        """Of what makes a method's models: another method may change, and this one's cells stay."""
        if method.name not in self._making:
            rooms = rooms_of(*method.modules)
            own = [room for room in rooms if room.startswith("erase/") and room != _CARDS]
            self._making[method.name] = code_digest(*_MAKING, *own)
        return self._making[method.name]

    def made_key(self, contender: Contender, setting: Setting, scope: Scope, seed: int) -> str:
        """Which cell holds the model that a method makes."""
        config = seeded(setting.config, seed)
        card = contender.card
        method = [
            card.name,
            contender.preset,
            card.target,
            card.gradients,
            told_settings(config, self.prepared(contender, config)),
        ]
        own = {"method": method, "scope": scope, "seed": str(seed), "code": self._making_code(card)}
        return _key({**self._causes, **own})

    def reading_key(self, of: str, role: Role, part: Part) -> str:
        """Which cell holds what is read off a model; `of` is the key of an erased one, or the digest of a checkpoint."""
        probes, audit = [*PROBES[part], *METRICS, FEATURES], asdict(self.audit_of(part))
        return self.kept_key({"of": of, "role": role, "part": part, "probes": probes, "audit": audit})

    def kept_key(self, own: Mapping[str, Any]) -> str:
        """Which cell holds what is read in a way that `own` names in full."""
        return _key({**self._causes, "audit": asdict(self.audit), "code": self._reading_code, **own})

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
        """Whether a model is made and read, or is known not to be to be had.

        What a search read counts also where the model itself was taken away: nothing more will be asked of it.
        """
        key = self.made_key(contender, setting, scope, seed)
        failed = (self.place(key) / FAILURE).is_file()
        read = self.has_read(self.reading_key(key, "subject", part))
        return (read and part == "valid") or (self.has_made(key) and (failed or read))

    def found(self, contender: Contender, setting: Setting, scope: Scope, seed: int, part: Part) -> Reading | None:
        """What was read off a model, whether or not the model is still there; None when it was not read."""
        key = self.reading_key(self.made_key(contender, setting, scope, seed), "subject", part)
        return self._load(key) if self.has_read(key) else None

    def prune(self, contender: Contender, setting: Setting, scope: Scope, seed: int) -> None:
        """Take away the model of a cell; what was read off it stays. A refusal, and a model of a table, stay as they are."""
        key = self.made_key(contender, setting, scope, seed)
        path, gone = self.place(key), self.place(f".{key}.pruned")
        shutil.rmtree(gone, ignore_errors=True)  # what a killed run left
        if not path.is_dir() or (path / FAILURE).is_file() or self.has_read(self.reading_key(key, "subject", "test")):
            return
        path.replace(gone)
        shutil.rmtree(gone)

    def prepared(self, contender: Contender, config: Any) -> Prepared | None:
        """What the settings say was prepared for this checkpoint. Raises ArtefactError or CheckpointError where it was not."""
        place = (contender.card.name, str(getattr(config, "prepared", "")))
        if place not in self._prepared:
            before, data = self.before, data_digest(self.catalogue)
            self._prepared[place] = prepared_for(
                contender.card, config, lambda: before.digest, before.table, self.gone, data
            )
        return self._prepared[place]

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
        busy = told.get("cpu_seconds")
        steps, failure = steps_of(setting.config), str(told["failure"])
        return Made(key, path, float(told["seconds"]), steps, failure, digest, None if busy is None else float(busy))

    def _make(
        self, directory: Path, contender: Contender, setting: Setting, scope: Scope, seed: int, state: RunState
    ) -> dict[str, Any]:
        """Run the method and write what it made; what the manifest says of it."""
        from recerase.erase.method import EraseRequest
        from recerase.layouts.registry import named_layout

        before, config = self.before, seeded(setting.config, seed)
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
            state=(clock := Clock(state)),
            prepared=self.prepared(contender, config),
            needed=before.extra.get("needed"),
            gone=self.gone.besides(self.concept.members),
            left=self.gone.left,
        )
        failure, summary, spent = "", {}, (0.0, 0.0)
        try:
            contender.card.check(before.table, before.codebooks, before.embeddings, config)
            erased = contender.card.run(request, config)
            spent = clock.spent()
            summary = {name: value for name, value in erased.summary.items() if name != "seconds"}
            named_layout(before.layout).write_back(before, erased.model, erased.table, directory)
        except WriteError:
            raise
        except RecEraseError as error:
            spent, failure = clock.spent(), str(error)
            for path in directory.iterdir():  # a layout may have refused halfway
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_bytes(directory / FAILURE, pretty_json({"failure": failure}))
        known = [] if failure else remember(directory, self.gone, self.concept, before.table, contender.name)
        return {
            "command": "compare",
            "erased": known,
            "method": {
                "name": contender.name,
                "config": told_settings(config, request.prepared),
                "scope": scope,
                "summary": summary,
            },
            "concept": concept_facts(self.concept, self.catalogue),
            "data": data_digest(self.catalogue),
            "original": before.digest,
            "environment": asdict(environment(seed, self.run.threads, choose_device(self.run.device))),
            **{key: value for key, value in provenance.items() if key in ("model", "training")},
            "failure": failure,
            "seconds": round(spent[0], 3),
            "cpu_seconds": round(spent[1], 3),
        }

    def read_made(self, made: Made, part: Part) -> Reading:
        """What is read off an erased model, from its cell when it is there."""
        if made.failure:
            return Reading({}, made.failure)

        return self._read(self.reading_key(made.key, "subject", part), lambda: self.opened(made), part, {})

    def opened(self, made: Made) -> AuditModel:
        """An erased model as an audit has it."""
        with _renewable():
            read = open_checkpoint_for(made.path, self.catalogue, replace(self.run, layout=self.before.layout))
        return audit_model("subject", read, self.before.table)

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
        return self.kept(key, lambda state: self._measured(opened(), part, cache, state))

    def kept(self, key: str, make: Callable[[RunState], Reading]) -> Reading:
        """What was read under a key, from its cell when it is there."""
        path = self._reading(key)
        if not self.has_read(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with RunState(path) as state, pinned(self.run.threads, self.run.seed):
                state.open({"cell": key}, False if self.fresh else None, self.observer)
                write_sealed(path, packed(make(state)))
            self._renewed.add(key)
        return self._load(key)

    def _load(self, key: str) -> Reading:
        with _renewable():
            return unpacked(read_sealed(self._reading(key)))

    def _measured(self, model: AuditModel, part: Part, cache: Cache, state: RunState) -> Reading:
        from recerase.audit.readings import Readings

        return measured(Readings(model, self.worlds[part], cache, self.observer, state), part)

    def audit_of(self, part: Part) -> AuditConfig:
        """How much is read: of validation users no more than a search needs."""
        return (
            self.audit
            if part == "test" or self.search_users is None
            else replace(self.audit, max_users=self.search_users)
        )

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
                config=self.audit_of(part),
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
