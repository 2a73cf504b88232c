"""Other people's files as a data directory: one function a source, each giving the two tables of ours.

A reader changes names and layout, never content: it drops only rows that repeat an interaction exactly, and everything
it makes passes the same checks as a data directory that someone wrote by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from recerase.catalog import amazon
from recerase.catalog.columns import INTERACTION_SCHEMA, ITEM_SCHEMA, conform
from recerase.catalog.interactions import INTERACTIONS_FILE, interactions_from_table
from recerase.catalog.items import ITEMS_FILE, items_from_table
from recerase.errors import DataError, UsageError
from recerase.store import parquet_bytes, write_bytes

Tables = tuple[pa.Table, pa.Table]
StrPath = str | os.PathLike[str]

_TEXT = ("item_id", "user_id", "title", "description", "categories", "brand")
_SEPARATOR = "|"
_ML100K_GENRES = [
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]


def import_csv(items: StrPath, interactions: StrPath) -> Tables:
    """CSV (or .tsv) files with a header that names the columns of the data directory; .gz is read as well.

    Categories are separated by `|`. Columns other than item_id, title and user_id may be missing; without a
    timestamp the order of the file counts.
    """
    return _completed(_csv(Path(items)), _csv(Path(interactions)))


def import_jsonl(items: StrPath, interactions: StrPath) -> Tables:
    """Files with one JSON object a line, keys as the columns of the data directory; .gz is read as well."""
    return _completed(_jsonl(Path(items)), _jsonl(Path(interactions)))


def import_recbole(items: StrPath, interactions: StrPath) -> Tables:
    """RecBole atomic files (X.item, X.inter): tab-separated, the header says `name:type`.

    `title`, `movie_title` or `name` is the title; `categories`, `category`, `genre` or `class` (separated by commas or
    spaces, as the file has it) the categories.
    """
    names = {"movie_title": "title", "name": "title", "category": "categories", "genre": "categories"}
    names |= {"class": "categories", "text": "description"}
    table = _renamed(_csv(Path(items), "\t", typed_header=True), names)
    if "categories" in table.column_names:
        cells = table["categories"].cast(pa.string()).to_pylist()
        separator = "," if any("," in (cell or "") for cell in cells) else None
        lists = [[part.strip(" '\"") for part in (cell or "").split(separator)] for cell in cells]
        place = table.column_names.index("categories")
        table = table.set_column(place, "categories", pa.array(lists, pa.list_(pa.string())))
    return _completed(table, _csv(Path(interactions), "\t", typed_header=True))


def import_movielens(*paths: StrPath) -> Tables:
    """A MovieLens directory, or its movies and ratings files: 100K (u.item, u.data), 1M (.dat), the .csv releases."""
    movies, ratings = _movielens_files([Path(p) for p in paths])
    if movies.suffix == ".csv":
        items = _renamed(_csv(movies), {"movieId": "item_id", "genres": "categories"})
        return _completed(items, _renamed(_csv(ratings), {"movieId": "item_id", "userId": "user_id"}))
    interactions = ["user_id", "item_id", "rating", "timestamp"]
    if movies.suffix == ".dat":
        return _completed(_plain(movies, "::", ["item_id", "title", "categories"]), _plain(ratings, "::", interactions))
    table = _plain(movies, "|", ["item_id", "title", "date", "video", "url", *_ML100K_GENRES])
    flags = np.stack([table[genre].to_numpy(zero_copy_only=False) == "1" for genre in _ML100K_GENRES], axis=1)
    genres = np.array(_ML100K_GENRES)
    categories = pa.array([genres[row].tolist() for row in flags], pa.list_(pa.string()))
    items = table.select(["item_id", "title"]).append_column("categories", categories)
    return _completed(items, _plain(ratings, "\t", interactions))


def import_amazon(meta: StrPath, reviews: StrPath) -> Tables:
    """Amazon review data of 2014, 2018 or 2023: metadata and reviews as JSON lines, or ratings as CSV; .gz too.

    Items that nobody reviewed are left out; items without metadata stay, without text.
    """
    return _completed(*amazon.read(Path(meta), Path(reviews)))


READERS: dict[str, Callable[..., Tables]] = {
    "amazon": import_amazon,
    "csv": import_csv,
    "jsonl": import_jsonl,
    "movielens": import_movielens,
    "recbole": import_recbole,
}
"""Name -> reader(*paths) -> (items table, interactions table)."""


def write_catalogue(directory: StrPath, items: pa.Table, interactions: pa.Table) -> None:
    """Check both tables as `load_catalogue` would, then write them, interactions by user and time, into `directory`.

    Raises DataError when they break the schema (nothing is written then) and WriteError.
    """
    items = conform(items, ITEM_SCHEMA, ITEMS_FILE)
    interactions = _ordered(conform(interactions, INTERACTION_SCHEMA, INTERACTIONS_FILE))
    interactions_from_table(interactions, items_from_table(items))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(directory / ITEMS_FILE, parquet_bytes(items))
    write_bytes(directory / INTERACTIONS_FILE, parquet_bytes(interactions))


def _completed(items: pa.Table, interactions: pa.Table) -> Tables:
    """Both tables in the data directory's schema: missing text is empty, exact repeats of an interaction go."""
    n = items.num_rows
    if "categories" in items.column_names:
        items = _split_categories(items)
    for name in ("description", "categories"):
        if name not in items.column_names:
            items = items.append_column(name, pa.nulls(n, ITEM_SCHEMA.field(name).type))
    if "timestamp" not in interactions.column_names:
        interactions = interactions.append_column("timestamp", pa.array(np.arange(interactions.num_rows)))
    items = conform(items, ITEM_SCHEMA, "The items file")
    interactions = conform(interactions, INTERACTION_SCHEMA, "The interactions file")
    keys = ["user_id", "item_id", "timestamp"]
    numbered = interactions.append_column("row", pa.array(np.arange(interactions.num_rows)))
    first = numbered.group_by(keys).aggregate([("row", "min")])["row_min"]
    return items, _ordered(interactions.take(np.sort(first.to_numpy())))


