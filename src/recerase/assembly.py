"""What the commands in api.py share: opening inputs in one item order, and what a result depends on.

The one decision: everything is put into the catalogue's item order here, once, at the door; past this point an item
is a row number, and no room looks an id up again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.catalog import Catalogue, Concept, Histories, Items, parse_concept
from recerase.errors import DataError, UsageError
from recerase.runtime import RunConfig, available_threads, choose_device, choose_dtype, code_digest, environment
from recerase.store import canonical_json, sha256_bytes
from recerase.types import FloatArray, Observer, Policy

if TYPE_CHECKING:
    from recerase.layouts.native import Checkpoint
    from recerase.sid.quantize import Codebooks
    from recerase.sid.table import SidTable

RUN = RunConfig()
_LEAST_DIMS, _MOST_DIMS, _ITEMS_A_DIM = 4, 128, 8
"""Dimensions of the words that codebooks are fitted in: with as many as items, codebooks would reproduce any table."""


@dataclass(frozen=True)
class ConceptSpec:
    """A concept as a user writes it, before it meets a catalogue."""

    specs: tuple[str, ...]
    name: str | None = None
    allow_large: bool = False
    """Accept a concept of more than 25 % of the catalogue."""


def open_checkpoint_for(path: str | Path, catalogue: Catalogue, run: RunConfig) -> Checkpoint:
    """Load a checkpoint of any known layout, its table in the catalogue's order, on the device and in the dtype of `run`."""
    from recerase.layouts.registry import open_checkpoint

    device = choose_device(run.device)
    return open_checkpoint(
        path,
        item_ids=catalogue.items.item_ids,
        device=device,
        dtype=choose_dtype(run.dtype, device),
        trust_pickle=run.trust_pickle,
        layout=run.layout,
        options=dict(run.layout_options),
    )


