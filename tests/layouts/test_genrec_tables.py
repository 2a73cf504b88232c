"""genrec keeps no table of its own, so any that recerase reads will do, and comes back as it was given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.layouts import genrec_twin as twin
from tests.layouts.test_genrec import opened, written

from recerase.errors import TableError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twin.genrec(tmp_path_factory.mktemp("genrec") / "ckpt", table=False)


def parquet(path: Path, *, listed: bool = True) -> Path:
    sids, order = twin.sids(), np.random.default_rng(0).permutation(len(twin.sids()))
    ids = pa.array([str(item) for item in order])
    columns = {"item_id": ids, "codes": [sids[item].tolist() for item in order], "listed": [listed] * len(order)}
    pq.write_table(pa.table({**columns, "note": ids}), path)
    return path


def test_parquet_and_tokens_are_read_and_written_back(place: Path, tmp_path: Path) -> None:
    tokens = {
        str(item): [f"<{letter}_{code}>" for letter, code in zip("abc", sid, strict=True)]
        for item, sid in enumerate(twin.sids().tolist())
    }
    (tmp_path / "tokens.json").write_text(json.dumps(tokens))
    for number, file in enumerate((parquet(tmp_path / "table.parquet"), tmp_path / "tokens.json")):
        source = opened(place, sids=str(file))
        same = written(source, tmp_path / f"same{number}")
        assert (same / file.name).read_bytes() == file.read_bytes()
        rows = np.flatnonzero(source.table.item_ids == "7")
        moved = source.table.replace(rows, np.array([[31, 30, 29]]))
        out = written(source, tmp_path / f"out{number}", moved)
        back = opened(out)  # the table beside the weights is found
        assert back.table.item_ids.tolist() == source.table.item_ids.tolist()
        assert back.table.codes.tolist() == moved.codes.tolist()
    kept = pq.read_table(tmp_path / "out0" / "table.parquet")
    assert kept.column_names == ["item_id", "codes", "listed", "note"]
    assert kept["note"].to_pylist() == kept["item_id"].to_pylist()


def test_other_tables_are_refused_with_the_way_to_make_one(place: Path, tmp_path: Path) -> None:
    torch.save(torch.from_numpy(twin.sids()).t(), tmp_path / "table.pt")
    (tmp_path / "x.sem_ids").write_text(json.dumps({"0": [1] * 32}))
    for name in ("table.pt", "x.sem_ids"):
        with pytest.raises(TableError, match="no SID table of genrec's") as refused:
            opened(place, sids=str(tmp_path / name))
        assert "recerase export sids" in refused.value.remedy
    with pytest.raises(TableError, match="not to be recommended"):
        opened(place, sids=str(parquet(tmp_path / "hidden.parquet", listed=False)))
