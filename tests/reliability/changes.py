"""Valid documents and tables, changed at random places: what the fuzzers are fed with."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

DEEP, HEX = "@deep@", "@hex@"
SCALARS = st.one_of(
    st.sampled_from([HEX, None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 1e308, 5e-324]),
    st.sampled_from(
        ["", " ", "\0", "\ud800", "\U0001f9e8", "\u202eevil", "nan", "inf", "<script>", "]]>", "x" * 10_000]
    ),
    st.floats(),
    st.text(max_size=8),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, valid: Callable[[], Any]) -> Any:
    """A copy of a JSON-like document with up to three places changed."""
    document = copy.deepcopy(valid())
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(document))
        if not found:
            break
        *parents, last = found[draw(st.integers(0, len(found) - 1))]
        holder = document
        for key in parents:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "delete", "repeat", "rename", "type", "deep"])):
            case "delete":
                del holder[last]
            case "repeat" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = holder.pop(last)
            case "type":
                old = holder[last]
                holder[last] = draw(st.sampled_from([str(old)[:99], [old], {"x": old}, isinstance(old, str), math.nan]))
            case "deep":
                holder[last] = DEEP
            case _:
                holder[last] = draw(ANYTHING)
    return document


@st.composite
def damaged(draw: st.DrawFn, valid: Callable[[], bytes]) -> bytes:
    """The bytes with a few flipped, replaced, inserted, removed or repeated, or cut short."""
    data = bytearray(valid())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "set", "insert", "remove", "cut", "double", "huge"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B]))
            case "insert":
                data[at:at] = draw(st.binary(max_size=6))
            case "remove":
                del data[at : at + draw(st.integers(1, 16))]
            case "cut":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + 64]
            case "huge":
                data[at : at + 5] = b"\xff\xff\xff\xff\x7f"
    return bytes(data)


def deepened(data: bytes) -> bytes:
    """A text with lists far deeper than any parser goes where `changed` asked for them (and, in TOML, endless numbers)."""
    data = data.replace(b'"%s"' % DEEP.encode(), b"[" * 20_000 + b"]" * 20_000)
    return data.replace(b'"%s"' % HEX.encode(), b"0x" + b"f" * 9000)


def json_of(document: Any) -> bytes:
    return deepened(json.dumps(document).encode())


def column(draw: st.DrawFn, n: int) -> pa.Array:
    """A column of n rows of some type that parquet can hold, seldom the right one."""
    decimals = pa.array([Decimal("1.50")] * n, pa.decimal128(9, 2))
    pairs = pa.array([{"x": 1}] * n)
    choices: list[Callable[[], Any]] = [
        lambda: pa.nulls(
            n, draw(st.sampled_from([pa.null(), pa.string(), pa.int64(), pa.list_(pa.int32()), pa.bool_()]))
        ),
        lambda: pa.array(draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)), pa.int64()),
        lambda: pa.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n)), pa.uint64()),
        lambda: pa.array(draw(st.lists(st.floats(), min_size=n, max_size=n)), pa.float64()),
        lambda: pa.array(
            [draw(st.text(max_size=5)) for _ in range(n)], draw(st.sampled_from([pa.string(), pa.large_string()]))
        ),
        lambda: pa.array(
            [draw(st.binary(max_size=5)) for _ in range(n)], draw(st.sampled_from([pa.binary(), pa.binary()]))
        ),
        lambda: pa.Array.from_buffers(pa.string(), n, pa.array([b"\xff\xfe"] * n, pa.binary()).buffers()),
        lambda: pa.array(["same" * draw(st.sampled_from([1, 4000]))] * n).dictionary_encode(),
        lambda: pa.array(
            [draw(st.lists(st.integers(-2, 2**31 - 1) | st.none(), max_size=4)) for _ in range(n)], pa.list_(pa.int32())
        ),
        lambda: pa.array([[draw(st.integers(0, 2**62))] * 2] * n, pa.large_list(pa.int64())),
        lambda: pa.array([["a", None]] * n, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        lambda: pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)),
        lambda: pa.array([[[1]]] * n),
        lambda: pairs,
        lambda: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        lambda: decimals,
        lambda: pa.array([datetime(2020, 1, 1)] * n, pa.timestamp("us", tz="UTC")),
        lambda: pa.array([True] * n),
    ]
    return draw(st.sampled_from(choices))()


@st.composite
def parquets(draw: st.DrawFn, valid: pa.Table) -> bytes:
    """The table, with columns changed in type, renamed, dropped or doubled, and perhaps then its bytes damaged."""
    names, arrays = list(valid.column_names), [c.combine_chunks() for c in valid.columns]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(names) - 1))
        match draw(st.sampled_from(["type", "type", "type", "drop", "rename", "double", "empty"])):
            case "drop" if len(names) > 1:
                del names[at], arrays[at]
            case "rename":
                names[at] = draw(st.sampled_from([*valid.column_names, "", "x", "\0"]))
            case "double":
                names.append(names[at])
                arrays.append(arrays[at])
            case "empty":
                arrays = [array.slice(0, 0) for array in arrays]
            case _:
                arrays[at] = column(draw, len(arrays[at]))
    sink = pa.BufferOutputStream()
    compression = draw(st.sampled_from(["zstd", "none", "snappy"]))
    pq.write_table(pa.table(arrays, names=names), sink, compression=compression, use_dictionary=draw(st.booleans()))
    data = bytes(sink.getvalue().to_pybytes())
    return draw(damaged(lambda: data)) if draw(st.booleans()) else data
