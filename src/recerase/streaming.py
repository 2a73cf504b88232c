"""The `tokenize` command for a catalogue that does not fit into memory: a directory of parquet files becomes SIDs.

The deciding choice is that nothing is published that was not asked for: the embeddings, which are nearly all of the bytes, are left
out unless the caller wants them kept. Several processes share the work and the main one publishes.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.assembly import given_paths
from recerase.catalog.dataset import ID, VECTOR, Dataset, parquet_files
from recerase.disk import scratch_directory
from recerase.errors import DataError, UsageError
from recerase.parallel import Workers, workers
from recerase.runtime import environment
from recerase.store import publish
from recerase.tokenizing import DIMS, Tokenized
from recerase.types import SILENT, Observer

if TYPE_CHECKING:
    from recerase.sid.quantize import TokenizeConfig
    from recerase.sid.stream import Source

_IDS, _NUMBERS = 1 << 16, 1 << 22
"""Ids of two datasets compared at a time; numbers of embeddings written at a time."""


def is_streamed(items: str | Path, embeddings: str | Path | None) -> bool:
    """Whether items or embeddings are a directory of parquet files, rather than a file or a data directory."""
    if embeddings is not None and Path(embeddings).is_dir():
        return True
    items = Path(items)
    return items.is_dir() and not (items / "items.parquet").exists() and bool(parquet_files(items))


def tokenize_stream(
    items: str | Path,
    out: str | Path,
    config: TokenizeConfig | None = None,
    *,
    embeddings: str | Path | None = None,
    dims: int | None = None,
    keep_embeddings: bool = False,
    force: bool = False,
    observer: Observer = SILENT,
) -> Tokenized:
    """Give every item of a dataset a SID, a block at a time, and publish table and codebooks at `out`.

    `items` is a parquet file, or a directory of them in the order of their names: with columns item_id and vector, or those of
    items.parquet, which are embedded from their words (`dims` wide; fitted to a sample). `embeddings` is a dataset of vectors for
    the same items in the same order. `keep_embeddings` stores them beside the codebooks, as erasing and auditing want them.

    Raises:
        DataError: the files are not that, or an id occurs twice.
        UsageError: more items than SIDs, or than SIDs that begin with one first code; more than 262,144 copies of one vector; or
            several processes that do not all see `out`.
    """
    from recerase.layouts.pieces import save_streamed_sids
    from recerase.sid.quantize import TokenizeConfig
    from recerase.sid.schema import SidSchema
    from recerase.sid.stream import sid_rows, stream

    began, crew, config = time.monotonic(), workers(), config or TokenizeConfig()
    with contextlib.ExitStack() as stack:
        result = stack.enter_context(publish(Path(out), inputs=given_paths(items, embeddings), force=force))
        home = stack.enter_context(scratch_directory(result.directory)) if crew.main else None
        scratch = Path(crew.told(str(home)))
        if not all(crew.gathered(scratch.is_dir())):
            raise UsageError(
                "--out must be on storage that every process sees.", "Name another place, or use one machine."
            )
        source, made_of = _source(items, embeddings, dims, config, scratch, crew, observer)
        made = stream(source, config, scratch, crew, observer)
        kept = len(source) if keep_embeddings else 0
        observer.start("write", None)
        save_streamed_sids(
            result.directory,
            sid_rows(source, made),
            SidSchema.native([config.codes] * config.levels, "unique" if config.resolve != "none" else "allowed"),
            made.codebooks,
            source.vectors(max(1, min(_IDS, _NUMBERS // source.width))) if kept else (),
            kept,
        )
        observer.finish("write")
        result.provenance = {
            "command": "tokenize",
            "items": made.digest,
            "config": asdict(config),
            "method": {"name": "rq-kmeans", "streamed": True},
            "embeddings": {**made_of, "dims": source.width, "seed": config.seed, "stored": keep_embeddings},
            "quality": made.quality.to_json(),
            "environment": asdict(environment(config.seed, config.threads)),
        }
        result.provenance["environment"].pop("processes", None)  # the result is the same however many there were
        crew.wait()  # nobody reads what is removed now
    return Tokenized(Path(out), len(source), source.width, made.quality, time.monotonic() - began, len(source))


def _source(
    items: str | Path,
    embeddings: str | Path | None,
    dims: int | None,
    config: TokenizeConfig,
    scratch: Path,
    crew: Workers,
    observer: Observer,
) -> tuple[Source, dict[str, Any]]:
    """The items with their embeddings, and what provenance says of these."""
    from recerase.catalog.texts import embedded
    from recerase.sid.stream import span

    catalogue = Dataset.open(items)
    if embeddings is None and not catalogue.has(VECTOR):
        source, fitted = embedded(
            catalogue, dims or DIMS, config.seed, scratch, span(len(catalogue), crew), crew, observer
        )
        return source, {"from": "text of a sample", "items": fitted}
    if dims is not None:
        raise UsageError("The width of embeddings that are given is theirs.", "Leave out --dims.")
    if embeddings is not None and Path(embeddings).suffix.lower() != ".parquet" and not Path(embeddings).is_dir():
        raise UsageError(
            f"{embeddings} is read whole, and cannot be streamed.",
            "Give a parquet file, or a directory of them, with columns item_id and vector.",
        )
    vectors = catalogue if embeddings is None else Dataset.open(embeddings)
    vectors.require(VECTOR)
    if vectors is not catalogue:
        _require_same_ids(catalogue, vectors)
    return vectors, {"from": "file", "items": len(vectors)}


def _require_same_ids(items: Dataset, vectors: Dataset) -> None:
    """Raises DataError unless both name the same items in the same order."""
    remedy = f"Give one vector an item, both sorted by {ID} say: a stream cannot look rows up."
    if len(items) != len(vectors):
        raise DataError(
            f"{vectors.path} has {len(vectors)} vectors for the {len(items)} items of {items.path}.", remedy
        )
    at = 0
    for ours, theirs in zip(items.ids(_IDS), vectors.ids(_IDS), strict=True):
        if not ours.equals(theirs):
            row = next(row for row, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
            raise DataError(
                f"Row {at + row} of {items.path} is item {ours[row].as_py()}, of {vectors.path} {theirs[row].as_py()}.",
                remedy,
            )
        at += len(ours)
