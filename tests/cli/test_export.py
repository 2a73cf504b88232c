"""`export` and `patch` as commands: what stands on stdout and stderr, how they exit, and that what they say is honest."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.layouts import foreign_fixtures

from recerase.__main__ import run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model and other (a LETTER-TIGER directory, and the same with one SID changed), tiger, data; read only."""
    place = tmp_path_factory.mktemp("commands")
    foreign_fixtures.data(place / "data")
    foreign_fixtures.tiger_cf(place / "tiger")
    sids = foreign_fixtures.index_of(foreign_fixtures.codes())
    foreign_fixtures.letter(place / "model", sids)
    foreign_fixtures.letter(place / "other", {**sids, "7": sids["13"]})
    return place


@pytest.fixture(autouse=True)
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands run in a directory of their own, and nothing that fixtures said is heard."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()


def test_a_blocklist_says_that_hiding_is_not_erasing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", "blocklist", f"{home}/model", "--data", f"{home}/data", "--out", "b.json"]
    assert run([*line, "--concept", "brand=brand4"]) == 0
    out, err = capsys.readouterr()
    assert out == "b.json\n"
    assert "Hiding is not erasing" in err
    assert "expected to fail the behaviour layer" in err
    assert "1 of the SIDs are those of 1 retained items too" in err
    assert json.loads(Path("b.json").read_text())["counts"]["shared"] == 1
    assert run([*line, "--concept", "brand=brand4"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*line, "--concept", "brand=brand1", "--force", "-q"]) == 0
    assert capsys.readouterr() == ("b.json\n", "")
    assert json.loads(Path("b.json").read_text())["counts"]["shared"] == 0


def test_prefixes_with_and_without_a_concept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", "prefixes", f"{home}/tiger", "--data", f"{home}/data", "--trust-pickle"]
    assert run([*line, "--out", "all.parquet"]) == 0
    assert "erasing" not in capsys.readouterr().err
    assert run([*line, "--out", "less.parquet", "--concept", "brand=brand4"]) == 0
    err = capsys.readouterr().err
    assert "Hiding is not erasing" in err
    assert "58 share a SID with retained items and stay within reach" in err
    whole, less = (pq.read_table(f"{name}.parquet") for name in ("all", "less"))
    assert whole.num_rows > less.num_rows
    assert run([*line[:-1], "--out", "no.json"]) == 4
    assert "--trust-pickle" in capsys.readouterr().err
    assert not Path("no.json").exists()


def test_a_patch_is_made_shown_applied_and_reverted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["patch", "make", f"{home}/model", f"{home}/other", "--out", "p", "--leave", "optimizer*"]) == 0
    out, err = capsys.readouterr()
    assert out == "p\n"
    assert "carries what was erased, and must be kept and deleted like the original" in err
    assert "1 SIDs moved" in err
    assert run(["patch", "show", "p"]) == 0
    shown = capsys.readouterr().out
    assert "reversible" in shown
    assert "optimizer.pt" in shown
    assert run(["patch", "show", "p", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [move["item_id"] for move in document["moves"]] == ["7"]
    assert run(["patch", "apply", f"{home}/model", "p", "--out", "applied", "-q"]) == 0
    assert capsys.readouterr() == ("applied\n", "")
    assert run(["patch", "revert", "applied", "p", "--out", "reverted"]) == 0
    assert "unchanged" in capsys.readouterr().err
    for side, source in (("applied", "other"), ("reverted", "model")):
        for file in sorted((home / source).iterdir()):
            if file.name != "optimizer.pt":
                assert (Path(side) / file.name).read_bytes() == file.read_bytes(), file.name
    assert run(["patch", "apply", f"{home}/other", "p", "--out", "never"]) == 4
    assert capsys.readouterr().err.count("\n") <= 2
    assert not Path("never").exists()


def test_a_one_way_patch_says_so_and_cannot_be_reverted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["patch", "make", f"{home}/model", f"{home}/other", "--out", "p", "--one-way"]) == 0
    assert "holds nothing of what was there before but sizes, digests" in capsys.readouterr().err
    assert run(["patch", "apply", f"{home}/model", "p", "--out", "applied"]) == 0
    assert run(["patch", "revert", "applied", "p", "--out", "never"]) == 2
    assert "one-way" in capsys.readouterr().err


def test_a_file_that_is_no_patch(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p").write_bytes(b"nothing of the kind")
    for line in (
        ["apply", f"{home}/model", "p", "--out", "o"],
        ["revert", f"{home}/model", "p", "--out", "o"],
        ["show", "p"],
    ):
        assert run(["patch", *line]) == 4
        assert "p is not a patch that can be used" in capsys.readouterr().err
    assert not Path("o").exists()


def test_help_says_what_a_patch_carries_and_what_hiding_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for words in (("patch", "make"), ("export", "blocklist")):
        assert run([*words, "--help"]) == 0
        said[words[0]] = " ".join(capsys.readouterr().out.split())
    assert "it carries what was erased, and must be kept like the original" in said["patch"]
    assert "Hiding is not erasing" in said["export"]
