"""Real signals to real processes: the exit code within five seconds, what is kept, and the same bytes when continued.

Most processes are forked from one that has everything imported and has never computed, so that a hundred of them cost what one
start of torch costs; one a signal goes the whole way from `python -m recerase`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.reliability.conftest import SHAPE, SMALL_AUDITS, Job

from recerase.report.schema import read_report, report_bytes
from recerase.resume import state_directory
from recerase.store import read_manifest, verify_manifest

SOON = 5.0
"""Seconds from the signal to the end of the process, which the issue promises."""
EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
NURSERY = (
    """
import json, os, signal, sys
import faiss, pyarrow.parquet, safetensors.numpy, torch, transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, T5ForConditionalGeneration
import recerase.api, recerase.audit.run, recerase.cli.app, recerase.erase.methods, recerase.layouts.native
import recerase.model.decode, recerase.model.mass, recerase.model.training
from recerase import __main__
"""
    + SMALL_AUDITS
    + """
for line in sys.stdin:
    argv, errors = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        try:
            __main__.main(argv)
        except SystemExit as end:
            os._exit(end.code)  # the second that Python takes to leave torch is nobody's
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
)


class Nursery:
    """Starts processes that run one command line each."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self.parent = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet()
        )

    def start(self, argv: list[str]) -> int:
        assert self.parent.stdin is not None
        self.parent.stdin.write(json.dumps([argv, str(self.errors)]) + "\n")
        self.parent.stdin.flush()
        return self._told()

    def ended(self) -> int:
        """Wait for the process and return its exit code."""
        return self._told()

    def close(self) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.close()
        self.parent.wait(timeout=60)

    def _told(self) -> int:
        assert self.parent.stdout is not None
        return int(self.parent.stdout.readline())


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CI": "1"}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery") / "errors.txt")
    made.start(["--version"])  # returns when all is imported
    made.ended()
    yield made
    made.close()


def line(job: Job, name: str, out: Path) -> list[str]:
    judged = [
        f"--data={job.data}",
        f"--concept={job.concept}",
        f"--policy={job.policy}",
        "--threads=1",
        "--max-users=60",
    ]
    return {
        "train": ["train", f"{job.data}", f"--sids={job.sids}", f"--out={out}", "--epochs=6", *SHAPE],
        "erase": ["erase", f"{job.model}", f"--out={out}", "-m", "retrain", *judged],
        "audit": ["audit", f"{job.erased}", f"--original={job.model}", "-o", f"{out}", *judged],
    }[name]


def published(out: Path) -> bytes:
    if out.is_dir():
        verify_manifest(out)
        return repr(sorted(read_manifest(out)["files"].items())).encode()
    return report_bytes(replace(read_report(out), run={}))


def wait_for_handler(pid: int) -> None:
    """Until the process has said what it does on SIGTERM: before that it is Python that is starting, not recerase."""
    deadline = time.monotonic() + 60
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = next((int(row.split()[1], 16) for row in status.splitlines() if row.startswith("SigCgt")), 0)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", EXITS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["train", "erase", "audit"])
def test_a_signal_at_any_moment_and_the_same_command_again_give_the_straight_result(
    name: str,
    number: signal.Signals,
    job: Job,
    nursery: Nursery,
    straight: Callable[[str], tuple[bytes, float, int]],
    tmp_path: Path,
    effort: Callable[[int, int], int],
    figure: Callable[..., None],
) -> None:
    wanted, seconds, code = straight(name)
    rng, times = random.Random(f"{name} {number}"), effort(1, 10)
    late = wrong = hit = tries = 0
    while hit < times and tries < 4 * times:
        tries += 1
        out = tmp_path / f"{tries}{'.json' if name == 'audit' else ''}"
        pid = nursery.start(line(job, name, out))
        wait_for_handler(pid)
        time.sleep(rng.uniform(0.0, 0.8) * seconds)
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):  # it was quicker than the straight one
            os.kill(pid, number)
        ended = nursery.ended()
        late += time.monotonic() - began > SOON
        hit += ended == EXITS[number]
        said = nursery.errors.read_text()
        assert ended in (code, EXITS[number]), said
        if ended in (130, 143):
            assert "recerase: interrupted; nothing unfinished was published." in said
            assert "Traceback" not in said
            assert (f"kept in {state_directory(out)}: run the" in said) == state_directory(out).exists()
        if not out.exists():
            nursery.start(line(job, name, out))
            assert nursery.ended() == code, nursery.errors.read_text()
        wrong += published(out) != wanted
    figure(f"signals: {number.name} and the same command again, digests that differ", wrong, of=hit)
    if number != signal.SIGKILL:
        figure("signals: SIGINT and SIGTERM not obeyed within 5 s", late, of=hit)
    assert wrong == 0
    assert late == 0
    assert hit == times
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def straight(
    job: Job, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[bytes, float, int]]:
    """straight(name): what an uninterrupted run publishes, the seconds it takes, and its exit code."""
    known: dict[str, tuple[bytes, float, int]] = {}

    def run(name: str) -> tuple[bytes, float, int]:
        if name not in known:
            out = tmp_path_factory.mktemp("straight") / f"out{'.json' if name == 'audit' else ''}"
            began = time.monotonic()
            nursery.start(line(job, name, out))
            code = nursery.ended()
            assert code in (0, 5), nursery.errors.read_text()
            known[name] = published(out), time.monotonic() - began, code
        return known[name]

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_whole_process_on_a_terminal_gives_it_back(job: Job, tmp_path: Path, number: signal.Signals) -> None:
    """With bars on a terminal, while torch is being imported or later: the code, the message, the cursor."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "recerase", *line(job, "train", tmp_path / "out")]
    environment = {name: value for name, value in quiet().items() if name != "CI"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    wait_for_handler(process.pid)
    if number == signal.SIGINT:
        while b"\x1b[?25l" not in seen:  # the bars are there, and the cursor is not
            seen += os.read(ours, 4096)
    began = time.monotonic()
    process.send_signal(number)
    seen += drained(ours)
    assert process.wait(timeout=60) == EXITS[number]
    assert time.monotonic() - began < SOON
    assert b"interrupted; nothing unfinished was published." in seen
    assert seen.rfind(b"\x1b[?25h") >= seen.rfind(b"\x1b[?25l")
    assert not (tmp_path / "out").exists()


def drained(descriptor: int) -> bytes:
    """All that comes until the other end is closed."""
    seen = b""
    while True:
        try:
            seen += os.read(descriptor, 4096)
        except OSError:  # a terminal without a process reads as an error
            return seen


STUCK = """
import ctypes, sys, time
from pathlib import Path
from recerase import __main__, api
def slow(*_, **__):
    Path({ready!r}).write_text("1")
    {body}
api.inspect = slow
__main__.main(["inspect", "x"])
"""
IN_C = """
    mutex, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    c.pthread_mutex_lock(mutex), c.pthread_mutex_lock(mutex)  # the second waits for the first, whatever signal comes
"""
IN_PYTHON = """
    while True:
        try: time.sleep(60)
        except BaseException: pass
"""


@pytest.mark.parametrize("body", [IN_C, IN_PYTHON], ids=["a long call", "an exception swallowed"])
@pytest.mark.parametrize("signals", [1, 2])
def test_a_process_that_does_not_end_is_ended(body: str, signals: int, tmp_path: Path) -> None:
    """One signal: within five seconds. A second one: at once."""
    script = STUCK.format(ready=str(tmp_path / "ready"), body=body)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=quiet())
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    began = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - began < (SOON if signals == 1 else 2.0)
    assert "stopped at once" in said
