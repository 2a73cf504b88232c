"""A trie of SIDs as a table of prefixes: which vocabulary rows may follow which.

The one decision: keys are the vocabulary rows generated so far, joined by "-" as MiniOneRec's get_hash (evaluate.py) joins them, and
begin behind whatever the model was given: a prompt, or a decoder's start. LETTER-TIGER's Trie (generation_trie.py) says the same with
the decoder's start in front and eos behind; LC-Rec's get_prefix_allowed_tokens_fn (data.py) is looser, a set of tokens a position
whatever came before. What ends a SID is part of the table, for generation goes on until something ends it. Built depth by depth in
columns; no node is touched by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.sid.schema import SidSchema
from recerase.sid.trie import Trie
from recerase.store import canonical_json
from recerase.types import BoolArray, IntArray, Observer

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 18
"""Prefixes that are spelled at once."""


@dataclass(frozen=True)
class Ends:
    """What is generated behind the last code of a SID."""

    rows: tuple[int, ...]
    """In their order; empty where the vocabulary has no such row."""
    eos: int
    """The first of them, which is in the trie behind SIDs that are shorter than others; -1 for none."""

    @classmethod
    def of(cls, eos: int, last: int = -1) -> Ends:
        """`eos` ends a SID, and `last`, where it is another row, the generation."""
        return cls(tuple(dict.fromkeys(row for row in (eos, last) if row >= 0)), eos)

    def ended(self, trie: Trie, depth: int) -> BoolArray:
        """[n_d] the SID has ended with this node, which is no code."""
        return np.asarray((trie.tokens[depth] == self.eos) & (self.eos >= 0))


def prefix_json(
    facts: Mapping[str, Any], trie: Trie, ends: Ends, tail: tuple[int, ...], observer: Observer
) -> Iterator[bytes]:
    """`facts` and `allowed`, as the parts of a JSON file; a `tail` of rows stands for no rows at all, besides the empty key."""
    yield canonical_json(dict(facts)).removesuffix(b"}") + b',"allowed":{'
    first = ",".join(map(str, trie.tokens[1].tolist()))
    keys = ["", *(["-".join(map(str, tail))] if tail else [])]
    yield ",".join(f'"{key}":[{first}]' for key in keys).encode()
    task = "prefixes"
    observer.start(task, sum(trie.n_nodes(depth) for depth in range(1, trie.levels + 1)))
    for part in _entries(trie, ends):
        yield b",\n" + ",\n".join(part).encode()
        observer.advance(task, len(part))
    observer.finish(task)
    yield b"}}\n"


def _entries(trie: Trie, ends: Ends) -> Iterator[list[str]]:
    """The entries of every prefix of at least one row, in blocks."""
    import pyarrow as pa

    names: Any = pa.array([""], pa.large_string())
    for depth in range(1, trie.levels + 1):
        text = _text(trie.tokens[depth])
        above = names.take(pa.array(trie.parent[depth]))
        names = text if depth == 1 else _joined(above, "-", text)
        ended, alive = ends.ended(trie, depth), trie.tokens[depth] >= 0
        goes = np.flatnonzero(alive & ~ended)
        if depth == trie.levels:
            yield from _endings(names.take(pa.array(goes)), ends.rows)
        else:
            for low in range(0, len(goes), _BLOCK):
                nodes = goes[low : low + _BLOCK]
                yield _spelled(names.take(pa.array(nodes)), *_children(trie, depth, nodes))
        yield from _endings(names.take(pa.array(np.flatnonzero(ended))), ends.rows[1:])


def _children(trie: Trie, depth: int, nodes: IntArray) -> tuple[IntArray, IntArray]:
    """Where each node's children begin [n + 1] in the rows of all of them."""
    first, last = trie.first_child[depth][nodes], trie.first_child[depth][nodes + 1]
    starts = np.append(0, np.cumsum(last - first)).astype(np.int64)
    at = np.repeat(first - starts[:-1], last - first) + np.arange(starts[-1])
    return starts, trie.tokens[depth + 1][at]


def _spelled(names: Any, starts: IntArray, rows: IntArray) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), _text(rows).cast(pa.string()))
    following = pc.binary_join(lists, ",").cast(pa.large_string())
    found: list[str] = _joined('"', names, '":[', following, "]").to_pylist()
    return found


def _endings(names: Any, rows: tuple[int, ...]) -> Iterator[list[str]]:
    """What ends the SIDs of these names, row by row."""
    for row in rows:
        for low in range(0, len(names), _BLOCK):
            block = names.slice(low, _BLOCK)
            yield _joined('"', block, f'":[{row}]').to_pylist()
        names = _joined(names, f"-{row}")


def _joined(*parts: Any) -> Any:
    """Columns of text, and texts that are the same in every row, one behind another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", pa.large_string()))


def _text(rows: IntArray) -> Any:
    import pyarrow as pa

    return pa.array(rows).cast(pa.large_string())


def prefix_table(trie: Trie, schema: SidSchema, ends: Ends, tokens: Mapping[int, str] | None) -> pa.Table:
    """One line a step: depth (rows before), prefix (these rows), next row, its code and its token; null for a row that ends.

    Shorter prefixes come first.
    """
    import pyarrow as pa

    parts: list[tuple[IntArray, IntArray]] = []
    path = np.zeros((1, 0), np.int64)
    for depth in range(1, trie.levels + 1):
        before, rows = path[trie.parent[depth]], trie.tokens[depth]
        path = np.concatenate([before, rows[:, None]], 1)
        alive, ended = rows >= 0, ends.ended(trie, depth)
        parts.append((before[alive], rows[alive]))
        if depth == trie.levels:
            parts += _behind(path[alive & ~ended], ends.rows)
        parts += _behind(path[ended], ends.rows[1:])
    parts.sort(key=lambda part: part[0].shape[1])
    depths = np.concatenate([np.full(len(rows), before.shape[1], np.int32) for before, rows in parts])
    rows = np.concatenate([rows for _, rows in parts])
    offsets = np.append(0, np.cumsum(depths, dtype=np.int64))
    prefix = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([b.ravel() for b, _ in parts])))
    level = np.minimum(depths, schema.levels - 1)
    spelled = schema.codes_of(np.repeat(rows[:, None], schema.levels, 1))[np.arange(len(rows)), level]
    codes = np.where(depths < schema.levels, spelled, -1)
    return pa.table(
        {
            "depth": pa.array(depths),
            "prefix": prefix,
            "next": pa.array(rows),
            "code": pa.array(codes.astype(np.int32), mask=codes < 0),
            "token": _tokens(rows, codes, tokens),
        }
    )


def _behind(path: IntArray, rows: tuple[int, ...]) -> list[tuple[IntArray, IntArray]]:
    """The steps to the rows that end SIDs [n, d], one depth after another."""
    made: list[tuple[IntArray, IntArray]] = []
    for row in rows if len(path) else ():
        end = np.full(len(path), row, np.int64)
        made.append((path, end))
        path = np.concatenate([path, end[:, None]], 1)
    return made


def _tokens(rows: IntArray, codes: IntArray, tokens: Mapping[int, str] | None) -> Any:
    """The tokens of rows that are codes, spelled once each."""
    import pyarrow as pa

    if tokens is None:
        return pa.nulls(len(rows), pa.string())
    known, at = np.unique(rows, return_inverse=True)
    spelled = pa.array([tokens.get(row) for row in known.tolist()], pa.string())
    return spelled.take(pa.array(at, mask=codes < 0))
