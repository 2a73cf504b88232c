"""SIDs for more items than fit into memory: the same codes, codebooks and SIDs as `quantize.tokenize` makes of the same rows.

The deciding choice is that every step asks for one block of rows and is the same whatever the block: sums are made in units of
fixed size, a code is a function of its row alone, and items with different first codes never collide as long as each first code
has SIDs enough, so collisions are resolved one first code after the other. What grows with the items is their codes (a byte a level
up to 256 codes), a mark of which were moved, and while ids are compared 8 bytes an id; vectors wait on the disk. Held besides are the
sample that codewords are found on, and the items of one prefix that has more of them than SIDs: more than 262,144 are refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from recerase.catalog.columns import first_duplicate
from recerase.catalog.dataset import Block
from recerase.disk import Scratch, spare_files
from recerase.errors import DataError, UsageError
from recerase.parallel import Workers
from recerase.sid.codebooks import Codebooks
from recerase.sid.parts import NUMBERS, Parts
from recerase.sid.quality import QualityReport, figures, shared_items
from recerase.sid.quantize import UNIT, TokenizeConfig, centre_of, codewords, sample_rows, unit_sum
from recerase.sid.resolve import resolve_collisions
from recerase.types import SILENT, BoolArray, FloatArray, IntArray, Observer

_PARTS = 256
"""Files that vectors wait in at most, by their first codes."""
_SUSPECTS = 1024
"""Hashes that several ids have, looked into at a time."""
_MOST = 1 << 18
"""Items with one prefix that may be more than its SIDs: what is held to tell them apart is their vectors and distances."""
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""The constants of splitmix64."""


class Source(Protocol):
    """Rows with an id and an embedding, read from anywhere to anywhere, `size` at a time."""

    @property
    def width(self) -> int: ...

    def __len__(self) -> int: ...

    def ids(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pa.Array]: ...

    def vectors(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[FloatArray]: ...

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Block]: ...


class Survey(NamedTuple):
    """What one look at every row gives."""

    centre: FloatArray
    """float32 [D] mean embedding."""
    sample: FloatArray
    """float32 [S, D] the rows that codewords are found on."""
    digest: str
    """sha256 over the ids and embeddings of all rows, in their order."""


@dataclass(frozen=True)
class Streamed:
    """SIDs in the order of the rows."""

    codes: IntArray
    """[N, L], of the smallest unsigned type that holds a code."""
    resolved: BoolArray
    """[N] the SID was changed to keep SIDs apart."""
    codebooks: Codebooks
    quality: QualityReport
    digest: str


