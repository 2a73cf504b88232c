"""TorchEasyRec: a SID table alone, one generation of the bundle that `tzrec.tools.sid.resolve_sid_collisions` publishes.

    ROOT/GENERATION/item_to_sid/part-0.parquet     item_id, origin_codebook, codebook, offset_codebook, index (slot, from 1)
    ROOT/GENERATION/sid_to_items/part-0.parquet    codebook, offset_codebook, itemids; ascending, one row a SID
    ROOT/GENERATION/manifest.json                  bundle_uuid, codebook (codes a level), capacity, artifacts; written last

(tzrec/utils/sid/bundle.py and tools/sid/resolve_sid_collisions.py of alibaba/TorchEasyRec.) Code c of level l is row
sum(codebook[:l]) + c (`sid_offset_codes`). What `tzrec.predict` writes before, parquet of item_id and codes, is read as a file.

The one decision: a generation is read whole or refused. Both directions of the map, the rows that the manifest counts and the
offsets are held against each other, and a directory without a manifest is a run that did not finish. Items that share a SID are
meant here, up to `capacity`; more are refused when a table is written, which is always a new generation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recerase.catalog.files import parquet_names, parquet_table
from recerase.errors import TableError, UsageError
from recerase.layouts.protocol import table_layout
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.table_files import arrow_to_table
from recerase.store import parquet_bytes, read_bytes, sha256_bytes
from recerase.types import IntArray

NAME = "torcheasyrec"
_MANIFEST, _FORWARD, _BACKWARD = "manifest.json", "item_to_sid", "sid_to_items"
_KEYS = {"bundle_uuid", "codebook", "capacity", "max_observed_items_per_sid", "artifacts"}
_LARGEST_MANIFEST, _MOST_ROWS = 1 << 20, 1 << 31
_RESTORE = "Restore the generation, or make it again with tzrec.tools.sid.resolve_sid_collisions."


def _said(path: Path) -> dict[str, Any] | None:
    """The manifest of a generation; None where there is none of this tool. Never raises."""
    file = path / _MANIFEST
    try:
        found = json.loads(file.read_bytes()) if file.stat().st_size <= _LARGEST_MANIFEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _KEYS else None


def _generations(path: Path) -> list[Path]:
    """The finished generations that a directory is, or holds."""
    try:
        within = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    except OSError:
        return []
    return [path] if _said(path) is not None else [entry for entry in within if _said(entry) is not None]


def _detect(path: Path) -> str | None:
    found = _generations(path)
    if found:
        return f"{_MANIFEST} with codebook and capacity, of {len(found)} generation{'s' * (len(found) > 1)}"
    half = (path / _FORWARD).is_dir() and any((path / _FORWARD).glob("part-*"))
    return f"{_FORWARD}/, of a generation" if half else None


def read(path: Path) -> tuple[SidTable, Mapping[str, Any]]:
    """The table of a generation, or of the only one below a bundle's root; see `Layout.table`."""
    found = _generations(path)
    if not found:
        raise TableError(
            f"{path} has no {_MANIFEST} that says codebook and capacity: it is written last, so that run did not finish.",
            _RESTORE,
        )
    if len(found) > 1:
        raise TableError(
            f"{path} holds {len(found)} generations ({', '.join(entry.name for entry in found[:4])}).",
            "Give the directory of the one that is meant.",
        )
    place = found[0]
    said = _said(place)
    sizes, capacity, most = _numbers(place, said or {})
    forward = _artifact(place, said or {}, _FORWARD, ("item_id", "codebook"))
    backward = _artifact(place, said or {}, _BACKWARD, ("codebook", "itemids"))
    columns = {"item_id": forward["item_id"], "codes": forward["codebook"]}
    codes_name = f"{_FORWARD} of {place}"
    table = arrow_to_table(pa.table(columns), name=codes_name)
    if table.ragged or not table.present.all() or table.levels != len(sizes) or (table.codes >= sizes).any():
        raise TableError(f"{codes_name} does not hold {len(sizes)} codes below {sizes} for every item.", _RESTORE)
    moved = np.zeros(len(table), bool)
    if "origin_codebook" in forward.column_names:
        moved = (_matrix(forward["origin_codebook"], table, codes_name) != table.codes).any(1)
    if "offset_codebook" in forward.column_names:
        offsets = _matrix(forward["offset_codebook"], table, codes_name)
        if (offsets != table.codes + _starts(sizes)).any():
            raise TableError(f"{codes_name} has an offset_codebook that is not its codebook's.", _RESTORE)
    groups = np.bincount(table.groups())
    if groups.max() > most:
        raise TableError(f"{codes_name} has {groups.max()} items on one SID, its {_MANIFEST} says {most}.", _RESTORE)
    _agree(table, backward, codes_name)
    schema = _schema(sizes, bool(groups.max() > 1))
    facts = {"generation": place.name, "capacity of a SID": capacity, "most items on a SID": int(groups.max())}
    return SidTable.build(table.item_ids, table.codes, schema, resolved=moved), facts


