"""Blocklists and prefix tables against brute force, and against transformers' generate and the other tools' own look-ups."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.layouts import causal_fixtures, foreign_fixtures
from transformers import LogitsProcessor, LogitsProcessorList

from recerase import api
from recerase.assembly import open_checkpoint_for
from recerase.catalog import Histories, load_catalogue
from recerase.errors import ConceptError, OutputError, UsageError
from recerase.exporting import allowed_rows, blocklist_table
from recerase.layouts.native import Checkpoint, save_checkpoint
from recerase.model.decode import recommend
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.prefixes import Ends, prefix_json, prefix_table
from recerase.runtime import RunConfig
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie
from recerase.store import publish
from recerase.types import SILENT

RUN = RunConfig(device="cpu", trust_pickle=True)
BRAND = {"minionerec": "Acme", "lc-rec": "Acme"}
LAYOUTS = ("causal", "seq2seq", "letter-tiger", "tiger-cf", "minionerec", "lc-rec")
W = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory a layout, each with data of its own in data/NAME; read only."""
    place = tmp_path_factory.mktemp("export")
    foreign_fixtures.data(place / "data" / "letter-tiger")
    for name in ("tiger-cf", "causal", "seq2seq"):
        (place / "data" / name).symlink_to(place / "data" / "letter-tiger")
    foreign_fixtures.letter(place / "letter-tiger")
    foreign_fixtures.tiger_cf(place / "tiger-cf")
    world = causal_fixtures.make_world()
    for name, make in (("minionerec", causal_fixtures.minionerec), ("lc-rec", causal_fixtures.lc_rec)):
        make(place / name, world, dtype=torch.float32)
        causal_fixtures.write_data(place / "data" / name, world)
    ids = [str(item) for item in range(foreign_fixtures.N)]
    table = SidTable.build(ids, foreign_fixtures.codes(), SidSchema.native((20, 20, 20, 20), "allowed"))
    for kind in ("causal", "seq2seq"):
        shape = ModelConfig(kind=kind, width=16, layers=1, heads=2, feed_forward=16, window=4)
        with publish(place / kind) as made:
            save_checkpoint(made.directory, new_recommender(shape, table.schema, 0), table, None, None)
    return place


def concept(name: str) -> api.ConceptSpec:
    return api.ConceptSpec((f"brand={BRAND.get(name, 'brand4')}",))


def opened(home: Path, name: str) -> tuple[Checkpoint, np.ndarray]:
    """The checkpoint, and the members of the concept."""
    catalogue = load_catalogue(home / "data" / name)
    found = open_checkpoint_for(home / name, catalogue, RUN)
    return found, np.array([brand == BRAND.get(name, "brand4") for brand in catalogue.items.brands])


