from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.catalog.files import (
    Verified,
    parquet_names,
    parquet_table,
    read_data,
    read_file,
    read_verified,
    reading_verified,
)
from recerase.errors import ArtefactError
from recerase.store import MANIFEST, write_manifest


def written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def test_texts_come_plain_whatever_they_were_stored_as() -> None:
    rows = ["x", None, "y", "x"]
    lists = [["p", "q"], None, [None, "p"], []]
    table = pa.table(
        {
            "plain": rows,
            "large": pa.array(rows, pa.large_string()),
            "encoded": pa.array(rows).dictionary_encode(),
            "lists": lists,
            "encoded_lists": pa.array(lists, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
            "numbers": [1, 2, 3, 4],
        }
    )
    read = parquet_table(written(table))
    assert read.to_pydict() == table.to_pydict()
    assert {str(kind) for kind in read.schema.types} == {"string", "list<item: string>", "int64"}
    assert parquet_table(written(table), ["numbers", "absent"]).column_names == ["numbers"]
    assert parquet_names(written(table)) == table.column_names


def test_a_column_twice_or_text_that_is_none_is_a_reason() -> None:
    twice = written(pa.table([["a"], ["b"]], names=["x", "x"]))
    with pytest.raises(ValueError, match="two columns x"):
        parquet_table(twice, ["x"])
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    with pytest.raises(ValueError, match=r"(?i)utf-?8"):
        parquet_table(written(pa.table({"x": wrong})))
    for junk in (b"", b"PAR1", b"PAR1" * 9):
        with pytest.raises(ValueError, match=r".+"):
            parquet_names(junk)


def test_a_manifest_decides_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    assert read_data(tmp_path, ["a"]) == {"a": b"one"}
    with pytest.raises(ArtefactError, match=MANIFEST):
        read_verified(tmp_path, ["a"])
    write_manifest(tmp_path, {})
    (tmp_path / "b").write_bytes(b"beside")
    assert read_verified(tmp_path, ["a"]) == read_data(tmp_path, ["a"]) == {"a": b"one"}
    assert read_file(tmp_path / "b") == b"beside"
    with pytest.raises(ArtefactError, match="b"):
        read_data(tmp_path, ["a", "b"])
    (tmp_path / "a").write_bytes(b"two")
    for read in (
        lambda: read_verified(tmp_path, []),
        lambda: read_data(tmp_path, ["a"]),
        lambda: read_file(tmp_path / "a"),
    ):
        with pytest.raises(ArtefactError, match="a is not what"):
            read()
    (tmp_path / "a").unlink()
    with pytest.raises(ArtefactError, match="a"):
        read_file(tmp_path / "a")


@pytest.mark.parametrize("step", ["fill", "sha256"])
def test_a_disk_that_fails_while_it_is_read_is_an_artefact_error(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "a").write_bytes(b"one")
    manifest = write_manifest(tmp_path, {})
    monkeypatch.setattr(Verified, step, fail)
    with (
        pytest.raises(ArtefactError, match=r"Cannot read .*a: Input/output error"),
        reading_verified(tmp_path, "a", manifest) as file,
    ):
        file.read(3)
