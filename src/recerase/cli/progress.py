"""What a command says while it works: on stderr, as bars on a terminal and as plain lines anywhere else.

stdout belongs to data alone, so everything here writes to stderr; `emit` is the one way to stdout. Plain lines are
throttled, so that a CI log of a long run stays short. rich is imported when something is said: `--help` of a command
must not pay for bars.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from recerase.types import Observer

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_WORTH_A_LINE = 5.0


def stderr_console() -> Console:
    """The console for summaries and progress."""
    return _console(sys.stderr)


def emit(renderable: Any) -> None:
    """Write data to stdout. A reader that went away (`| head`) is no error and changes no exit code."""
    if isinstance(renderable, str):
        text = renderable if renderable.endswith("\n") else renderable + "\n"
    else:
        console = _console(sys.stdout)
        with console.capture() as capture:  # rich itself would answer a closed pipe with exit code 1
            console.print(renderable)
        text = capture.get()
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:  # a stdout of another encoding, or a file name that is no text
            known = sys.stdout.encoding
            sys.stdout.write(text.encode(known, "backslashreplace").decode(known))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def emit_annotations(text: str) -> None:
    """Workflow commands to stderr, which a runner reads as it reads stdout: each on a line of its own, never folded."""
    known = sys.stderr.encoding or "utf-8"
    with suppress(BrokenPipeError):
        sys.stderr.write(text.encode(known, "backslashreplace").decode(known))
        sys.stderr.flush()


def _console(stream: TextIO) -> Console:
    """A file gets 120 columns unless COLUMNS says otherwise; under NO_COLOR there is no escape at all, not even for bold."""
    from rich.console import Console

    wide = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    system: Any = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stream is sys.stderr, highlight=False, width=None if wide else 120, color_system=system)


def say(text: str, quiet: bool = False) -> None:
    """One line of summary on stderr, unless the user asked for quiet."""
    if not quiet:
        stderr_console().print(text, markup=False, soft_wrap=True)


@contextmanager
def observing(quiet: bool = False) -> Iterator[Observer]:
    """An observer that suits where stderr goes: bars, plain lines, or nothing; of several processes the main one tells."""
    from recerase.parallel import Attentive, begin, workers

    begin()
    others = workers().size - 1
    with _observing(quiet or not workers().main) as observer:
        if others:
            observer.note(f"waiting for {others} other process{'es' if others > 1 else ''}")
        yield Attentive(observer) if others else observer


@contextmanager
def _observing(quiet: bool) -> Iterator[Observer]:
    from recerase.types import SILENT

    if quiet:
        yield SILENT
        return
    console = stderr_console()
    if sys.stderr.isatty() and not console.is_dumb_terminal and not os.environ.get("CI"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield BarObserver(progress)
    else:
        yield LineObserver(console)


class BarObserver:
    """A rich bar a task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def start(self, task: str, total: int | None) -> None:
        self._tasks[task] = self._progress.add_task(task, total=total, figures="")

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        if task in self._tasks:
            self._progress.update(self._tasks[task], advance=step, figures=_figures(figures))

    def finish(self, task: str) -> None:
        if task in self._tasks:
            self._progress.remove_task(self._tasks.pop(task))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False)


class LineObserver:
    """A plain line every ten seconds of a task, and one at the end of a task that took five."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._totals: dict[str, int | None] = {}
        self._done: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def start(self, task: str, total: int | None) -> None:
        self._totals[task], self._done[task] = total, 0
        self._began[task] = self._last[task] = time.monotonic()

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        if task not in self._done:
            return
        self._done[task] += step
        now = time.monotonic()
        if now - self._last[task] >= _SECONDS_BETWEEN_LINES:
            self._last[task] = now
            total = self._totals[task]
            count = f"{self._done[task]}/{total}" if total else f"{self._done[task]}"
            self.note(f"{task}: {count} {_figures(figures)}".rstrip())

    def finish(self, task: str) -> None:
        seconds = time.monotonic() - self._began.get(task, 0.0)
        if self._done.pop(task, None) is not None and seconds >= _SECONDS_WORTH_A_LINE:
            self.note(f"{task}: done in {seconds:.1f} s")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _figures(figures: dict[str, float | str]) -> str:
    return " ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in figures.items()
    )