def sharing(table: SidTable, members: np.ndarray) -> dict[str, list[str]]:
    """The slow twin: for each member the retained items that have its SID."""
    sids = [tuple(sid) for sid in table.codes.tolist()]
    return {
        str(table.item_ids[i]): [
            str(table.item_ids[j])
            for j in range(len(table))
            if not members[j] and sids[j] == sids[i] and sids[j][0] >= 0
        ]
        for i in np.flatnonzero(members)
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_blocklist_names_every_item_its_sid_and_who_shares_it(home: Path, tmp_path: Path, name: str) -> None:
    found, members = opened(home, name)
    made = api.export_blocklist(home / name, concept(name), home / "data" / name, tmp_path / "b.json", run=RUN)
    said = json.loads((tmp_path / "b.json").read_text())
    table, wanted = found.table, sharing(found.table, members)
    assert [row["item_id"] for row in said["blocked"]] == [str(i) for i in table.item_ids[members]]
    assert {row["item_id"]: row["retained_items"] for row in said["blocked"]} == wanted
    assert [row["codes"] for row in said["blocked"]] == table.codes[members].tolist()
    assert [row["rows"] for row in said["blocked"]] == table.rows()[members].tolist()
    assert all(row["alone"] == (not row["retained_items"]) for row in said["blocked"])
    if "tokens" in found.extra:
        spelled = {row: token for token, row in found.extra["tokens"].items()}
        assert all(row["tokens"] == [spelled[r] for r in row["rows"]] for row in said["blocked"])
        assert said["blocked"][0]["tokens"][0].startswith("<a_")
    else:
        assert all(row["tokens"] is None for row in said["blocked"])
    assert (made.items, made.without) == (int(members.sum()), 0)
    assert made.shared == said["counts"]["shared"] == len({tuple(r["rows"]) for r in said["blocked"] if not r["alone"]})
    assert (said["checkpoint"], said["schema"]) == (found.digest, "recerase.blocklist/1")
    assert "not erasing" in said["note"]


def test_every_format_holds_the_same_rows(home: Path, tmp_path: Path) -> None:
    given = (home / "letter-tiger", concept("letter-tiger"), home / "data" / "letter-tiger")
    for kind in ("json", "jsonl", "csv", "parquet"):
        for number in (1, 2):
            api.export_blocklist(*given, tmp_path / f"{number}.{kind}", run=RUN)
        assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"2.{kind}").read_bytes()
    rows = json.loads((tmp_path / "1.json").read_text())["blocked"]
    assert any(not row["alone"] for row in rows)  # items 58 and 59 share a SID
    assert [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()] == rows
    table = pq.read_table(tmp_path / "1.parquet")
    assert table.to_pylist() == rows
    assert json.loads(table.schema.metadata[b"recerase"])["concept"]["items"] == len(rows)
    with open(tmp_path / "1.csv", newline="") as file:
        for record, row in zip(csv.DictReader(file), rows, strict=True):
            assert record.pop("item_id") == row["item_id"]
            assert all(json.loads(value) == row[name] for name, value in record.items())


def test_items_without_a_sid_and_sids_of_two_lengths(home: Path) -> None:
    schema = SidSchema.native((4, 4, 4), "allowed")
    codes = np.array([[0, 1, 2], [0, 1, -1], [-1, -1, -1], [0, 1, -1], [-1, -1, -1], [3, 3, 3]])
    table = SidTable.build(list("abcdef"), codes, schema)
    rows = blocklist_table(table, np.array([1, 1, 1, 0, 0, 0], bool)).to_pylist()
    assert [row["codes"] for row in rows] == [[0, 1, 2], [0, 1], None]
    assert [row["retained_items"] for row in rows] == [[], ["d"], []]
    assert [row["alone"] for row in rows] == [True, False, True]
    assert rows[1]["rows"] == [3, 8]


def spelled_out(table: SidTable, keep: np.ndarray, last: int) -> dict[str, set[int]]:
    """The slow twin of a table of prefixes, item by item: codes, then eos, then `last`."""
    out: dict[str, set[int]] = {}
    ends = [row for row in dict.fromkeys((table.schema.eos, last)) if row >= 0]
    for item in np.flatnonzero(keep & table.present):
        sid = [int(table.schema.rows[level][c]) for level, c in enumerate(table.codes[item]) if c >= 0] + ends
        for depth, row in enumerate(sid):
            out.setdefault("-".join(map(str, sid[:depth])), set()).add(row)
    return out


def as_sets(rows: pa.Table) -> dict[str, set[int]]:
    out: dict[str, set[int]] = {}
    for row in rows.to_pylist():
        assert row["depth"] == len(row["prefix"])
        out.setdefault("-".join(map(str, row["prefix"])), set()).add(row["next"])
    return out


