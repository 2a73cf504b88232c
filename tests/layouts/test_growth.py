"""Vocabulary rows that are added: consistently in every file, behind what was there, for codes in use alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.layouts import causal_fixtures as causal
from tests.layouts import growth_fixtures as fixtures
from tests.layouts import onerec_fixtures as onerec
from tests.layouts.causal_checks import EASY, FAST, OURS, csv_reader, files_of, info_reader, old_reader, tensors_of
from transformers import AutoModelForCausalLM, AutoTokenizer, T5ForConditionalGeneration, T5Tokenizer

from recerase import api, erasure
from recerase.__main__ import run
from recerase.errors import EraseError
from recerase.layouts.registry import detect_layout, open_checkpoint
from recerase.report.schema import read_report
from recerase.resume import RunState
from recerase.runtime import RunConfig

KINDS = ("lc-rec", "minionerec", "letter-tiger")
TOUCHED = {"tokenizer.json", "config.json", "Toys.index.json", "Toy.index.json", "model.safetensors"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full directory of each kind, the data they were trained on, and what erasing with new rows made of each."""
    place = tmp_path_factory.mktemp("full")
    holed, whole = fixtures.full_world(), fixtures.full_world(fixtures.WHOLE)
    causal.write_data(place / "data", holed)
    causal.lc_rec(place / "lc-rec", holed)
    causal.minionerec(place / "minionerec", whole)
    fixtures.real_t5_tokenizer(fixtures.full_letter(place / "letter-tiger"))
    for kind in KINDS:
        fixtures.erased(place / kind, place / "data", place / f"{kind}-grown")
    return place


def classes(kind: str) -> tuple[Any, Any]:
    """What the tool itself loads model and tokenizer with."""
    return (
        (T5ForConditionalGeneration, T5Tokenizer) if kind == "letter-tiger" else (AutoModelForCausalLM, AutoTokenizer)
    )


