"""`recerase prepare`: what a method learns of a checkpoint once, published, and read again by every `erase --set prepared=DIR`.

    prepared.safetensors    what was learnt
    prepared.json           method, its settings and figures; digests of checkpoint, SID table and data
    recerase.json           digests of both, provenance (written by store.publish)

The one decision: what was prepared for another checkpoint or SID table, or while other concepts were known to be erased before, is
refused before any work, by digest; other data is told, for interactions grow between two requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.assembly import RUN, ConceptSpec, data_digest, given_paths, open_checkpoint_for, with_codebooks
from recerase.catalog import load_catalogue
from recerase.catalog.files import read_verified, reading_verified
from recerase.earlier import NOTHING, Gone, gone_from, home_of
from recerase.errors import ArtefactError, CheckpointError, UsageError
from recerase.runtime import RunConfig, choose_device, environment, only_as_stored, pinned
from recerase.store import (
    canonical_json,
    pretty_json,
    publish,
    read_manifest,
    sha256_bytes,
    verify_manifest,
    write_bytes,
)
from recerase.types import SILENT, Observer

if TYPE_CHECKING:
    from recerase.erase.method import Method, Prepared
    from recerase.sid.table import SidTable

SCHEMA = "recerase.prepared/1"
TENSORS, CARD = "prepared.safetensors", "prepared.json"
_EARLIER = "earlier concepts"
"""Of the card: the digest of what was erased before; a card without it says that nothing was."""


@dataclass(frozen=True)
class Made:
    """What `prepare` published."""

    path: Path
    method: str
    facts: dict[str, Any]


def prepare(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    method: str = "unlearnrec",
    overrides: Sequence[str] = (),
    earlier: Sequence[ConceptSpec] = (),
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Made:
    """Let a method learn of a checkpoint what it needs to answer requests, and publish it at `out`.

    No concept has a part in it but those that were erased before: what the checkpoint remembers, and `earlier` besides, which count
    as retained nowhere. Raises UsageError for a method that has nothing to prepare. An interrupted run begins again.
    """
    from safetensors.numpy import save

    from recerase.erase.method import EraseRequest
    from recerase.erase.methods import get_method, make_config
    from recerase.planning import key_values

    only_as_stored(run, "prepare")
    eraser, preset = get_method(method)
    eraser.require_preparing()
    settings = make_config(eraser, preset, key_values(overrides))
    if settings.prepared:
        raise UsageError("prepared names what this command makes.", "Leave --set prepared out.")
    with (
        publish(Path(out), inputs=given_paths(checkpoint, data, *earlier, run), force=force) as result,
        pinned(run.threads, run.seed) as threads,
    ):
        catalogue = load_catalogue(data)
        opened = open_checkpoint_for(checkpoint, catalogue, run)
        eraser.check(opened.table, opened.codebooks, opened.embeddings, settings)
        nobody = np.zeros(len(opened.table), bool)
        known = with_codebooks(opened, catalogue.items, observer) if earlier else opened  # like: needs embeddings
        gone = gone_from([home_of(opened)], earlier, catalogue, opened.table, known.embeddings)
        if gone.members.any():
            observer.note(f"erased before: {gone.told}")
        request = EraseRequest(
            opened.recommender,
            opened.table,
            catalogue.interactions,
            nobody,
            seed=run.seed,
            observer=observer,
            gone=gone.members,
        )
        made = eraser.prepare(request, settings)
        said = {
            "schema": SCHEMA,
            "method": method,
            "facts": dict(made.facts),
            "checkpoint": opened.digest,
            "table": opened.table.digest,
            "data": data_digest(catalogue),
            **({_EARLIER: gone.digest} if gone.concepts else {}),
        }
        write_bytes(result.directory / TENSORS, save(dict(made.tensors)))
        write_bytes(result.directory / CARD, pretty_json(said))
        result.provenance = {
            "command": "prepare",
            "method": {"name": method, "config": asdict(settings)},
            "original": opened.digest,
            "data": said["data"],
            "erased": [concept.facts for concept in gone.concepts],
            "environment": asdict(environment(run.seed, threads, choose_device(run.device))),
        }
    return Made(Path(out), method, dict(made.facts))


def prepared_for(
    method: Method,
    settings: Any,
    checkpoint: Callable[[], str],
    table: SidTable,
    gone: Gone,
    data: str,
    observer: Observer = SILENT,
) -> Prepared | None:
    """What `settings.prepared` names, or None where it names nothing; `facts` then has the digest of its files.

    Args:
        checkpoint: gives the digest of what is erased from, where it is wanted.
        gone: what was erased before.
        data: digest of the data directory.
    Raises:
        ArtefactError: a file is missing, or not what the manifest says.
        CheckpointError: it was made by another method, of another checkpoint or table, or while other concepts were known to be
            erased before.
    """
    place = getattr(settings, "prepared", "")
    if not method.prepares or not place:
        return None
    path = Path(place)
    said, made = _read(path)
    for what, of, wanted in (
        ("method", said["method"].partition("/")[0], method.name),
        ("checkpoint", said["checkpoint"], checkpoint()),
        ("SID table", said["table"], table.digest),
    ):
        if of != wanted:
            raise CheckpointError(
                f"{path} was prepared for another {what}.",
                "Run `recerase prepare` on this checkpoint, or leave it out.",
            )
    if said.get(_EARLIER, NOTHING) != gone.digest:
        raise CheckpointError(
            f"{path} was prepared while other concepts were known to be erased before than are now.",
            "Run `recerase prepare` with the same --already-erased, or leave it out.",
        )
    if said["data"] != data:
        observer.note(f"{path} was prepared on other data than these")
    return made


def _read(path: Path) -> tuple[dict[str, Any], Prepared]:
    """Card and content of a directory made by `prepare`. Raises ArtefactError."""
    from recerase.erase.method import Prepared
    from recerase.layouts.tensors import numpy_memory, read_safetensors

    if not (path / CARD).is_file():
        raise ArtefactError(f"{path} has no {CARD}.", "Give a directory made by `recerase prepare`.")
    manifest = read_manifest(path)
    verify_manifest(path, needed=[TENSORS, CARD])
    try:
        said = json.loads(read_verified(path, [CARD], manifest)[CARD])
        with reading_verified(path, TENSORS, manifest) as file:
            tensors, _ = read_safetensors(file, numpy_memory)
        digest = sha256_bytes(canonical_json({name: manifest["files"][name]["sha256"] for name in (TENSORS, CARD)}))
        if said["schema"] != SCHEMA:
            raise ValueError(f"its schema is {said['schema']!r:.40}, and {SCHEMA} is read")
        made = Prepared(tensors, {**said["facts"], "digest": digest})
        if not all(isinstance(said[name], str) for name in ("method", "checkpoint", "table", "data")):
            raise ValueError("a digest or a name is no text")
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ArtefactError(f"{path} cannot be read: {error!s:.120}.", "Run `recerase prepare` again.") from error
    return said, made


def told_settings(settings: Any, made: Prepared | None) -> dict[str, Any]:
    """Settings as a report has them: what was prepared is named by digest, not by its place on this machine."""
    said = asdict(settings)
    return said if made is None else {**said, "prepared": made.facts["digest"]}
