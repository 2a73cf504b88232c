"""What the results are made on: data sets, SIDs, concepts, and the models trained or erased for them.

The decision that shaped this file: nothing is computed twice. A training is resumed from the pieces it left, and an
erased model is published under the digest of everything it depends on (weights, table, concept, method settings and
the code of `recerase.erase`), so that a change of that code makes new erased models and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recerase.audit.probes import AuditConfig
from recerase.catalog import Catalogue, Concept, Split, load_catalogue, parse_concept, text_embeddings
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.layouts.native import load_checkpoint, load_sids, save_checkpoint
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.training import PIECE, TrainConfig, progress_of, train
from recerase.planning import key_values
from recerase.runtime import code_digest, pinned
from recerase.sid.codebooks import Codebooks
from recerase.sid.quantize import TokenizeConfig, fit_codebooks
from recerase.sid.table import SidTable
from recerase.sid.table_files import read_table
from recerase.store import canonical_json, publish, sha256_bytes, write_bytes
from recerase.types import SILENT, FloatArray, Observer

METHODS = ("filter", "npo", "tracer/paper", "tracer/default")
MODELS = ("original", "reference", *METHODS)


@dataclass(frozen=True)
class Group:
    """One table of the results: a concept in a data set under one tokenization."""

    world: str
    data: str
    """Directory below the data folder."""
    sids: str
    """`json`: sids.json of the data directory, made elsewhere. `own`: our tokenization."""
    tokens: str
    """Directory of our tokenization below runs/sids."""
    codes: int
    """Codes a level of our tokenization."""
    concept: str
    spec: str

    @property
    def space(self) -> str:
        """Name of the (data, SIDs) pair, which has one original."""
        return f"{self.world}-{self.sids}"

    @property
    def name(self) -> str:
        return f"{self.space}-{self.concept}"


_INDUSTRIAL = {
    "filament": 'category="3D Printing Filament"',
    "hatchbox": "brand=HATCHBOX",
    "needles": 'text~"syringe|needle"',
}
_MOVIES = {"horror": "category=Horror", "war": "category=War"}
GROUPS = (
    *(
        Group("ind", "amazon_industrial", s, "industrial", 256, c, x)
        for s in ("json", "own")
        for c, x in _INDUSTRIAL.items()
    ),
    *(Group("ml", "ml-100k", "own", "ml100k", 64, c, x) for c, x in _MOVIES.items()),
)


@dataclass(frozen=True)
class Setup:
    """Where things are, and how everything is trained, erased and measured."""

    data: Path
    runs: Path
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40, bf16=True, dropout=0.0))
    audit: AuditConfig = field(default_factory=lambda: AuditConfig(k=(10,), beam=20, mass_users=500))
    saturated_mass: int = 300
    """Saturated histories whose exact mass is read."""
    nearest_users: int = 300
    """Concept users from whose histories the model generates freely."""
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"tracer/paper": ("min_moved=0",)})
    """Method -> `key=value` settings; paper may move nothing at its published settings, which is a result."""
    seed: int = 0
    may_train: bool = True


@dataclass(frozen=True, eq=False)
class Space:
    """A data set and its SIDs."""

    catalogue: Catalogue
    table: SidTable
    codebooks: Codebooks
    embeddings: FloatArray


@dataclass(frozen=True, eq=False)
class Model:
    """A model with the table it speaks, and what it cost."""

    recommender: Recommender
    table: SidTable
    digest: str
    """sha256 of the weights."""
    facts: Mapping[str, Any]
    """JSON values: cpu_seconds, wall_seconds, and what the method or the training says of itself."""


class NotTrainedError(Exception):
    """A model has no finished training state, and training is not allowed."""


def open_space(group: Group, setup: Setup, observer: Observer = SILENT) -> Space:
    """Load a data set with its SIDs; our own tokenization is made when it is not there."""
    directory = setup.data / group.data
    catalogue = load_catalogue(directory)
    ids = catalogue.items.item_ids
    if group.sids == "json":
        table = read_table(directory / "sids.json").aligned(ids)
        embeddings = text_embeddings(catalogue.items)
        return Space(catalogue, table, fit_codebooks(embeddings, table), embeddings)
    path = setup.runs / "sids" / group.tokens
    if not path.is_dir():
        from recerase.api import tokenize

        tokenize(directory, path, TokenizeConfig(levels=3, codes=group.codes), observer=observer)
    table, codebooks, points = load_sids(path, item_ids=ids)
    if codebooks is None or points is None:
        raise FileNotFoundError(f"{path} has no codebooks and embeddings; remove it to make it again")
    return Space(catalogue, table, codebooks, points)


def concept_of(group: Group, space: Space) -> Concept:
    return parse_concept([group.spec], space.catalogue.items, name=group.concept)


def original(group: Group, space: Space, setup: Setup, observer: Observer = SILENT) -> Model:
    """The model trained on everything."""
    return _trained(f"{group.space}-orig", space, space.catalogue.interactions.split(), setup, observer)


def reference(group: Group, space: Space, concept: Concept, setup: Setup, observer: Observer = SILENT) -> Model:
    """The same recipe and seed without the concept's interactions."""
    kept = space.catalogue.interactions.split().without(concept.members)
    return _trained(f"{group.space}-ref-{group.concept}", space, kept, setup, observer)