def index_of(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(next(path.glob("*.index.json")).read_text())
    return found


def added_to(home: Path, kind: str) -> list[str]:
    """Tokens that the grown directory has and its source has not."""
    return added(home / f"{kind}-grown", home / kind)


def added(out: Path, source: Path) -> list[str]:
    return sorted(set(fixtures.rebuilt(out)) - set(fixtures.rebuilt(source)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_flag_a_full_vocabulary_is_refused(home: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        EraseError, match="8 items need SIDs that nobody had, and the codes that can be used leave 0"
    ) as told:
        fixtures.erased(home / kind, home / "data", tmp_path / "out", grow=None)
    assert "--grow-vocabulary auto" in told.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tools_own_classes_read_it(home: Path, kind: str) -> None:
    source, out = home / kind, home / f"{kind}-grown"
    family, spelling = classes(kind)
    old, new = (spelling.from_pretrained(path, local_files_only=True) for path in (source, out))
    fresh = added_to(home, kind)
    assert fresh
    vocabulary = new.get_vocab()
    assert {token: row for token, row in vocabulary.items() if token not in fresh} == old.get_vocab()
    assert [vocabulary[token] for token in fresh] == list(range(len(old), len(old) + len(fresh)))
    for token in fresh:
        assert new.encode(f"{token}{token}", add_special_tokens=False) == [vocabulary[token]] * 2
        assert new.decode([vocabulary[token]]) == token
    model = family.from_pretrained(out, local_files_only=True, dtype="auto")
    rows = {len(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    assert (
        rows == {model.config.vocab_size} == {json.loads((out / "config.json").read_text())["vocab_size"]} == {len(new)}
    )
    tied = kind in ("minionerec", "letter-tiger")
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors_of(out).items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_the_directory_is_as_it_was(home: Path, kind: str) -> None:
    before, after = files_of(home / kind), files_of(home / f"{kind}-grown")
    carry = {name for name in before if name.endswith((".csv", ".txt"))}
    assert after.keys() == before.keys() - {"optimizer.pt"} | OURS - {"report.json", "erased.json"}
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed <= TOUCHED | carry
    assert {"tokenizer.json", "config.json", "model.safetensors"} | carry <= changed
    old, new = (json.loads(files["tokenizer.json"]) for files in (before, after))
    fresh = added_to(home, kind)
    assert new.pop("added_tokens")[: len(old["added_tokens"])] == old.pop("added_tokens")
    assert new == old
    config = json.loads(before["config.json"])
    assert json.loads(after["config.json"]) == {**config, "vocab_size": config["vocab_size"] + len(fresh)}
    assert after["config.json"].count(b"\n") == before["config.json"].count(b"\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_new_row_is_in_use_and_what_carries_sids_agrees(home: Path, kind: str) -> None:
    source, out = home / kind, home / f"{kind}-grown"
    opened = open_checkpoint(out)
    table, schema = opened.table, opened.table.schema
    moved = {item for item, sid in index_of(out).items() if index_of(source).get(item) != sid}
    assert moved == {str(item) for item in range(8)}
    assert set(fixtures.rebuilt(source)) <= set(fixtures.rebuilt(out))  # tombstones keep what nobody has any more
    for token in added_to(home, kind):
        level, code = ord(token[1]) - ord("a"), int(token[3:-1])
        assert schema.rows[level][code] >= open_checkpoint(source).table.schema.vocabulary
        assert (table.codes[:, level] == code).any()
    assert len({tuple(sid) for sid in table.codes.tolist()}) == len(table)
    assert opened.codebooks is not None
    assert [len(words) for words in opened.codebooks.vectors] == list(schema.codes)
    if kind == "letter-tiger":
        return
    rows = dict(zip(table.item_ids, table.rows().tolist(), strict=True))
    assert {item: ids for item, ids in old_reader(out).items() if item in rows} == rows
    if kind == "minionerec":
        spelled = {item: "".join(sid) for item, sid in index_of(out).items()}
        assert info_reader(out) == {item: spelled[item] for item in info_reader(out)}
        for history, sids, item, sid in csv_reader(out):
            assert [spelled[i] for i in history] == sids
            assert spelled[item] == sid


@pytest.mark.parametrize("kind", KINDS)
def test_the_tools_own_generate_can_write_a_new_sid(home: Path, kind: str) -> None:
    out = home / f"{kind}-grown"
    family, spelling = classes(kind)
    model, own = (
        family.from_pretrained(out, local_files_only=True),
        spelling.from_pretrained(out, local_files_only=True),
    )
    fresh = set(added_to(home, kind))
    sid = next("".join(sid) for item, sid in index_of(out).items() if item.isdecimal() and fresh & set(sid))
    wanted = own.encode(sid, add_special_tokens=False)
    assert len(wanted) == 3
    asked = own("abc" if kind == "letter-tiger" else "### Response:\n", return_tensors="pt")
    begin = 1 if kind == "letter-tiger" else asked.input_ids.shape[1]
    starts = {"decoder_start_token_id": 0} if kind == "letter-tiger" else {}
    made = model.generate(
        input_ids=asked.input_ids, attention_mask=asked.attention_mask, max_new_tokens=3, num_beams=2, do_sample=False,
        top_k=None, pad_token_id=0, eos_token_id=1, **starts,
        prefix_allowed_tokens_fn=lambda batch, tokens: [wanted[len(tokens) - begin]],
    )  # fmt: skip
    assert made[0, begin:].tolist() == wanted
    assert own.decode(made[0, begin:]).replace(" ", "") == sid


def test_letters_test_makes_the_same_ids_from_the_new_table(home: Path) -> None:
    """test.py of LETTER-TIGER adds the tokens of the table, sorted, to a tokenizer that has none."""
    out = home / "letter-tiger-grown"
    own = T5Tokenizer.from_pretrained(out, local_files_only=True)
    tokens = fixtures.rebuilt(out)
    assert own.convert_tokens_to_ids(tokens) == list(range(fixtures.t5.BASE, fixtures.t5.BASE + len(tokens)))


def test_letter_is_refused_where_its_ids_would_shift(home: Path, tmp_path: Path) -> None:
    """Behind <c_9> no token of the level sorts, and <c_1> would push 20 ids on; unless the directory's tokenizer is loaded."""
    source = fixtures.full_letter(tmp_path / "letter", last=(0, 2, 3, 5, 9))
    with pytest.raises(EraseError, match="No vocabulary row can be added") as told:
        fixtures.erased(source, home / "data", tmp_path / "no")
    assert "test.py makes the vocabulary again" in told.value.remedy
    assert "tokenizer=directory" in told.value.remedy
    out = fixtures.erased(source, home / "data", tmp_path / "out", tokenizer="directory")
    before, after = (json.loads((path / "added_tokens.json").read_text()) for path in (source, out))
    fresh = set(fixtures.rebuilt(out)) - set(fixtures.rebuilt(source))
    assert fresh <= {"<c_1>", "<c_4>", "<c_6>", "<c_7>", "<c_8>"}
    assert after == {**before, **{token: max(before.values()) + 1 + n for n, token in enumerate(sorted(fresh))}}
    assert [*after][: len(before)] == [*before]
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {decoder[str(after[token])]["content"] for token in fresh} == fresh
    tensors = tensors_of(out)
    assert len(tensors["shared.weight"]) == max(after.values()) + 1
    open_checkpoint(out)


def test_refusals_come_before_any_work(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.layouts.foreign_fixtures import data, tiger_cf

    data(tmp_path / "data")
    tiger_cf(tmp_path / "tiger-cf")
    given = [
        "erase",
        str(tmp_path / "tiger-cf"),
        f"--data={tmp_path}/data",
        "--concept=brand=brand2",
    ]
    given += ["--trust-pickle", f"--out={tmp_path}/out", "-q", "--threads=1", "--device=cpu"]
    assert run([*given, "--set=min_agreement=0", "--grow-vocabulary", "auto"]) == 3
    assert "rows behind them are those of users" in capsys.readouterr().err
    for more, said in (
        (["--grow-vocabulary", "many"], "neither auto nor a number"),
        (["--grow-vocabulary", "0"], "neither auto nor a number"),
        (["--grow-vocabulary", "3", "-m", "npo"], "moves no item"),
    ):
        assert run([*given, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plan_says_how_many_rows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "erase",
        str(home / "lc-rec"),
        f"--data={home}/data",
        "--concept=brand=Acme",
        "--set=min_agreement=0",
        "--plan",
    ]
    assert run([*given, "--grow-vocabulary", "auto"]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {
        "new rows offered 3",
        "new codes a level 0, 0, 3",
        "free SIDs without them 0",
        "free SIDs with them 24",
    } <= lines
    assert run([*given, "--grow-vocabulary", "5"]) == 0
    assert "new codes a level 0, 0, 5" in {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert run(given) == 0
    assert "new rows" not in capsys.readouterr().out
    assert run([*given, "--grow-vocabulary", "auto", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["vocabulary"]["new rows offered"] == 3
    assert (told["method"]["name"], told["concept"]["items"], told["settings"]["min_agreement"]) == ("tracer", 8, 0.0)
    assert run([*given[:-1], "--json"]) == 2
    assert "--json goes with --plan" in capsys.readouterr().err


def test_where_sids_are_free_auto_adds_nothing(home: Path, tmp_path: Path) -> None:
    """A pipeline may always say auto: it fails where rows are needed and cannot be had, and not where none is needed."""
    source = causal.lc_rec(tmp_path / "model", causal.make_world())
    out = fixtures.erased(source, home / "data", tmp_path / "out", grow="auto")
    assert index_of(out) != index_of(source)
    before, after = files_of(source), files_of(out)
    assert all(before[name] == after[name] for name in ("tokenizer.json", "tokenizer_config.json", "config.json"))


def test_more_rows_than_are_needed_leave_no_gap_in_the_codes(home: Path, tmp_path: Path) -> None:
    """500 are offered, some of all 500 are chosen, and those get the codes that come next."""
    out = fixtures.erased(home / "lc-rec", home / "data", tmp_path / "out", grow="500")
    table = open_checkpoint(out).table
    beyond = set(range(8, table.schema.codes[2]))
    assert 1 < len(beyond) <= 8
    assert beyond <= set(table.codes[:, 2].tolist())
    own = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert {token for token in added(out, home / "lc-rec") if int(token[3:-1]) > 7} == {
        f"<c_{code}>" for code in beyond
    }
    for item, sid in index_of(out).items():
        if item in table.item_ids:
            row = table.rows()[list(table.item_ids).index(item)].tolist()
            assert own.encode("".join(sid), add_special_tokens=False)[-3:] == row


def test_onerec_think_grows_behind_its_codes_and_a_patch_holds_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tool adds begin and end first, so that it is still told apart; rows that the model was padded with are used."""
    monkeypatch.setattr(onerec, "SIZE", 8)
    source, world = tmp_path / "model", fixtures.full_world()
    del world.histories[12:]
    onerec.onerec_think(source, world, source)
    with pytest.raises(EraseError, match="leave 0"):
        fixtures.erased(source, home / "data", tmp_path / "no", grow=None, window="3")
    out = fixtures.erased(source, home / "data", tmp_path / "out", window="3")
    assert detect_layout(out).name == "onerec-think"
    old, new = (AutoTokenizer.from_pretrained(path, local_files_only=True) for path in (source, out))
    table = open_checkpoint(out).table
    fresh = {token: row for token, row in new.get_vocab().items() if token not in old.get_vocab()}
    assert fresh
    assert fresh == {f"<s_c_{code}>": len(old) + code - 8 for code in range(8, table.schema.codes[2])}
    text = (out / "Beauty.pretrain.json").read_text()
    assert all(token in text for token in fresh)
    assert files_of(source)["config.json"] == files_of(out)["config.json"]  # there was room in the padding
    api.make_patch(source, out, tmp_path / "p", run=RunConfig(device="cpu"))
    api.apply_patch(source, tmp_path / "p", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(out)


@pytest.mark.slow
def test_what_is_published_is_audited_like_any_other(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole command, audit and all: the new code lies beyond the original's codebooks."""
    (tmp_path / "policy.toml").write_text(EASY)
    common = [
        f"--data={home}/data",
        f"--policy={tmp_path}/policy.toml",
        "--concept=brand=Acme",
        "--threads=1",
        "--device=cpu",
    ]
    common.append("--max-users=4")
    source, out = home / "letter-tiger", tmp_path / "out"
    given = [*common, *(f"--set={pair}" for pair in FAST), "--grow-vocabulary", "auto"]
    assert run(["erase", str(source), f"--out={out}", *given]) in (0, 5)
    assert "2 vocabulary rows may be added: 16 SIDs are free with them, 0 without" in capfd.readouterr().err
    table = open_checkpoint(out).table
    report = read_report(out / "report.json")
    added = report.method["summary"]["new_codes"]
    assert (
        report.method["summary"]["rows_added"]
        == len(added)
        == table.schema.vocabulary - open_checkpoint(source).table.schema.vocabulary
        > 0
    )
    assert all(table.schema.rows[level][code] == row for level, code, row in added)
    assert (table.codes[:, 2] == 8).any()
    grown = files_of(home / "letter-tiger-grown")
    assert {
        name: data
        for name, data in files_of(out).items()
        if name not in ("recerase.json", "report.json", "erased.json")
    } == {
        name: data for name, data in grown.items() if name != "recerase.json"
    }  # what the other tests look at is what is published


def test_a_run_with_the_flag_is_not_continued_without_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []

    def opened(self: RunState, key: dict[str, str], *more: object) -> None:
        keys.append(key)
        raise EraseError("far enough")

    monkeypatch.setattr(erasure.RunState, "open", opened)
    given = (home / "lc-rec", api.ConceptSpec(("brand=Acme",)), home / "data", tmp_path / "out")
    for grow in (None, "auto", "3"):
        with pytest.raises(EraseError, match="far enough"):
            api.erase(*given, overrides=["min_agreement=0"], grow=grow, run=RunConfig(threads=1, device="cpu"))
    assert len({key.get("grow vocabulary") for key in keys}) == 3
    assert all({**key, "grow vocabulary": ""} == {**keys[0], "grow vocabulary": ""} for key in keys)
