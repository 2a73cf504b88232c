"""The published SID tables go through every layout: read, inspected, asked, changed a little, written back as their tools read them.

Models are tiny, tables and tokenizers whole. The old readers are small stand-ins written from what the tools' code does: LETTER,
LC-Rec and MiniOneRec give the joined tokens of an item to the directory's tokenizer, tiger-cf adds l * K to each number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts import causal_fixtures, foreign_fixtures
from tests.layouts.causal_checks import csv_reader, files_of
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from recerase.catalog import Histories
from recerase.layouts.describe import describe
from recerase.layouts.index_json import TOMBSTONE
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.model.decode import generate_free, recommend
from recerase.model.mass import concept_mass
from recerase.sid.table import SidTable
from recerase.store import publish

Index = dict[str, list[str]]


def letter(out: Path, index: Index, size: int) -> str:
    """A T5 with a tokenizer that has the table's tokens added, as LETTER-TIGER's finetune script leaves both."""
    out.mkdir()
    rows = causal_fixtures.make_tokenizer(out, index, llama=True)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=rows, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(out)
    (out / "Toys.index.json").write_text(json.dumps(index))
    return "Toys.index.json"


def lc_rec(out: Path, index: Index, size: int) -> str:
    out.mkdir()
    rows = causal_fixtures.make_tokenizer(out, index, llama=True)
    causal_fixtures.make_weights(out, rows, True, False, torch.float32)
    (out / "Toys.index.json").write_text(json.dumps(index, indent=1))
    return "Toys.index.json"


def minionerec(out: Path, index: Index, size: int) -> str:
    """With the item list and interactions that carry SIDs; item ids are row numbers, as in its own data."""
    world = causal_fixtures.World(numbers(index), [f"Item {row}" for row in range(len(index))], [[]], index)
    rng = np.random.default_rng(3)
    world.histories = [rng.choice(len(index), 8).tolist() for _ in range(30)]
    causal_fixtures.minionerec(out, world, dtype=torch.float32)
    return "Toys.index.json"


def tiger_cf(out: Path, index: Index, size: int) -> str:
    foreign_fixtures.tiger_cf(out, numbers(index), size=size)
    return "index_rqkmeans.json"


def numbers(index: Index) -> np.ndarray:
    return np.array([[int(token[3:-1]) for token in sid] for sid in index.values()])


def by_tokenizer(place: Path, name: str) -> dict[str, list[int]]:
    index = {key: sid for key, sid in json.loads((place / name).read_text()).items() if not key.startswith(TOMBSTONE)}
    own = AutoTokenizer.from_pretrained(place, local_files_only=True)
    return dict(
        zip(index, own(["".join(sid) for sid in index.values()], add_special_tokens=False).input_ids, strict=True)
    )


def by_offset(place: Path, name: str) -> dict[str, list[int]]:
    said = json.loads((place / name).read_text())
    return {key: [level * 256 + code for level, code in enumerate(sid)] for key, sid in said.items()}


@dataclass(frozen=True)
class Case:
    """A layout, the published table it is made from, and how its own tool reads an item's rows."""

    layout: str
    file: str
    make: Callable[[Path, Index, int], str]
    reads: Callable[[Path, str], dict[str, list[int]]]
    shared: int
    """Items of the table that share their SID with another."""


CASES = [
    Case("letter-tiger", "amazon_industrial/sids_letter_native.json", letter, by_tokenizer, 54),
    Case("lc-rec", "amazon_beauty_2014/sids_letter.json", lc_rec, by_tokenizer, 24),
    Case("minionerec", "amazon_industrial/sids_rkmeans_native.json", minionerec, by_tokenizer, 1326),
    Case("tiger-cf", "amazon_industrial/sids.json", tiger_cf, by_offset, 0),
]


@dataclass(frozen=True)
class World:
    """A directory of a case, and its table's own reading."""

    case: Case
    place: Path
    index: Index
    name: str
    source: Checkpoint


