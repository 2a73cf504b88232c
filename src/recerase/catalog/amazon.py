"""The Amazon review data of 2014, 2018 and 2023, which agree on little but the idea.

Lines are JSON, or (2014) Python literals, which are parsed and never evaluated. Ratings files have no header and put
user and item in either order, so the metadata's ids decide which column is which.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from recerase.catalog.columns import ITEM_SCHEMA
from recerase.errors import DataError

_PRICE = re.compile(r"\d[\d,]*(?:\.\d+)?")


def read(meta: Path, reviews: Path) -> tuple[pa.Table, pa.Table]:
    """Items (those with an interaction, in order of first appearance) and interactions.

    Raises DataError: a line that cannot be parsed, a file without the fields of any release.
    """
    try:
        described = {row["item_id"]: row for row in map(_item, _lines(meta)) if row["item_id"]}
        if not described:
            raise DataError(f"{meta.name} has no line with an asin or parent_asin.", "Give the metadata file first.")
        plain = reviews.name.removesuffix(".gz").endswith(".csv")
        interactions = _ratings(reviews, described) if plain else _reviews(reviews)
        ids = pc.unique(interactions["item_id"]).to_pylist()
        rows = [described.get(i, {"item_id": i, "title": "", "description": "", "categories": []}) for i in ids]
        return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA), interactions
    except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{meta.name} or {reviews.name} holds a value of the wrong kind ({error!s:.120}).", "Correct the line."
        ) from error


def _item(line: Mapping[str, Any]) -> dict[str, Any]:
    price = _PRICE.search(str(line.get("price") or ""))
    return {
        "item_id": line.get("parent_asin") or line.get("asin"),
        "title": _text(line.get("title")),
        "description": _text(line.get("description")),
        "categories": list(dict.fromkeys(_flat(line.get("category") or line.get("categories")))),
        "brand": _text(line.get("brand") or line.get("store")) or None,
        "price": float(price[0].replace(",", "")) if price else None,
    }


def _reviews(path: Path) -> pa.Table:
    user, item, time, rating = [], [], [], []
    for number, line in enumerate(_lines(path), 1):
        who, what = line.get("reviewerID") or line.get("user_id"), line.get("parent_asin") or line.get("asin")
        when = line.get("unixReviewTime", line.get("timestamp"))
        if who is None or what is None or when is None:
            raise DataError(
                f"Line {number} of {path.name} has no user, item or time; it has {', '.join(line)}.",
                "Give a reviews file of the 2014, 2018 or 2023 release.",
            )
        user.append(str(who))
        item.append(str(what))
        time.append(int(when))
        rating.append(float(line.get("overall", line.get("rating", "nan"))))
    return pa.table({"user_id": user, "item_id": item, "timestamp": pa.array(time, pa.int64()), "rating": rating})


def _ratings(path: Path, described: Mapping[str, Any]) -> pa.Table:
    names = {"parent_asin": "item_id", "asin": "item_id", "reviewerID": "user_id", "overall": "rating"}
    names |= {"unixReviewTime": "timestamp"}
    try:
        with _open(path) as file:
            header = file.readline().decode().strip().split(",")
        titled = {"item_id", "timestamp"} <= {names.get(n, n) for n in header}
        columns = header if titled else ["first", "second", "rating", "timestamp"]
        text = ("parent_asin", "asin", "item_id", "user_id", "reviewerID", "first", "second")
        with pa.input_stream(str(path), compression="detect") as stream:
            table = pa_csv.read_csv(
                stream,
                read_options=pa_csv.ReadOptions(column_names=columns, skip_rows=int(titled)),
                convert_options=pa_csv.ConvertOptions(column_types={name: pa.string() for name in text}),
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}.", "Check the file.") from error
    if not titled:
        known = pa.array(list(described), pa.string())
        hits = [pc.sum(pc.is_in(table[c], value_set=known)).as_py() or 0 for c in ("first", "second")]
        names |= {"first": "item_id", "second": "user_id"} if hits[0] > hits[1] else {"first": "user_id"}
        names.setdefault("second", "item_id")
    return table.rename_columns([names.get(name, name) for name in columns])


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield _parsed(raw.decode("utf-8", "replace"), path.name, number)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Check the path, or download it again.") from error


def _parsed(text: str, name: str, number: int) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(
                f"Line {number} of {name} is neither JSON nor a Python literal.", "Check the file."
            ) from error
    if not isinstance(value, Mapping):
        raise DataError(f"Line {number} of {name} is not an object.", "Give one object a line.")
    return value


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _text(value: Any) -> str:
    return html.unescape(" ".join(part for part in _flat(value) if part)).strip()


def _flat(value: Any) -> Iterable[str]:
    """The strings of a value that may be nothing, a string, a list, or a list of lists."""
    if isinstance(value, list | tuple):
        return [text for part in value for text in _flat(part)]
    return [html.unescape(str(value)).strip()] if value not in (None, "") else []
