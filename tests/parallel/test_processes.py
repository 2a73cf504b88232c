"""Two processes against one: the same reports and SIDs, one writer, and one end for both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from recerase.__main__ import run
from recerase.model import recommender
from recerase.report.schema import read_report

from .conftest import Pair, World

COMMANDS = """
import dataclasses, json, sys
import recerase.model.recommender as place
from recerase.__main__ import run
made = place.new_recommender
place.new_recommender = lambda config, *rest: made(dataclasses.replace(config, dropout=0.0), *rest)
print(*[run(argv) for argv in json.loads(sys.argv[1])], file=sys.__stderr__)
"""
"""Several commands in one process, and no dropout."""
FAILING = """
import os, sys, time
from recerase.__main__ import main
from recerase.audit import readings
from recerase.errors import DataError
real = readings.Readings._mass
def fail(*args):
    if os.environ["RANK"] == "1":
        if sys.argv[-1] == "error":
            raise DataError("The mass is spoilt.", "Mend it.")
        if sys.argv[-1] == "killed":
            os.kill(os.getpid(), 9)
        time.sleep(1000)
    return real(*args)
readings.Readings._mass = fail
main(sys.argv[1:-1])
"""


def audit(world: World, subject: Path | str, *more: str) -> list[str]:
    return ["audit", str(subject), "--original", f"{world.home}/model", *world.at, *more]


def test_train_erase_and_audit_are_those_of_one_process(
    pair: Callable[..., Pair], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--set", "reassign_steps=2", "--set", "settle_steps=2", "--set", "pool=2"]
    argvs = [
        world.train("trained"),
        ["tokenize", f"{world.home}/data", "--out", "sids", "--codes", "8", "--dims", "16", "-q"],
        ["erase", f"{world.home}/model", "--out", "erased", "-m", "tracer", *few, *world.at, "-q"],
        audit(world, world.home / "model", "-o", "audit.json", "-q"),
    ]
    started = pair([json.dumps(argvs)], code=COMMANDS)
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    made = recommender.new_recommender
    monkeypatch.setattr(recommender, "new_recommender", lambda c, *more: made(replace(c, dropout=0.0), *more))
    codes = " ".join(str(run(argv)) for argv in argvs)
    ended = started.ended()
    assert [e.code for e in ended] == [0, 0], ended[0].err + ended[1].err
    assert [e.err.splitlines()[-1] for e in ended] == [codes, codes]
    assert ended[1].out == ""
    assert started.files(1) == []
    two, one = started.homes[0], tmp_path / "alone"
    assert started.files(0) == sorted(str(path.relative_to(one)) for path in one.rglob("*"))

    weights, wanted = (load_file(place / "trained" / "model.safetensors") for place in (two, one))
    assert weights.keys() == wanted.keys()
    assert all(abs(weights[name] - wanted[name]).max() < 1e-5 for name in wanted)
    assert (two / "sids" / "sids.parquet").read_bytes() == (one / "sids" / "sids.parquet").read_bytes()
    assert (two / "erased" / "sids.parquet").read_bytes() == (one / "erased" / "sids.parquet").read_bytes()

    shared, single = (read_report(place / "audit.json") for place in (two, one))
    assert shared.measurements == single.measurements
    assert (shared.decision, shared.gate, shared.inputs) == (single.decision, single.gate, single.inputs)
    assert (shared.examples, shared.curves, shared.skipped) == (single.examples, single.curves, single.skipped)
    assert shared.run["environment"]["processes"] == 2
    erased, own = (read_report(place / "erased" / "report.json") for place in (two, one))
    assert erased.decision.verdict == own.decision.verdict
    close = [abs(a.value - b.value) < 1e-3 for a, b in zip(erased.measurements, own.measurements, strict=True)]
    assert sum(close) > 0.9 * len(close)


@pytest.mark.parametrize(
    ("how", "code", "sentence"),
    [("error", 4, "recerase: The mass is spoilt. Mend it."), ("killed", 3, "Another process of this run is gone")],
)
def test_a_failing_process_ends_both(
    pair: Callable[..., Pair], world: World, how: str, code: int, sentence: str
) -> None:
    started = pair([*audit(world, world.home / "model", "-o", "audit.json", "-q"), how], code=FAILING)
    main, other = started.ended(60)
    assert main.code == code, main.err
    assert other.code == (-9 if how == "killed" else code)
    assert sentence in main.err
    assert main.err.count("recerase:") == 1
    assert "Traceback" not in main.err + other.err
    assert started.files(1) == []
    assert "audit.json" not in started.files(0)


def test_ctrl_c_ends_both_and_one_process_goes_on(
    pair: Callable[..., Pair], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = pair([*audit(world, world.home / "model", "-o", "audit.json"), "sleep"], code=FAILING)
    state = started.homes[0] / ".audit.json.recerase-state"
    until = time.monotonic() + 60
    while not list(state.glob("mass*")) + list(state.glob("lists*")) and time.monotonic() < until:
        time.sleep(0.1)
    started.signal(signal.SIGINT)
    began = time.monotonic()
    main, other = started.ended(60)
    assert (main.code, other.code) == (130, 130), main.err + other.err
    assert time.monotonic() - began < 20
    assert "recerase: interrupted" in main.err or "stopped at once" in main.err
    assert started.files(1) == []
    monkeypatch.chdir(started.homes[0])
    assert run(audit(world, world.home / "model", "-o", "audit.json", "-q", "--resume")) in (0, 1, 5)
    assert started.files(0) == ["audit.json"]


def test_a_process_that_reads_something_else_is_refused(
    pair: Callable[..., Pair], world: World, tmp_path: Path
) -> None:
    for rank, size in enumerate((5, 6)):
        (tmp_path / f"rank{rank}").mkdir()
        (tmp_path / f"rank{rank}" / "ids.txt").write_text("\n".join(world.item_ids[:size]))
    at = [word for word in world.at if not word.startswith("--concept")]
    argv = ["audit", f"{world.home}/model", *at, "--concept", "@ids.txt", "-o", "audit.json", "-q"]
    started = pair(argv)
    main, other = started.ended(60)
    assert (main.code, other.code) == (4, 4)
    assert main.err == (
        "recerase: Process 1 of this run does not work on what the main one does: its concept differs. "
        "Give every machine the same inputs, versions and --threads.\n"
    )
    assert other.err == ""
    assert started.files(0) == ["ids.txt"]


def test_accelerates_own_line_for_cpus_gives_two_processes(world: World, tmp_path: Path) -> None:
    """It starts one process, which starts the other; and it ends with 1 whenever recerase does not end with 0."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "recerase"]
    argv = [*launch, *audit(world, world.home / "model", "-o", "audit.json", "-q")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (tmp_path / "audit.json").is_file(), done.stderr
    report = read_report(tmp_path / "audit.json")
    assert report.run["environment"]["processes"] == 2
    assert done.returncode == (0 if report.gate.exit_code == 0 else 1)
    assert done.stdout.count("Rules") == 1