def _ordered(interactions: pa.Table) -> pa.Table:
    """By user in the order of first appearance, then by time; equal times keep the file's order."""
    user = pc.dictionary_encode(interactions["user_id"]).combine_chunks().indices.to_numpy(zero_copy_only=False)
    return interactions.take(np.lexsort((interactions["timestamp"].to_numpy(), user)))


def _split_categories(items: pa.Table) -> pa.Table:
    column = items["categories"]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return items
    cells = column.to_pylist()
    lists = [[part.strip() for part in (cell or "").split(_SEPARATOR) if part.strip()] for cell in cells]
    lists = [[] if row == ["(no genres listed)"] else row for row in lists]
    place = items.column_names.index("categories")
    return items.set_column(place, "categories", pa.array(lists, pa.list_(pa.string())))


def _renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    """Columns renamed by `names`, unless the new name is there already."""
    taken = set(table.column_names)
    out = []
    for column in table.column_names:
        new = names.get(column, column)
        out.append(column if new != column and new in taken else new)
        taken.add(out[-1])
    return table.rename_columns(out)


def _csv(path: Path, delimiter: str | None = None, *, typed_header: bool = False) -> pa.Table:
    separator = delimiter or ("\t" if ".tsv" in path.suffixes else ",")
    suffixes = ("", ":token", ":token_seq", ":float", ":float_seq") if typed_header else ("",)
    types = {f"{name}{s}": pa.string() for name in (*_TEXT, "userId", "movieId") for s in suffixes}
    types |= {f"timestamp{s}": pa.float64() for s in suffixes if s} if typed_header else {}
    parse = pa_csv.ParseOptions(delimiter=separator, newlines_in_values=not typed_header)
    if typed_header:
        parse.quote_char = False
    convert = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    table = _arrow(path, lambda stream: pa_csv.read_csv(stream, parse_options=parse, convert_options=convert))
    return table.rename_columns([name.split(":")[0] for name in table.column_names]) if typed_header else table


def _jsonl(path: Path) -> pa.Table:
    options = pa_json.ReadOptions(block_size=1 << 24)
    return _arrow(path, lambda stream: pa_json.read_json(stream, read_options=options))


def _plain(path: Path, delimiter: str, columns: list[str]) -> pa.Table:
    """A headerless Latin-1 file (MovieLens); a delimiter of two characters is replaced by a control character."""
    text = _bytes(path).decode("latin-1").replace(delimiter, "\x1f").encode()
    types = {name: pa.string() for name in columns} | {"timestamp": pa.int64(), "rating": pa.float64()}
    return _arrow(
        path,
        lambda stream: pa_csv.read_csv(
            stream,
            read_options=pa_csv.ReadOptions(column_names=columns),
            parse_options=pa_csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=pa_csv.ConvertOptions(column_types=types),
        ),
        pa.BufferReader(text),
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def _arrow(path: Path, read: Callable[[pa.NativeFile], pa.Table], stream: pa.NativeFile | None = None) -> pa.Table:
    try:
        with stream or pa.input_stream(str(path), compression="detect") as source:
            return read(source)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read: {reason}.", "Check the path and the format.") from error


def _movielens_files(paths: list[Path]) -> tuple[Path, Path]:
    if len(paths) == 2:
        return paths[0], paths[1]
    if len(paths) == 1 and paths[0].is_dir():
        for movies, ratings in (("u.item", "u.data"), ("movies.dat", "ratings.dat"), ("movies.csv", "ratings.csv")):
            if (paths[0] / movies).is_file() and (paths[0] / ratings).is_file():
                return paths[0] / movies, paths[0] / ratings
        raise DataError(
            f"{paths[0]} is not a MovieLens directory.", "Give one with u.item and u.data, or movies and ratings."
        )
    raise UsageError("The movielens reader takes a directory or two files.", "Give the movies, then the ratings.")
