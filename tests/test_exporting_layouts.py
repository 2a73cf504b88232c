"""Exports of the layouts that `test_exporting` has not: a list, a table, or one sentence; and what is read is never written over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.layouts import causal_fixtures, genrec_twin, onerec_fixtures
from tests.layouts.fixtures import MAKERS
from tests.test_exporting import LAYOUTS

from recerase import api
from recerase.catalog.readers import write_catalogue
from recerase.errors import OutputError, UsageError
from recerase.exporting import allowed_rows
from recerase.layouts.registry import layouts
from recerase.layouts.tables import is_table, source_table
from recerase.runtime import RunConfig

RUN = RunConfig(device="cpu", trust_pickle=True)
TABLES = ("rpg", "torcheasyrec")
VECTORS = ("genrec", "grid", "rqvae-recommender")
"""Their decoders begin with a vector, and not with a row."""


def onerec(make: Callable[..., None]) -> Callable[[Path], Path]:
    def made(out: Path) -> Path:
        make(out, onerec_fixtures.the_world(), out)
        return out

    return made


ALL: dict[str, Callable[[Path], Path]] = {
    **{name: make for name, make in MAKERS.items() if name not in LAYOUTS or name == "lc-rec"},
    "openonerec": onerec(onerec_fixtures.openonerec),
    "onerec-think": onerec(onerec_fixtures.onerec_think),
}


def catalogue(place: Path, ids: list[str]) -> Path:
    """A data directory of these items; the first three are of brand Acme."""
    count = len(ids)
    items = {
        "item_id": ids,
        "title": ids,
        "description": [f"words {n % 5} of kind {n % 3}" for n in range(count)],
        "categories": pa.array([[]] * count, pa.list_(pa.string())),
        "brand": ["Acme" if n < 3 else "Other" for n in range(count)],
        "price": pa.nulls(count, pa.float64()),
    }
    seen = {"user_id": ["u"] * 4, "item_id": ids[:4], "timestamp": [1, 2, 3, 4], "rating": pa.nulls(4, pa.float64())}
    write_catalogue(place, pa.table(items), pa.table(seen))
    return place


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Layout -> a path of it and data of its items; read only."""
    place = tmp_path_factory.mktemp("all")
    made = {}
    for name, make in ALL.items():
        path = make(place / name)
        ids = [str(item) for item in source_table(path, trust_pickle=True).item_ids]
        made[name] = (path, catalogue(place / f"{name}-data", ids))
    return made


def test_every_layout_is_here_or_in_the_tests_beside() -> None:
    assert {*ALL, *LAYOUTS} - {"causal", "seq2seq"} == {layout.name for layout in layouts()} - {"sid-gr"}


@pytest.mark.parametrize("name", ALL)
def test_a_blocklist(home: dict[str, tuple[Path, Path]], tmp_path: Path, name: str) -> None:
    path, data = home[name]
    made = api.export_blocklist(path, api.ConceptSpec(("brand=Acme",)), data, tmp_path / "b.json", run=RUN)
    said = json.loads((tmp_path / "b.json").read_text())
    table = source_table(path, trust_pickle=True)
    assert [row["item_id"] for row in said["blocked"]] == [str(item) for item in table.item_ids[:3]]
    assert [row["codes"] for row in said["blocked"]] == table.codes[:3].tolist()
    assert made.items == 3
    assert said["model"] == (name not in TABLES) == (not is_table(path))
    rows = None if name in TABLES else table.rows()[:3].tolist()
    assert [row["rows"] for row in said["blocked"]] == (rows or [None] * 3)
    shared = [
        [str(table.item_ids[i]) for i in np.flatnonzero((table.codes == sid).all(1)) if i > 2]
        for sid in table.codes[:3]
    ]
    assert [row["retained_items"] for row in said["blocked"]] == shared


@pytest.mark.parametrize("name", ALL)
def test_prefixes(home: dict[str, tuple[Path, Path]], tmp_path: Path, name: str) -> None:
    path, data = home[name]
    given = (path, data, tmp_path / "p.json")
    if name in TABLES:
        with pytest.raises(UsageError, match="a SID table without a model"):
            api.export_prefixes(*given, run=RUN)
        return
    api.export_prefixes(*given, run=RUN)
    said = json.loads((tmp_path / "p.json").read_text())
    assert (said["begin"] == []) == (name in VECTORS)
    ask = allowed_rows(said, len(said["begin"] or []))
    before = said["begin"] or []
    for sid in source_table(path, trust_pickle=True).rows().tolist():
        for depth, row in enumerate([*sid, *said["end"]]):
            assert row in ask(0, torch.tensor([*before, *[*sid, *said["end"]][:depth]], dtype=torch.int64))


def test_genrecs_trie_is_the_table_in_codes(home: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """`sem_id_embedding` of genrec's Tiger: row = level * codes + code."""
    path, data = home["genrec"]
    api.export_prefixes(path, data, tmp_path / "p.json", run=RUN)
    allowed: dict[str, list[int]] = json.loads((tmp_path / "p.json").read_text())["allowed"]
    sids = genrec_twin.sids()
    for sid in sids[:10]:
        for depth in range(genrec_twin.LEVELS):
            key = "-".join(str(level * genrec_twin.K + code) for level, code in enumerate(sid[:depth]))
            after = {int(other[depth]) for other in sids if (other[:depth] == sid[:depth]).all()}
            assert {row - depth * genrec_twin.K for row in allowed[key]} == after


def test_a_table_in_a_file_has_a_blocklist_too(home: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    path, data = home["lc-rec"]
    given = (api.ConceptSpec(("brand=Acme",)), data)
    rows = {}
    for place in (path, path / "Toys.index.json"):
        api.export_blocklist(place, *given, tmp_path / "b.json", run=RUN, force=True)
        rows[place] = [(r["item_id"], r["codes"]) for r in json.loads((tmp_path / "b.json").read_text())["blocked"]]
    assert rows[path] == rows[path / "Toys.index.json"]


def test_likeness_is_in_the_vectors_that_are_given(home: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """An audit with --embeddings finds other items alike than the words do, and so must what hides them."""
    path, data = home["lc-rec"]
    count = len(source_table(path).item_ids)
    vectors = np.eye(count, 8, dtype=np.float32) + 0.01 * np.random.default_rng(0).normal(size=(count, 8)).astype(
        np.float32
    )
    vectors[[0, 30, 31]] = [1, 1, 1, 1, 0, 0, 0, 0]
    np.save(tmp_path / "v.npy", vectors)
    found = {}
    for file in (None, tmp_path / "v.npy"):
        run = RunConfig(device="cpu", embeddings=file)
        api.export_blocklist(
            path, api.ConceptSpec(('like:"0":0.01',), None, True), data, tmp_path / "b.json", run=run, force=True
        )
        found[file] = [row["item_id"] for row in json.loads((tmp_path / "b.json").read_text())["blocked"]]
    assert found[None] != found[tmp_path / "v.npy"]


def test_what_an_option_names_is_not_written_over(tmp_path: Path) -> None:
    world: Any = onerec_fixtures.the_world()
    onerec_fixtures.openonerec(tmp_path / "model", world, tmp_path / "beside")
    causal_fixtures.write_data(tmp_path / "data", world)
    table = tmp_path / "beside" / "pid2sid.parquet"
    run = RunConfig(device="cpu", layout_options=(("sids", str(table)),))
    before = table.read_bytes()
    with pytest.raises(OutputError, match="the input"):
        api.export_prefixes(tmp_path / "model", tmp_path / "data", table, force=True, run=run)
    assert table.read_bytes() == before
