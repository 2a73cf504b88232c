"""Two processes against one: the same reports and SIDs, one writer, and one end for both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.commands import launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from safetensors.numpy import load_file

from recerase import parallel
from recerase.__main__ import run
from recerase.connection import Link
from recerase.launching import _asked
from recerase.report.schema import read_report

from .conftest import SMALL_AUDITS, Pair, World

COMMANDS = (
    SMALL_AUDITS
    + """
import dataclasses, json, os, sys
import recerase.model.recommender as place
from recerase.__main__ import run
from recerase.audit import readings
from recerase.errors import DataError
made, real = place.new_recommender, readings.Readings._mass
place.new_recommender = lambda config, *rest: made(dataclasses.replace(config, dropout=0.0), *rest)
def spoilt(*args):
    if os.environ["RANK"] == "1":
        raise DataError("The mass is spoilt.", "Mend it.")
    return real(*args)
codes = []
for spoil, argv in json.loads(sys.argv[1]):
    readings.Readings._mass = spoilt if spoil else real
    codes.append(run(argv))
print(*codes, file=sys.__stderr__)
"""
)
"""Several commands in one process, some of them failing in the other one, and no dropout."""
SLEEPING = (
    SMALL_AUDITS
    + """
import os, sys, time
from recerase.__main__ import main
from recerase.audit import readings
real = readings.Readings._mass
def sleep(*args):
    if os.environ["RANK"] == "1":
        time.sleep(1000)
    return real(*args)
readings.Readings._mass = sleep
main(sys.argv[1:])
"""
)
KILLED = """
import os, sys
import recerase.__main__ as program
import torch
from recerase.parallel import begin, workers
from recerase.runtime import pinned
def work(argv):
    begin()
    with pinned(3):
        workers().wait()
        print("threads", torch.get_num_threads(), file=sys.__stderr__, flush=True)
        workers().wait()
        if not workers().main:
            os.kill(os.getpid(), 9)
        workers().wait()