def as_paths(given: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """One path, several or none, as so many."""
    return () if given is None else (Path(given),) if isinstance(given, str | Path) else tuple(map(Path, given))


def open_references(paths: Sequence[Path], catalogue: Catalogue, run: RunConfig) -> tuple[Checkpoint, ...]:
    """The checkpoints that were trained without the concept, as `open_checkpoint_for` opens them.

    Raises UsageError where two of them have the same weights, whatever else they differ in: one model counted twice would make
    references look more alike than they are.
    """
    found: list[Checkpoint] = []
    for path in paths:
        opened = open_checkpoint_for(path, catalogue, run)
        for known in found:
            if _same_weights(known, opened):
                raise UsageError(
                    f"{path} and {known.path} are the same reference: they have the same weights.",
                    "Give each retrained checkpoint once; others are trained with another --seed.",
                )
        found.append(opened)
    return tuple(found)


def _same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether every tensor is there in both, bit for bit."""
    import torch

    mine, theirs = one.recommender.module.state_dict(), other.recommender.module.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def reference_facts(references: Sequence[Checkpoint]) -> dict[str, object]:
    """The references as entries of `run_key`, in the order in which they were given."""
    from recerase.audit.references import reference_names

    first = checkpoint_facts("reference", references[0] if references else None)
    further = zip(reference_names(len(references))[1:], references[1:], strict=True)
    return first | {key: fact for name, one in further for key, fact in checkpoint_facts(name, one).items()}


def with_codebooks(
    checkpoint: Checkpoint, items: Items, observer: Observer, embeddings: str | Path | None = None
) -> Checkpoint:
    """A checkpoint of another tool, which keeps no codebooks, with codebooks fitted to its table from the items' own words,
    or from the item vectors in the file `embeddings`.

    A native one stays as it is, and so does one whose SIDs differ in length. How far they reproduce the table is told and kept.
    """
    from recerase.catalog.embed import load_embeddings, text_embeddings
    from recerase.sid.quantize import fit_codebooks

    if embeddings is not None and (checkpoint.layout == "native" or checkpoint.codebooks is not None):
        raise UsageError(
            f"{checkpoint.path} has codebooks of its own, so --embeddings would not be used.", "Leave --embeddings out."
        )
    if checkpoint.layout == "native" or checkpoint.codebooks is not None:
        return checkpoint
    if checkpoint.table.ragged:
        observer.note(f"the SIDs of {checkpoint.path} differ in length, so no codebooks are fitted to them")
        return checkpoint
    if embeddings is None:
        points = text_embeddings(items, dims=min(_MOST_DIMS, max(_LEAST_DIMS, len(items) // _ITEMS_A_DIM)))
    else:
        points = load_embeddings(embeddings, items)
    codebooks = fit_codebooks(points, checkpoint.table)
    shares = ", ".join(f"{share:.0%}" for share in codebooks.agreement)
    observer.note(f"codebooks fitted to {checkpoint.path}: they give {shares} of its codes, level by level")
    made_from = "the items' words" if embeddings is None else "the embeddings given"
    return replace(
        checkpoint, codebooks=codebooks, embeddings=points, extra={**checkpoint.extra, "fitted from": made_from}
    )


def choose_concept(spec: ConceptSpec, catalogue: Catalogue, embeddings: FloatArray | None) -> Concept:
    """The concept in this catalogue. Raises ConceptError when it is empty, too large, or cannot be read."""
    return parse_concept(
        spec.specs, catalogue.items, embeddings=embeddings, allow_large=spec.allow_large, name=spec.name
    )


def read_policy(policy: str | Path | Policy | None) -> Policy:
    """A policy as it is, from a file, or the shipped one. Raises PolicyError with every problem at once."""
    from recerase.audit.policy import default_policy, load_policy

    if isinstance(policy, Policy):
        return policy
    return default_policy() if policy is None else load_policy(policy)


def open_sids(
    path: str | Path, items: Items, embeddings: str | Path | None, observer: Observer
) -> tuple[SidTable, Codebooks | None, FloatArray | None]:
    """Table, codebooks and item embeddings of a directory made by `tokenize`, or of a table made elsewhere.

    A table alone (parquet, JSON, or a layout of tables; see `layouts.tables`) gets codebooks fitted to it, from `embeddings` or else
    from the items' own words; how far they reproduce it is told to the observer and kept with them. SIDs that differ in length get
    none. Codebooks without embeddings (a stream keeps none) stay without: the words of the items lie in another space. `embeddings`
    are put beside the codebooks that the SIDs were made with when these give the stored codes from them.
    """
    from recerase.catalog.embed import load_embeddings, text_embeddings
    from recerase.layouts.tables import read_sids
    from recerase.sid.quantize import fit_codebooks

    table, codebooks, points = read_sids(path, items.item_ids)
    if embeddings is not None:
        points = load_embeddings(embeddings, items)
        if codebooks is not None and not codebooks.fitted and not _reproduced(table, codebooks, points):
            observer.note(f"the embeddings given are not those that {path} was made from")
            codebooks = None
        codebooks = None if codebooks is None or codebooks.fitted else codebooks
    elif points is None and codebooks is not None:
        observer.note(
            f"{path} has codebooks and no item embeddings: tokenize with --keep-embeddings to erase with TRACER, "
            "or to audit with nearest and neighbours"
        )
    elif points is None:
        points = text_embeddings(items)
    if codebooks is None and table.ragged:
        observer.note(f"the SIDs of {path} differ in length, so no codebooks are fitted to them")
    elif codebooks is None:
        assert points is not None
        codebooks = fit_codebooks(points, table)
        shares = ", ".join(f"{share:.0%}" for share in codebooks.agreement)
        observer.note(f"codebooks fitted to {path}: they give {shares} of its codes, level by level")
    return table, codebooks, points


def _reproduced(table: SidTable, codebooks: Codebooks, points: FloatArray) -> bool:
    """Whether codebooks give from embeddings [N, D] the codes of every item that collision resolution left alone."""
    sizes = tuple(len(words) for words in codebooks.vectors)
    if table.ragged or sizes != table.schema.codes or points.shape[1] != len(codebooks.recipe.centre):
        return False
    rows = np.flatnonzero(table.present & ~table.resolved)
    return len(rows) > 0 and np.array_equal(codebooks.encode(points[rows]), table.codes[rows])


def whole_histories(catalogue: Catalogue) -> Histories:
    """[U'] every user's whole history, nothing held out; users without any interaction are left out."""
    interactions = catalogue.interactions
    everyone = Histories(
        items=interactions.items,
        offsets=interactions.offsets,
        users=np.arange(interactions.n_users, dtype=np.int64),
        targets=np.full(interactions.n_users, -1, dtype=np.int32),
    )
    kept = np.flatnonzero(everyone.lengths > 0)
    if len(kept) == 0:
        raise DataError("No user has an interaction.", "Give a data directory with histories.")
    return everyone.take(kept)


def data_digest(catalogue: Catalogue) -> str:
    """sha256 over the digests of items and interactions."""
    return sha256_bytes(canonical_json([catalogue.items.digest, catalogue.interactions.digest]))


def concept_facts(concept: Concept, catalogue: Catalogue) -> dict[str, Any]:
    """What a report and a manifest say about a concept: name, spec, items, interactions, users, digest."""
    touched = concept.members[catalogue.interactions.items]
    users = whole_histories(catalogue).touches(concept.members)
    return {
        "name": concept.name,
        "spec": list(concept.spec),
        "items": int(concept.members.sum()),
        "interactions": int(touched.sum()),
        "users": int(users.sum()),
        "digest": concept.digest,
    }


def run_key(run: RunConfig, seed: int, data: str, **entries: object) -> dict[str, str]:
    """What a result depends on, name -> digest: a state made under another key is not reused, and is told by these names.

    `entries` are what the command adds: its models, policy, method, settings; JSON values, None for what was not given.
    """
    made = asdict(environment())
    return {
        **{name.replace("_", " "): sha256_bytes(canonical_json(value)) for name, value in entries.items()},
        "data": data,
        "seed": str(seed),
        "threads": str(run.threads or available_threads()),
        "device": choose_device(run.device),
        "dtype": run.dtype or "as stored",
        "versions": sha256_bytes(canonical_json([made[name] for name in ("python", "torch", "platform", "packages")])),
        "code": code_digest(),
    }


def checkpoint_facts(role: str, checkpoint: Checkpoint | None) -> dict[str, object]:
    """A checkpoint as entries of `run_key`: its weights with their shape, and the table and codebooks it speaks with."""
    if checkpoint is None:
        return {role: None}
    module: Any = checkpoint.recommender.module
    shape = {name: value for name, value in module.config.to_dict().items() if name != "_name_or_path"}
    tensors = dict(checkpoint.codebooks.to_tensors()) if checkpoint.codebooks is not None else {}
    if checkpoint.embeddings is not None:
        tensors["embeddings"] = checkpoint.embeddings
    of = "" if role == "model" else f"{role}_"
    model = checkpoint.recommender
    return {
        role: [checkpoint.digest, model.window, repr(sorted(shape.items())), repr(model.prompt), model.per_level],
        f"{of}table": checkpoint.table.digest,
        f"{of}codebooks": {name: sha256_bytes(np.ascontiguousarray(v).tobytes()) for name, v in tensors.items()},
    }


def changes(before: Checkpoint, after: Checkpoint) -> dict[str, Any]:
    """Which tensors are bit for bit the same, and what share of items moved to another SID."""
    import torch

    old, new = before.recommender.module.state_dict(), after.recommender.module.state_dict()
    same = sorted(name for name in old if name in new and torch.equal(old[name], new[name]))
    moved, dropped = before.table.moved(after.table), after.table.dropped
    return {
        "tensors": len(old),
        "tensors_changed": sorted(set(old) - set(same)),
        "tensors_identical": same,
        "items_moved": int(moved.sum()),
        "share_moved": float(moved.mean()),
        "items_unlisted": int((before.table.listed & ~after.table.listed).sum()),
        **({} if dropped is None else {"items_dropped_from_histories": int(dropped.sum())}),
    }


def given_paths(*given: object) -> list[Path]:
    """The paths among the arguments that were given, the item lists (@FILE) that concepts name, and the files that runs do."""
    specs = [
        spec.strip().removeprefix("!").strip()
        for concept in given
        if isinstance(concept, ConceptSpec)
        for spec in concept.specs
    ]
    lists = [Path(spec[1:].strip()) for spec in specs if spec.startswith("@")]
    runs = [run for run in given if isinstance(run, RunConfig)]
    said = [Path(value) for run in runs for _, value in run.layout_options]
    said += [Path(run.embeddings) for run in runs if run.embeddings is not None]
    return [*(Path(path) for path in given if isinstance(path, str | Path)), *lists, *filter(os.path.lexists, said)]