@dataclass(frozen=True)
class Folder:
    """The pieces of a training, kept for good under the digest of everything they depend on."""

    path: Path

    def read(self, name: str) -> bytes | None:
        file = self.path / f"{name}.safetensors"
        return file.read_bytes() if file.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path / f"{name}.safetensors", data)


def _trained(name: str, space: Space, split: Split, setup: Setup, observer: Observer) -> Model:
    cause = [asdict(setup.model), asdict(setup.training), setup.seed, space.table.digest]
    data = sha256_bytes(split.train.items.tobytes() + split.train.offsets.tobytes())
    folder = Folder(setup.runs / "train" / f"{name}-{sha256_bytes(canonical_json([*cause, data]))[:12]}")
    if not setup.may_train and not _finished(folder, setup.training):
        raise NotTrainedError(f"{name} is not trained yet")
    recommender = new_recommender(setup.model, space.table.schema, setup.seed)
    log = train(recommender, space.table, split, setup.training, observer, folder)
    facts = {"cpu_seconds": None, "wall_seconds": log.seconds, "epochs": log.epochs, "validation": dict(log.validation)}
    return Model(recommender, space.table, weights_digest(recommender), facts)


def _finished(folder: Folder, config: TrainConfig) -> bool:
    """Whether the pieces of a training say that there is nothing left to do."""
    piece = folder.read(PIECE)
    if piece is None:
        return False
    progress = progress_of(piece)
    return progress.epoch >= config.epochs or progress.stale >= config.patience


def erased(
    method: str, before: Model, space: Space, concept: Concept, setup: Setup, observer: Observer = SILENT
) -> Model:
    """The model a method makes of the original, from runs/erased when it was made before.

    Raises what the method raises (a RecEraseError) when it refuses.
    """
    card, preset = get_method(method)
    config = make_config(card, preset, key_values(setup.overrides.get(method, ())))
    cause = {
        "original": before.digest,
        "table": before.table.digest,
        "concept": concept.digest,
        "method": [card.name, preset, asdict(config)],
        "code": erase_code(),
        "seed": setup.seed,
    }
    path = setup.runs / "erased" / sha256_bytes(canonical_json(cause))[:24]
    if not path.is_dir():
        request = EraseRequest(
            model=before.recommender,
            table=before.table,
            interactions=space.catalogue.interactions,
            concept=concept.members,
            embeddings=space.embeddings,
            codebooks=space.codebooks,
            seed=setup.seed,
            observer=observer,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with pinned(torch.get_num_threads(), setup.seed), publish(path) as result:
            cpu, wall = time.process_time(), time.monotonic()
            made = card.run(request, config)
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            save_checkpoint(result.directory, made.model, made.table, None, None)
            facts = {"cpu_seconds": round(cpu, 3), "wall_seconds": round(wall, 3), "summary": dict(made.summary)}
            result.provenance = {"command": "results", "cause": cause, "facts": facts}
    found = load_checkpoint(path, item_ids=space.catalogue.items.item_ids)
    facts = dict(found.manifest["provenance"]["facts"])
    return Model(found.recommender, found.table, weights_digest(found.recommender), facts)


def erase_code() -> str:
    """sha256 of the source of every erasing method."""
    return code_digest("erase")


def weights_digest(recommender: Recommender) -> str:
    """sha256 of every tensor, by name."""
    parts = []
    for name, tensor in sorted(recommender.module.state_dict().items()):
        parts.append(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return sha256_bytes(b"\0".join(parts))