program._dispatch = work
program.main(["audit"])
"""
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def audit(world: World, subject: Path | str, *more: str) -> list[str]:
    return ["audit", str(subject), "--original", f"{world.home}/model", *world.at, *more]


def test_all_commands_are_those_of_one_process_also_after_failures(
    pair: Callable[..., Pair], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--set", "reassign_steps=2", "--set", "settle_steps=2", "--set", "pool=2"]
    for rank, size in enumerate((5, 6)):
        (tmp_path / f"rank{rank}").mkdir()
        (tmp_path / f"rank{rank}" / "ids.txt").write_text("\n".join(world.item_ids[:size]))
    at = [word for word in world.at if not word.startswith("--concept")]
    failing = [
        (False, ["audit", f"{world.home}/model", *at, "--concept", "@ids.txt", "-o", "differs.json", "-q"]),
        (True, audit(world, world.home / "model", "-o", "spoilt.json", "-q")),
    ]
    argvs = [
        world.train("trained"),
        ["erase", f"{world.home}/model", "--out", "erased", "-m", "tracer", *few, *world.at, "-q"],
        audit(world, world.home / "model", "-o", "audit.json", "-q"),
    ]
    started = pair([json.dumps([*failing, *((False, argv) for argv in argvs)])], code=COMMANDS, **THREADS)
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    codes = " ".join(["0", *(str(run(argv)) for argv in argvs[1:])])
    main, other = started.ended()
    assert [main.code, other.code] == [0, 0], main.err + other.err
    assert main.err.splitlines() == [
        "recerase: Process 1 of this run does not work on what the main one does: its concept differs. "
        "Give every machine the same inputs, versions and --threads.",
        "recerase: The mass is spoilt. Mend it.",
        f"4 4 {codes}",
    ]
    assert other.err.splitlines() == [f"4 4 {codes}"]
    assert other.out == ""
    assert started.files(1) == ["ids.txt"]
    two, one = started.homes[0], tmp_path / "alone"
    kept = [name for name in started.files(0) if not name.startswith(".spoilt.json.recerase-")]
    names = [str(path.relative_to(one)) for path in one.rglob("*")]
    names += ["trained", *(f"trained/{path.name}" for path in (world.home / "model").iterdir())]
    assert kept == sorted(["ids.txt", *names])

    weights, wanted = (load_file(path / "model.safetensors") for path in (two / "trained", world.home / "model"))
    assert weights.keys() == wanted.keys()
    assert all(abs(weights[name] - wanted[name]).max() < 1e-5 for name in wanted)
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


def test_a_killed_process_ends_the_other_and_threads_are_not_accelerates(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where OMP_NUM_THREADS is not set accelerate would choose the threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    main, other = pair([], code=KILLED).ended(60)
    assert (main.code, other.code) == (3, -9)
    assert "Another process of this run is gone, or did not answer for 120 s (" in main.err
    assert "Traceback" not in main.err + other.err
    assert "threads 3" in main.err
    assert "threads 3" in other.err


def test_ctrl_c_ends_both_and_one_process_goes_on(
    pair: Callable[..., Pair], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = pair(audit(world, world.home / "model", "-o", "audit.json"), code=SLEEPING, **THREADS)
    state = started.homes[0] / ".audit.json.recerase-state"
    until, pieces = time.monotonic() + 60, False
    while not pieces and time.monotonic() < until:
        time.sleep(0.1)
        pieces = bool([*state.glob("mass*"), *state.glob("lists*")])
    assert pieces
    started.signal(signal.SIGINT)
    began = time.monotonic()
    main, other = started.ended(60)
    assert (main.code, other.code) == (130, 130), main.err + other.err
    assert time.monotonic() - began < 20
    assert "waiting for 1 other process" in main.err
    assert "recerase: interrupted" in main.err or "stopped at once" in main.err
    assert started.files(1) == []
    monkeypatch.chdir(started.homes[0])
    assert run(audit(world, world.home / "model", "-o", "audit.json", "-q", "--resume")) in (0, 1, 5)
    assert started.files(0) == ["audit.json"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="command lines are read from /proc")
def test_accelerates_own_line_for_cpus_asks_for_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the README, and what accelerate itself makes of it where there is no GPU."""
    words = ["--num_processes", "2", "-m", "recerase", "audit"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RECERASE_PROCESSES", raising=False)
    args = launch.launch_command_parser().parse_args(words)
    args.mixed_precision, args.dynamo_backend, args.num_machines, args.use_cpu = "no", "no", 1, False
    program, environment = prepare_simple_launcher_cmd_env(args)
    assert program[1:] == ["-m", "recerase", "audit"]
    assert environment["ACCELERATE_USE_CPU"] == "False"
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, environment[name])
    shell = ["sh", "-c", "echo; read line", "accelerate", "launch", *words]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        assert _asked() == 2
        launcher.communicate(b"\n")


def test_processes_without_a_launcher_meet_privately_and_leave_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}
    begun = Link.__init__

    def meet(self: Link, *args: object) -> None:
        begun(self, *args)  # type: ignore[arg-type]
        place = Path(os.environ["RECERASE_MEETING"]).parent
        seen.update(mode=place.stat().st_mode & 0o777, place=place, listening=listening())

    monkeypatch.setattr(Link, "__init__", meet)
    monkeypatch.setenv("RECERASE_PROCESSES", "2")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    words = ["--out", "sids", "--codes", "8", "--dims", "16", "-q"]
    assert run(["tokenize", f"{world.home}/data", *words]) == 0
    assert seen["mode"] == 0o700
    assert not Path(str(seen["place"])).exists()
    if sys.platform == "linux":
        assert seen["listening"] == {"0100007F"}
    assert not torch.distributed.is_initialized()
    assert not PartialState._shared_state
    assert parallel._now == parallel._Now()
    assert dict(os.environ) == before
    assert (tmp_path / "sids" / "sids.parquet").read_bytes() == (world.home / "sids" / "sids.parquet").read_bytes()
    assert capfd.readouterr().err == ""


def listening() -> set[str]:
    """The IPv4 addresses this process listens at (Linux), as the kernel writes them; and any IPv6 one."""
    if not Path("/proc/self/fd").is_dir():
        return set()
    own = {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
