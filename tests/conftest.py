"""What every test may count on: one torch thread, real data or a stated reason to skip, steady hypothesis runs.

The tests that prove a promise by numbers (kills, flips, examples) say how many with `figure`; the numbers of a run are
summed over its tests and printed as one table at its end, and written to $RECERASE_FIGURES for benchmarks/reliability.py.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", parent=settings.get_profile("tests"), max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))

REPOSITORY = Path(__file__).resolve().parent.parent
SOAK = float(os.environ.get("RECERASE_SOAK") or 0)
"""0 in `make test`, 1 in `make soak`; a share between them runs that share of a soak's counts."""
Count = TypeVar("Count", int, float)


def counted(quick: Count, soak: Count) -> Count:
    """How much is done in this run: `quick`, or the soak's count times its share, and never less than `quick`."""
    return max(quick, type(soak)(soak * SOAK))


@pytest.fixture(scope="session")
def effort() -> Callable[[Count, Count], Count]:
    """`effort(10, 200)`: the first in `make test`, the second in `make soak`."""
    return counted


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`figure("kills: unreadable targets", 0, of=10)`: one number of the reliability table.

    Numbers under one name are summed over all tests that tell them, and so is what they are `of`; a text is kept as it is.
    """

    def tell(name: str, value: int | str, of: int | None = None) -> None:
        record_property("figure", [name, value, of])

    return tell


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of every figure told in this run, summed by name."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    told = [value for report in reports for key, value in report.user_properties if key == "figure"]
    table: dict[str, dict[str, Any]] = {}
    for name, value, of in told:
        row = table.setdefault(name, {"value": type(value)(), "of": None})
        row["value"] = value if isinstance(value, str) else row["value"] + value
        row["of"] = of if row["of"] is None else row["of"] + (of or 0)
    if table:
        terminalreporter.section("figures" + (f" (soak, share {SOAK:g})" if SOAK else ""))
        for name, row in sorted(table.items()):
            of = "" if row["of"] is None else f" of {row['of']:,}"
            value = f"{row['value']:,}" if isinstance(row["value"], int) else row["value"]
            terminalreporter.write_line(f"{name:<72} {value}{of}")
    if path := os.environ.get("RECERASE_FIGURES"):
        ended = {kind: len(terminalreporter.stats.get(kind, ())) for kind in ("passed", "failed", "error", "skipped")}
        whole = {"date": date.today().isoformat(), "soak": SOAK, **ended, "figures": dict(sorted(table.items()))}
        Path(path).write_text(json.dumps(whole, indent=1) + "\n")


IN_MEMORY = Path("/dev/shm")


def memory_for_files() -> Path | None:
    """Where files cost no disk, if there is room: a suite publishes tens of thousands of files, and waits for each fsync.

    Not in a soak, nor where somebody chose a place: that is what the disk is like under real runs. What must be seen on a
    disk asks for `on_disk`.
    """
    chosen = any(os.environ.get(name) for name in ("TMPDIR", "PYTEST_DEBUG_TEMPROOT"))
    if SOAK or chosen or not os.access(IN_MEMORY, os.W_OK | os.X_OK):
        return None
    room, about = os.statvfs(IN_MEMORY), Path("/proc/meminfo").read_text()
    left = next((int(row.split()[1]) for row in about.splitlines() if row.startswith("MemAvailable:")), 0)
    return IN_MEMORY if min(room.f_bavail * room.f_frsize, left << 10) > 4 << 30 else None


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory like tmp_path, on the disk of temporary files also where tmp_path is in memory."""
    with tempfile.TemporaryDirectory(prefix="recerase-test-") as place:
        yield Path(place).resolve()


def pytest_configure() -> None:
    """Temporary files are put where they are quick; the run that all its processes share is made by the first of them.

    A suite started in the background ignores Ctrl-C, and so would every process it starts; tests send that signal.
    """
    if quick := memory_for_files():
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(quick)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[object]:
    """Modules and thousands of tests stay to the end: no search for garbage among them while they come, nor afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tests run side by side: one torch thread each, given back at the end."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has in the environment or in a settings file next door must not decide a test."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The folder of real data sets: RECERASE_DATA, or shared/data beside the repository."""
    place = Path(os.environ.get("RECERASE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"no data sets at {place}: set RECERASE_DATA to a folder that holds them")
    return place