def stream(
    source: Source,
    config: TokenizeConfig,
    scratch: Path,
    crew: Workers | None = None,
    observer: Observer = SILENT,
    block: int | None = None,
) -> Streamed:
    """A SID for each of N rows that are never in memory together; `scratch` is an empty directory that every process sees, with
    room for 4 N D bytes of vectors.

    Each process of `crew` takes its part of the rows and of the first codes; every one gets the whole result, which does
    not depend on how many they are, nor on `block`, the rows held at a time.

    Raises:
        DataError: an id occurs twice, or the rows are not what `Dataset` says they must be.
        UsageError: there are more items than SIDs, more with one first code than SIDs that begin with it, or more than 262,144
            (copies of one vector, say) with a prefix that has not so many SIDs.
    """
    crew = crew or Workers()
    _require_room(len(source), config)
    block = block or max(1, min(NUMBERS // source.width, 1 << 17))
    seen = survey(source, config, crew, observer)
    observer.start("codewords", None)
    codebooks = crew.told(codewords(seen.sample, seen.centre, config)[1] if crew.main else None)
    observer.finish("codewords")
    resolving = config.resolve == "next-nearest"
    parts = Parts(scratch, config.codes, source.width, min(_PARTS, *crew.gathered(spare_files())))
    mine = _coded(source, codebooks, config, parts if resolving else None, crew, block, observer)
    codes = np.concatenate(crew.gathered(mine))
    del mine
    before = _shared(codes, parts, crew)
    resolved = _resolve(codes, codebooks, parts, crew, observer) if resolving else np.zeros(len(codes), bool)
    after = _shared(codes, parts, crew)
    counts = [np.bincount(column, minlength=config.codes) for column in codes.T]
    moved = int(np.count_nonzero(resolved))
    quality = figures(counts, len(codes), before / len(codes), after / len(codes), moved)
    return Streamed(codes, resolved, codebooks, quality, seen.digest)


def survey(source: Source, config: TokenizeConfig, crew: Workers, observer: Observer = SILENT) -> Survey:
    """Mean, sample and digest of all rows, and that no two have one id. Raises DataError."""
    n_items = len(source)
    wanted = sample_rows(n_items, config)
    start, stop = span(n_items, crew)
    sums, sample, digests, hashes = list[FloatArray](), list[FloatArray](), list[bytes](), list[IntArray]()
    observer.start("read", stop - start)
    at = start
    for ids, parts in _units(source, start, stop):
        total, content = None, hashlib.sha256(_content(ids))
        for vectors in parts:
            total = unit_sum(vectors, total)
            if wanted is None:
                sample.append(vectors)
            else:
                low, high = np.searchsorted(wanted, [at, at + len(vectors)])
                sample.append(vectors[wanted[low:high] - at])
            content.update(np.ascontiguousarray(vectors, "<f4").data)
            at += len(vectors)
        assert total is not None
        sums.append(total)
        hashes.append(hashed(ids))
        digests.append(content.digest())
        observer.advance("read", len(ids))
    observer.finish("read")
    told = crew.gathered((sums, sample, digests, hashes))
    sums, sample, digests, hashes = ([x for rank in told for x in rank[field]] for field in range(4))
    del told
    _require_distinct(source, hashes)
    return Survey(centre_of(sums, n_items), np.concatenate(sample), hashlib.sha256(b"".join(digests)).hexdigest())


def _units(source: Source, start: int, stop: int) -> Iterator[tuple[pa.Array, Iterator[FloatArray]]]:
    """Whole units from `start` on: the ids of one, and its embeddings in as many parts as keep each small."""
    parts = 1
    while parts < UNIT and UNIT // parts * source.width > NUMBERS:
        parts *= 2
    if parts == 1:
        yield from ((piece.ids, iter([piece.vectors])) for piece in source.blocks(UNIT, start, stop))
        return
    pieces = source.blocks(UNIT // parts, start, stop)
    for ids in source.ids(UNIT, start, stop):
        yield ids, (piece.vectors for piece in islice(pieces, -(-len(ids) // (UNIT // parts))))


def span(n_items: int, crew: Workers) -> tuple[int, int]:
    """The rows of one process: whole units, about as many for each, all of them in the order of the ranks."""
    units = -(-n_items // UNIT)
    start, stop = (min(n_items, units * rank // crew.size * UNIT) for rank in (crew.rank, crew.rank + 1))
    return start, stop


def sid_rows(source: Source, made: Streamed, size: int = 1 << 17) -> Iterator[pa.Table]:
    """The content of sids.parquet, `size` rows at a time; ids are read once more."""
    at, levels = 0, made.codes.shape[1]
    for ids in source.ids(size):
        stop = at + len(ids)
        offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * levels)
        values = pa.array(made.codes[at:stop].astype(np.int32).reshape(-1))
        yield pa.table(
            {
                "item_id": ids,
                "codes": pa.ListArray.from_arrays(offsets, values),
                "listed": pa.array(np.ones(len(ids), bool)),
                "resolved": pa.array(made.resolved[at:stop]),
            }
        )
        at = stop


def hashed(ids: pa.Array) -> IntArray:
    """uint64 [n] a hash of each string: of equal ones equal, of others almost surely not."""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    begins = (offsets[:-1] - offsets[0]).astype(np.int64)
    lengths = np.diff(offsets)
    data = np.frombuffer(ids.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    place = (np.arange(len(data)) - np.repeat(begins, lengths)).astype(np.uint64)
    sums = np.add.reduceat(_mixed(data | place << np.uint64(8)), begins)
    return _mixed(sums + lengths.astype(np.uint64))


def _mixed(x: IntArray) -> IntArray:
    """splitmix64 of uint64 numbers."""
    step, first, second = (np.uint64(number) for number in _MIX)
    x = x + step
    x = (x ^ (x >> np.uint64(30))) * first
    x = (x ^ (x >> np.uint64(27))) * second
    return x ^ (x >> np.uint64(31))


def _content(ids: pa.Array) -> bytes:
    """Lengths and bytes of strings."""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    return np.diff(offsets).astype("<i4").tobytes() + bytes(ids.buffers()[2][int(offsets[0]) : int(offsets[-1])])


def _require_distinct(source: Source, hashes: list[IntArray]) -> None:
    """Raises DataError when an id occurs twice: hashes are compared, and where they are equal the ids themselves."""
    every = np.empty(sum(map(len, hashes)), np.uint64)
    at = 0
    while hashes:  # one by one, so that no hash is held twice
        some = hashes.pop()
        every[at : at + len(some)] = some
        at += len(some)
    every.sort()
    suspects = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    for at in range(0, len(suspects), _SUSPECTS):
        seen = pa.array([], pa.string())
        for ids in source.ids(UNIT):
            there = ids.filter(pa.array(np.isin(hashed(ids), suspects[at : at + _SUSPECTS])))
            seen = pa.concat_arrays([seen, there])
            twice = first_duplicate(pa.chunked_array([seen])) if len(there) else None
            if twice is not None:
                raise DataError(f"The catalogue lists item {twice!r} more than once.", "Keep one row for each item_id.")


def _coded(
    source: Source,
    codebooks: Codebooks,
    config: TokenizeConfig,
    parts: Parts | None,
    crew: Workers,
    block: int,
    observer: Observer,
) -> IntArray:
    """Codes [n, L] of this process's rows; their vectors go to `parts`."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    start, stop = span(len(source), crew)
    codes = np.empty((stop - start, config.levels), np.min_scalar_type(config.codes - 1))
    observer.start("code", stop - start)
    at = 0
    with (
        Scratch([]) if parts is None else parts.opened(crew.rank) as files,
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(config.threads) as pool,
    ):
        for vectors in source.vectors(block, start, stop):
            found = np.concatenate(list(pool.map(codebooks.encode, np.array_split(vectors, config.threads))))
            codes[at : at + len(found)] = found
            if parts is not None:
                part = parts.of(found[:, 0])
                order = np.argsort(part, kind="stable")
                cuts = np.searchsorted(part[order], np.arange(parts.count + 1))
                vectors = vectors[order]
                for place in np.flatnonzero(np.diff(cuts)):
                    files.append(int(place), vectors[cuts[place] : cuts[place + 1]].data)
            at += len(found)
            observer.advance("code", len(found))
    observer.finish("code")
    return codes


def _shared(codes: IntArray, parts: Parts, crew: Workers) -> int:
    """How many rows of codes [N, L] occur more than once."""
    rows = parts.rows(codes)
    return sum(crew.gathered(sum(shared_items(codes[rows(part)]) for part in crew.mine(parts.count).tolist())))


def _resolve(codes: IntArray, codebooks: Codebooks, parts: Parts, crew: Workers, observer: Observer) -> BoolArray:
    """Give items that share a SID one of their own, in `codes` [N, L] itself; which were moved [N]. Raises UsageError."""
    sizes = [len(words) for words in codebooks.vectors]
    below = math.prod(sizes[1:])
    most = int(np.bincount(codes[:, 0]).max())
    if most > below:
        raise UsageError(
            f"{most} items have the same first code, and only {below} SIDs begin with it.",
            "Use more levels or more codes a level.",
        )
    rows = parts.rows(codes)
    moved = list[tuple[IntArray, IntArray]]()
    observer.start("resolve", parts.count)
    for part in crew.mine(parts.count).tolist():
        here = rows(part)
        if len(here):
            vectors = parts.vectors(part, crew.size)
            out, changed = resolve_collisions(codes[here].astype(np.int32), codebooks, vectors, most=_MOST)
            moved.append((here[changed], out[changed].astype(codes.dtype)))
        observer.advance("resolve", crew.size)
    observer.finish("resolve")
    resolved = np.zeros(len(codes), bool)
    for items, new in (pair for told in crew.gathered(moved) for pair in told):
        codes[items], resolved[items] = new, True
    return resolved


def _require_room(n_items: int, config: TokenizeConfig) -> None:
    if config.resolve == "next-nearest" and n_items > config.codes**config.levels:
        raise UsageError(
            f"{n_items} items cannot have different SIDs of {config.levels} levels with {config.codes} codes.",
            "Use more levels or more codes a level.",
        )