@pytest.mark.parametrize(("ragged", "last"), [(False, -1), (False, 19), (True, -1), (True, 19)])
def test_a_table_of_prefixes_is_what_spelling_every_item_gives(ragged: bool, last: int) -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 5, size=(40, 3)).astype(np.int32)
    codes[:5] = -1
    if ragged:
        codes[5:15, 2], codes[5:9, 1] = -1, -1
    table = SidTable.build([f"i{n}" for n in range(40)], codes, SidSchema.native((5, 5, 5), "allowed"))
    keep = rng.random(40) < 0.7
    trie, ends = Trie.build(table, keep), Ends.of(table.schema.eos, last)
    said = json.loads(b"".join(prefix_json({"a": 1}, trie, ends, (7, 8), SILENT)))
    wanted = spelled_out(table, keep, last)
    assert said["allowed"].pop("7-8") == said["allowed"][""]
    assert {key: set(rows) for key, rows in said["allowed"].items()} == wanted
    assert sum(map(len, said["allowed"].values())) == sum(map(len, wanted.values()))  # none twice
    rows = prefix_table(trie, table.schema, ends, {row: f"t{row}" for row in range(20)})
    assert as_sets(rows) == wanted
    for row in rows.to_pylist():
        if row["code"] is not None:
            assert table.schema.rows[row["depth"]][row["code"]] == row["next"]
            assert row["token"] == f"t{row['next']}"
        assert (row["code"] is None) == (row["token"] is None) == (row["next"] in ends.rows)


def generated(
    found: Checkpoint, history: Histories, document: dict[str, Any] | None = None, **more: Any
) -> list[list[int]]:
    """The rows that transformers' generate writes after one history, best first, without what stood before them."""
    tokens, lengths = found.recommender.tokens(history, found.table)
    module: Any = found.recommender.module
    prompt = tokens[:, : int(lengths[0])]
    begin = prompt.shape[1] if found.recommender.kind == "causal" else 1
    if document is not None:
        more["prefix_allowed_tokens_fn"] = allowed_rows(document, begin)
    out = module.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), num_beams=W, num_return_sequences=W, do_sample=False,
        length_penalty=0.0, use_cache=True, return_dict_in_generate=True, output_scores=True,
        pad_token_id=max(found.table.schema.pad, 0), **more,
    )  # fmt: skip
    made = zip(out.sequences[:, begin:].tolist(), out.sequences_scores.tolist(), strict=True)
    return [row for row, score in made if score > -1e5]


HISTORIES = ([3, 9, 15], [1], [4, 10, 22, 28], [39, 2])


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_generate_with_the_table_gives_our_lists_and_nothing_blocked(
    home: Path, tmp_path: Path, name: str, hide: bool
) -> None:
    found, members = opened(home, name)
    out = tmp_path / "p.json"
    spec = concept(name) if hide else None
    made = api.export_prefixes(home / name, home / "data" / name, out, concept=spec, run=RUN)
    document = json.loads(out.read_text())
    table = found.table
    trie = Trie.build(table, table.listed & ~members) if hide else Trie.build(table)
    by_sid = {tuple(rows): [] for rows in table.rows().tolist()}
    for item in trie.leaf_items.tolist():
        by_sid[tuple(table.rows()[item].tolist())].append(item)
    blocked = {str(table.item_ids[item]) for item in np.flatnonzero(members)} - set(made.reachable) if hide else set()
    for items in HISTORIES:
        history = Histories.from_lists([items])
        ours = recommend(found.recommender, table, history, k=4 * W, beam=W, trie=trie)
        wanted = [(i, s) for i, s in zip(ours.items[0].tolist(), ours.scores[0].tolist(), strict=True) if i >= 0]
        rows = generated(found, history, document, max_new_tokens=table.levels)
        theirs = [item for row in rows for item in sorted(by_sid[tuple(row)], key=lambda i: table.id_rank[i])]
        assert theirs == [item for item, _ in wanted]
        assert theirs
        everybody = {str(i) for row in rows for i in table.item_ids[(table.rows() == np.array(row)).all(1)]}
        assert not everybody & blocked
    if hide:
        assert made.hidden == len(blocked) > 0
        assert set(document["still_reachable"]) == set(made.reachable)