@pytest.fixture(scope="module", params=CASES, ids=[case.layout for case in CASES])
def world(request: pytest.FixtureRequest, data_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    case: Case = request.param
    file = data_directory / case.file
    if not file.is_file():
        pytest.skip(f"no {file}")
    index = json.loads(file.read_text())
    place = tmp_path_factory.mktemp("public") / case.layout
    name = case.make(place, index, 256)
    return World(case, place, index, name, open_checkpoint(place, trust_pickle=True))


def test_inspect_counts_what_the_table_has(world: World) -> None:
    found = describe(world.place, trust_pickle=True)
    assert found.checkpoint == world.case.layout
    assert not found.broken
    codes = numbers(world.index)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    assert found.facts["items"] == len(world.index)
    assert found.facts["items sharing their SID"] == int(counts[counts > 1].sum()) == world.case.shared
    assert found.facts["codes in use"] == [len(np.unique(column)) for column in codes.T]


def test_its_old_reader_reads_the_rows_that_we_read(world: World) -> None:
    table = world.source.table
    rows = dict(zip(table.item_ids, table.rows().tolist(), strict=True))
    assert rows == world.case.reads(world.place, world.name)
    assert table.schema.collisions == ("allowed" if world.case.shared else "unique")


def test_it_is_asked_with_and_without_constraints(world: World) -> None:
    """A few users: lists hold listed items, the mass of everything is at most one, and free sequences are seldom items."""
    source = world.source
    histories = Histories.from_lists([[3, 4, 5], [7], [10, 20, 30, 40]])
    lists = recommend(source.recommender, source.table, histories, k=10)
    assert (lists.items >= 0).all()
    assert all(len(set(row)) == 10 for row in lists.items.tolist())
    some = np.zeros(len(source.table), bool)
    some[lists.items[0]] = True
    mass = concept_mass(source.recommender, source.table, some, histories)
    best = np.exp(lists.scores[0].astype(np.float64))
    distinct = {tuple(source.table.codes[item]): score for item, score in zip(lists.items[0], best, strict=True)}
    assert mass.mass[0] == pytest.approx(sum(distinct.values()), rel=1e-3)
    found = generate_free(source.recommender, source.table, histories, beam=8)
    assert found.rows.shape == (3, 8, source.table.levels)


def changed(table: SidTable) -> tuple[SidTable, np.ndarray]:
    """A dozen items take SIDs of others, among them the last users of two codes; and the rows that were moved."""
    alone = [
        int(np.flatnonzero(table.codes[:, level] == code)[0])
        for level in range(table.levels)
        for code in np.flatnonzero(table.usage(level) == 1)
    ]
    items = np.unique([*alone[:2], *range(100, 110)]).astype(np.int64)
    new = table.replace(items, table.codes[items + 50])
    return new, np.flatnonzero(table.moved(new))


def test_a_small_change_comes_back_in_its_own_files(world: World, tmp_path: Path) -> None:
    source = world.source
    table, moved = changed(source.table)
    assert len(moved) >= 10
    out = tmp_path / "out"
    with publish(out) as result:
        named_layout(world.case.layout).write_back(source, source.recommender, table, result.directory)
    before, after = files_of(world.place), files_of(out)
    carrying = {name for name in before if name.endswith((".csv", ".txt"))} | {world.name}
    assert set(after) == set(before) | {"recerase.json"}
    differing = {name for name in before if after[name] != before[name]}
    assert world.name in differing <= carrying
    old, new = json.loads(before[world.name]), json.loads(after[world.name])
    items = [key for key in new if not key.startswith(TOMBSTONE)]
    assert items == list(old)
    assert {key for key in old if old[key] != new[key]} == {str(table.item_ids[row]) for row in moved}
    wanted = dict(zip(table.item_ids, table.rows().tolist(), strict=True))
    assert world.case.reads(out, world.name) == wanted
    if world.case.layout != "tiger-cf":
        assert {t for sid in new.values() for t in sid} == {t for sid in old.values() for t in sid}
    if world.case.layout == "minionerec":
        spelled = {key: "".join(new[key]) for key in items}
        for history, sids, item, target in csv_reader(out):
            assert [*sids, target] == [spelled[key] for key in (*history, item)]
        lines = next((out / "info").glob("*.txt")).read_text().splitlines()
        assert {line.split("\t")[2]: line.split("\t")[0] for line in lines} == spelled
    back = open_checkpoint(out, trust_pickle=True)
    assert np.array_equal(back.table.codes, table.codes)
    assert back.table.schema.vocabulary == source.table.schema.vocabulary
    state, again = source.recommender.module.state_dict(), back.recommender.module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