def _numbers(place: Path, said: Mapping[str, Any]) -> tuple[list[int], int, int]:
    """Codes a level, capacity and most items a SID of a manifest. Raises TableError."""
    sizes, capacity, most = (said.get(key) for key in ("codebook", "capacity", "max_observed_items_per_sid"))
    numbers = [*(sizes if isinstance(sizes, list) else [None]), capacity, most]
    if not numbers[:-2] or not all(type(number) is int and 0 < number < _MOST_ROWS for number in numbers):
        raise TableError(f"{place / _MANIFEST} does not say codebook and capacity in whole numbers.", _RESTORE)
    if sum(numbers[:-2]) > 1 << 24:
        raise TableError(f"{place / _MANIFEST} speaks of {sum(numbers[:-2]):,} codes.", _RESTORE)
    return numbers[:-2], numbers[-2], numbers[-1]


def _artifact(place: Path, said: Mapping[str, Any], name: str, columns: tuple[str, ...]) -> pa.Table:
    """The parts of an artifact as one table. Raises TableError when they are not there, or not what the manifest says."""
    entries = said.get("artifacts")
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict) or entry.get("save_type") != "parquet":
        raise TableError(
            f"{place / _MANIFEST} names no {name} in parquet.",
            "Publish it with --item_to_sid_writer_type ParquetWriter; tables in ODPS or CSV are not read.",
        )
    files = sorted((place / name).glob("part-*.parquet"))
    if not files:
        where = entry.get("location")
        raise TableError(f"{place} has no {name}/part-*.parquet; its {_MANIFEST} says {where!s:.120}.", _RESTORE)
    wanted = (*columns, "origin_codebook", "offset_codebook")
    parts = []
    for file in files:
        data = read_bytes(file)
        try:
            lacking = set(columns) - set(parquet_names(data))
            if lacking:
                raise ValueError(f"it has no column {min(lacking)}")
            parts.append(parquet_table(data, wanted))
        except ValueError as error:
            raise TableError(f"{file} cannot be read: {error}.", _RESTORE) from error
    try:
        whole = pa.concat_tables(parts)
    except pa.ArrowException as error:
        raise TableError(f"The parts of {place / name} have other columns each.", _RESTORE) from error
    if whole.num_rows != entry.get("rows") or not whole.num_rows:
        raise TableError(
            f"{place / name} has {whole.num_rows} rows, its {_MANIFEST} says {entry.get('rows')!s:.40}.", _RESTORE
        )
    return whole


def _matrix(column: pa.ChunkedArray, table: SidTable, name: str) -> IntArray:
    """int64 [N, L] of a column of lists that has to be as wide as the codes of `table`. Raises TableError."""
    try:
        lists = column.cast(pa.list_(pa.int64())).combine_chunks()
        values = lists.flatten()
        if (
            values.null_count
            or len(values) != table.codes.size
            or lists.value_lengths().unique().to_pylist() != [table.levels]
        ):
            raise ValueError("a list has another length")
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise TableError(f"{name} has codes that are no lists of {table.levels} numbers.", _RESTORE) from error
    out: IntArray = values.to_numpy(zero_copy_only=False).reshape(table.codes.shape)
    return out


def _agree(table: SidTable, backward: pa.Table, name: str) -> None:
    """Raises TableError unless sid_to_items says of every item what item_to_sid says."""
    try:
        lists = backward["itemids"].combine_chunks()
        ids = lists.flatten().cast(pa.string()).to_numpy(zero_copy_only=False)
        counts = np.asarray(lists.value_lengths().fill_null(0))
        codes = np.asarray(backward["codebook"].combine_chunks().flatten().cast(pa.int64()))
        codes = np.repeat(codes.reshape(len(counts), -1), counts, axis=0)
        order, other = np.argsort(table.item_ids.astype(str)), np.argsort(ids.astype(str))
        same = np.array_equal(table.item_ids[order].astype(str), ids[other].astype(str))
        same = same and np.array_equal(table.codes[order], codes[other])
    except (pa.ArrowException, ValueError, AttributeError, KeyError):
        same = False
    if not same:
        raise TableError(f"{name} and {_BACKWARD} beside it do not say the same.", _RESTORE)


