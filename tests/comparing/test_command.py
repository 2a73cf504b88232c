"""`recerase compare` on the command line: what it prints where, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.comparing.conftest import Shop

from recerase.__main__ import run
from recerase.catalog.demo import DEMO_CONCEPT

ON = ["--seeds", "0", "--max-users", "20", "--threads", "1", "--device", "cpu"]
GA = ["-m", "ga", "--set", "ga.steps=1", "--set", "ga.batch=4"]
PAPER = ["-m", "tracer/paper", *(f"--set=tracer/paper.{x}" for x in ("reassign_steps=1", "min_moved=1", "batch=4"))]


def line(shop: Shop, out: Path, *more: str) -> list[str]:
    return [
        "compare",
        str(shop.model),
        "--concept",
        DEMO_CONCEPT,
        "--data",
        str(shop.data),
        "--out",
        str(out),
        *ON,
        *more,
    ]


def test_a_comparison_is_shown_and_its_progress_told(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(line(shop, out, *GA, "-o", str(tmp_path / "also.html"))) == 0
    told = capsys.readouterr()
    assert "Leakage" in told.out
    assert told.out.splitlines()[-1] == str(out)
    assert "ga, seed 0, scope output: erased in" in told.err
    assert "0 left" in told.err
    assert (tmp_path / "also.html").read_bytes() == (out / "comparison.html").read_bytes()
    assert run(line(shop, out, *GA, "--plan")) == 0
    assert "done" in capsys.readouterr().out
    assert run(line(shop, out, *GA, "--fresh", "--plan")) == 0
    assert "to do" in capsys.readouterr().out


def test_methods_that_all_refuse_leave_a_table_and_exit_code_3(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line(shop, tmp_path / "out", *PAPER)) == 3
    told = capsys.readouterr()
    assert "min_moved" in told.out
    assert "no method made a model" in told.err
    assert (tmp_path / "out" / "comparison.json").is_file()


@pytest.mark.parametrize(
    ("methods", "more", "said"),
    [
        ("gaa", (), "ga"),
        ("ga", ("--set", "ga.stepz=1"), "steps"),
        ("ga", ("--set", "steps=1"), "METHOD.KEY=VALUE"),
        ("ga", ("--seeds", "x"), "0,1,2"),
        ("ga", ("-o", "x.pdf"), ".html"),
        ("filter", (), "control"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], methods: str, more: tuple[str, ...], said: str
) -> None:
    words = [
        "compare",
        str(shop.model),
        "--concept",
        DEMO_CONCEPT,
        "--data",
        str(shop.data),
        "--out",
        f"{tmp_path}/out",
    ]
    assert run([*words, "-m", methods, *more]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_reference_given_twice_is_refused(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would have no spread, and whatever is a little off would be unlike it."""
    words = [
        "compare",
        str(shop.model),
        "--concept",
        DEMO_CONCEPT,
        "--data",
        str(shop.data),
        "--out",
        f"{tmp_path}/out",
    ]
    assert run([*words, "-m", "ga", "--reference", str(shop.gold), "--reference", str(shop.gold)]) == 2
    assert "are the same reference" in capsys.readouterr().err