class TheirProcessor(LogitsProcessor):
    """As ConstrainedLogitsProcessor in MiniOneRec's LogitProcessor.py: the last rows of the prompt first, then what was generated."""

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, list[int]], list[int]], num_beams: int) -> None:
        self._ask, self._beams, self.count, self.prefix_index = prefix_allowed_tokens_fn, num_beams, 0, 3

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.log_softmax(scores, dim=-1)
        mask = torch.full_like(scores, -1000000)
        for row, sent in enumerate(input_ids):
            key = sent[-self.prefix_index :] if self.count == 0 else sent[-self.count :]
            allowed = self._ask(row // self._beams, key.tolist())
            if allowed:
                mask[row, allowed] = 0
        self.count += 1
        return scores + mask


def test_minionerec_reads_the_table_as_its_hash_dict(home: Path, tmp_path: Path) -> None:
    """evaluate.py: hash_dict[get_hash(rows)] or nothing; an answer is a SID, a line end and eos."""
    found, members = opened(home, "minionerec")
    api.export_prefixes(
        home / "minionerec", home / "data" / "minionerec", tmp_path / "p.json", concept=concept("minionerec"), run=RUN
    )
    document = json.loads((tmp_path / "p.json").read_text())
    hash_dict = document["allowed"]
    eos = document["end"][-1]
    assert len(document["end"]) == 2
    trie = Trie.build(found.table, found.table.listed & ~members)
    for items in HISTORIES[:2]:
        history = Histories.from_lists([items])
        processors = LogitsProcessorList(
            [TheirProcessor(lambda batch, rows: hash_dict.get("-".join(map(str, rows)), []), W)]
        )
        rows = generated(found, history, logits_processor=processors, max_new_tokens=6, eos_token_id=eos)
        assert len(rows) == W
        sids = {tuple(found.table.rows()[item]) for item in trie.leaf_items.tolist()}
        assert all(tuple(row[:3]) in sids and row[3:5] == document["end"] for row in rows)


def test_letter_walks_the_same_tree(home: Path, tmp_path: Path) -> None:
    """LETTER-TIGER/test.py: a trie of [0] + tokens of the SID + eos, asked with all that the decoder has written."""
    found, _ = opened(home, "letter-tiger")
    api.export_prefixes(home / "letter-tiger", home / "data" / "letter-tiger", tmp_path / "p.json", run=RUN)
    document = json.loads((tmp_path / "p.json").read_text())
    trie: dict[int, Any] = {}
    for sid in found.table.rows().tolist():
        node = trie
        for row in [0, *sid, 1]:
            node = node.setdefault(row, {})
    ask = allowed_rows(document, len(document["begin"]))

    def walk(node: dict[int, Any], path: list[int]) -> int:
        assert sorted(ask(0, torch.tensor(path))) == sorted(node)
        return 1 + sum(walk(below, [*path, row]) for row, below in node.items() if below)

    assert walk(trie[0], [0]) == len(document["allowed"])


def test_what_cannot_be_written_is_refused_before_anything_is_read(home: Path, tmp_path: Path) -> None:
    given = (home / "gone", concept(""), home / "gone")
    with pytest.raises(UsageError, match="no known format"):
        api.export_blocklist(*given, tmp_path / "b.xml")
    with pytest.raises(UsageError, match="no known format"):
        api.export_prefixes(home / "gone", home / "gone", tmp_path / "p.csv")
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(OutputError, match="exists already"):
        api.export_blocklist(*given, tmp_path / "there.json")
    with pytest.raises(OutputError, match="input"):
        api.export_prefixes(home / "causal", home / "data" / "causal", home / "causal" / "p.json", force=True)
    with pytest.raises(ConceptError):
        api.export_blocklist(
            home / "causal",
            api.ConceptSpec(("brand=None such",)),
            home / "data" / "causal",
            tmp_path / "b.json",
            run=RUN,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.json"]