def _starts(sizes: Any) -> IntArray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def _schema(sizes: list[int], shared: bool) -> SidSchema:
    rows = tuple(start + np.arange(size, dtype=np.int64) for start, size in zip(_starts(sizes), sizes, strict=True))
    return SidSchema(tuple(sizes), rows, sum(sizes), -1, -1, -1, "allowed" if shared else "unique")


def write(table: SidTable, out: Path, options: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a new generation at `out`, its manifest last; see `TableFormat.write`."""
    groups = table.groups()
    counts = np.bincount(groups)
    capacity = _option(options, "capacity", int(counts.max()))
    if counts.max() > capacity:
        raise UsageError(
            f"{int((counts > capacity).sum())} SIDs have more than {capacity} items, up to {counts.max()}.",
            f"Give --set capacity={counts.max()}, or tokenize with fewer collisions.",
        )
    order = np.argsort(groups, kind="stable")  # groups are numbered in the order of their codes
    first = np.concatenate([[0], np.cumsum(counts)])
    slots = np.empty(len(table), np.int64)
    slots[order] = np.arange(len(table)) - np.repeat(first[:-1], counts) + 1
    ids = _ids(table, options)
    sizes = list(table.schema.codes)
    forward = {"item_id": ids, "origin_codebook": _lists(table.codes), "codebook": _lists(table.codes)}
    forward |= {"offset_codebook": _lists(table.codes + _starts(sizes)), "index": pa.array(slots)}
    sids = table.codes[order[first[:-1]]]
    backward = {"codebook": _lists(sids), "offset_codebook": _lists(sids + _starts(sizes))}
    backward["itemids"] = pa.ListArray.from_arrays(pa.array(first.astype(np.int32)), ids.take(pa.array(order)))
    files = {
        f"{_FORWARD}/part-0.parquet": parquet_bytes(pa.table(forward)),
        f"{_BACKWARD}/part-0.parquet": parquet_bytes(pa.table(backward)),
    }
    rows = {_FORWARD: len(table), _BACKWARD: len(counts)}
    manifest = {
        "bundle_uuid": sha256_bytes("".join(map(sha256_bytes, files.values())).encode())[:32],
        "codebook": sizes,
        "capacity": capacity,
        "max_observed_items_per_sid": int(counts.max()),
        "artifacts": {
            name: {"save_type": "parquet", "rows": count, "location": str(out / name)} for name, count in rows.items()
        },
        "item_id_type": str(ids.type),
    }
    return {**files, _MANIFEST: json.dumps(manifest, indent=2).encode()}


def _option(options: Mapping[str, str], name: str, otherwise: int) -> int:
    said = options.get(name, str(otherwise))
    if not said.isdecimal() or not 0 < int(said) < _MOST_ROWS:
        raise UsageError(f"{name}={said!s:.40} is no whole number above 0.", f"For example: --set {name}=5.")
    return int(said)


def _ids(table: SidTable, options: Mapping[str, str]) -> pa.Array:
    """The item ids in the type that the bundle is to have."""
    kind = options.get("item_id", "string")
    if kind not in ("string", "int64"):
        raise UsageError(
            f"item_id={kind!s:.40} is neither string nor int64.", "Give the type of the ids in the bundle."
        )
    texts = [str(item) for item in table.item_ids]
    if kind == "string":
        return pa.array(texts, pa.string())
    try:
        numbers = [int(text) for text in texts]
        if [str(number) for number in numbers] != texts:
            raise ValueError
        return pa.array(numbers, pa.int64())
    except (ValueError, pa.ArrowException, OverflowError) as error:
        raise UsageError(
            "Some item id is no whole number as it is written.", "Leave --set item_id=int64 out."
        ) from error


def _lists(codes: Any) -> pa.ListArray:
    """A column of lists of int64, as `ResolveSidCollisions` writes them."""
    count, levels = codes.shape
    offsets = np.arange(0, (count + 1) * levels, levels, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(codes, np.int64).reshape(-1)))


LAYOUTS = (
    table_layout(
        NAME,
        "TorchEasyRec: a SID table alone, one generation of a SID bundle, several items a SID",
        (f"{_MANIFEST} with codebook and capacity", f"{_FORWARD}/part-*.parquet"),
        _detect,
        read,
    ),
)
