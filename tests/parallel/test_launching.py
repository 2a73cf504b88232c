"""Who starts other processes, how many, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recerase import launching, parallel
from recerase.__main__ import run
from recerase.connection import PeerError
from recerase.errors import UsageError
from recerase.launching import _asked, companions
from recerase.parallel import Workers, begin, together, workers


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, and eight cores."""
    for name in (*launching._PLACE, "MASTER_ADDR", "MASTER_PORT", "RECERASE_PROCESSES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel, "_now", parallel._Now())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda value: monkeypatch.setenv("RECERASE_PROCESSES", value)


@pytest.mark.parametrize("value", ["two", "-1", "0", "1.5", "²", "9", "9" * 5000])
def test_a_number_of_processes_that_is_none_or_too_many_is_refused(asked: Callable[[str], None], value: str) -> None:
    asked(value)
    with pytest.raises(UsageError, match=r"RECERASE_PROCESSES|there are 8 cores"), companions("audit", []):
        pytest.fail("nothing may run")


def test_nothing_is_started_for_one_process_s_commands_or_under_a_launcher(
    asked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    asked("3")
    with companions("report", []):
        assert together("report", lambda: begin() or workers().size) == 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with companions("audit", []):
        assert parallel._now.crew is None
        assert "RECERASE_MEETING" not in os.environ


@pytest.mark.parametrize("argv", [["audit", "--help"], ["audit", "--bogus"], ["audit"], ["erase", "--plan"]])
def test_nothing_is_started_before_the_command_is_understood(
    asked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: list[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(parallel, "Link", lambda *_: pytest.fail("the processes met"))
    monkeypatch.chdir(tmp_path)
    asked("3")
    assert run(argv) == (0 if "--help" in argv else 2)


class Started:
    """A process that was started, by these words, in this environment."""

    def __init__(self, program: list[str], env: dict[str, str], **_: object) -> None:
        self.program, self.env, self.killed = program, env, False
        everybody.append(self)

    def kill(self) -> None:
        self.killed = True

    def wait(self, seconds: float) -> None: ...

    def poll(self) -> int | None:
        return None

    def terminate(self) -> None:
        pytest.fail("it has ended")


everybody: list[Started] = []


@pytest.mark.parametrize("shadowed", [False, True])
def test_companions_get_places_and_the_environment_is_given_back(
    asked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, shadowed: bool
) -> None:
    """A directory that this process takes no modules from gives the others none either."""
    everybody.clear()
    monkeypatch.setattr(subprocess, "Popen", Started)
    elsewhere = [place for place in sys.path if place not in ("", os.getcwd())]
    monkeypatch.setattr(sys, "path", ["", *elsewhere] if shadowed else elsewhere)
    asked("3")
    before = dict(os.environ)
    with pytest.raises(PeerError, match="stop"), companions("audit", ["audit", "model"]):
        assert not everybody
        place = Path(os.environ["RECERASE_MEETING"]).parent
        assert place.stat().st_mode & 0o777 == 0o700
        together("audit", stopping)
    assert [one.program[1:] for one in everybody] == [
        [*([] if shadowed else ["-P"]), "-m", "recerase", "audit", "model"]
    ] * 2
    assert [(one.env["RANK"], one.env["WORLD_SIZE"], one.env["RECERASE_MAIN"]) for one in everybody] == [
        ("1", "3", str(os.getpid())),
        ("2", "3", str(os.getpid())),
    ]
    assert all(one.env.get("GLOO_SOCKET_IFNAME") == "lo" for one in everybody) or sys.platform != "linux"
    assert all(one.killed for one in everybody)
    assert not place.exists()
    assert dict(os.environ) == before
    assert parallel._now == parallel._Now()


def stopping() -> int:
    begin()
    begin()
    assert workers() == Workers(0, 3)
    raise PeerError("stop")


def test_a_companion_that_ends_before_the_meeting_ends_the_run(
    asked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked("2")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    began = time.monotonic()
    with (
        pytest.raises(PeerError, match=r"Process 1 of 2 ended with 1 before there was anything to share\. .*=1 works"),
        companions("audit", []),
    ):
        together("audit", lambda: begin() or workers().wait() or 0)
    assert time.monotonic() - began < 60
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PeerError, match="Process 1 of 2 cannot be started"), companions("audit", []):
        together("audit", lambda: begin() or 0)


def test_companions_do_not_outlive_the_main_process() -> None:
    """The one in the middle starts one that watches it, says its number, and is killed."""
    watching = "import os; from recerase.launching import _end_with; _end_with(os.getppid())"
    middle = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {watching!r}]).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", middle], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        companion = int(main.stdout.readline())
        time.sleep(0.5)
        main.kill()
    until = time.monotonic() + 60
    while alive(companion) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(companion)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else False
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="command lines are read from /proc")
@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["accelerate", "launch", "--num_processes", "3"], 3),
        (["accelerate.commands.launch", "--num-processes=4", "--num_machines", "1"], 4),
        (["accelerate", "launch", "--num_processes", "x"], "how many is not in its command line"),
        (["accelerate", "launch"], "how many is not in its command line"),
        (["accelerate", "launch", "--num_processes", "9"], "there are 8 cores"),
        (
            ["accelerate", "launch", "--num_machines=2", "--num_processes", "4"],
            r"across machines on CPUs\. Use torchrun",
        ),
        (["another", "--num_processes", "3"], 1),
        ([], 1),
    ],
)
def test_the_number_that_accelerate_was_given_is_read_off_its_command_line(
    monkeypatch: pytest.MonkeyPatch, words: list[str], count: int | str
) -> None:
    program = ["sh", "-c", "echo; read line", "sh", *words]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()  # while a program is being loaded its command line is empty
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "False")  # what it says without --cpu, also where there is no GPU
        monkeypatch.setenv("MASTER_PORT", "29500")
        if isinstance(count, int):
            assert _asked() == count
        else:
            with pytest.raises(UsageError, match=count):
                _asked()
        monkeypatch.delenv("MASTER_PORT")
        assert _asked() == 1
        launcher.communicate(b"\n")
