"""Runs the app; the one place where an exception becomes an exit code.

Exit 1 is kept for a violated rule, so nothing that goes wrong may end in Python's own exit 1: whatever no class of
errors.py claims is a bug, says so with its traceback, and exits 3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from recerase.errors import Interrupted, RecEraseError
from recerase.launching import companions
from recerase.parallel import together

_COULD_NOT_FINISH = 3
_USAGE = 2
_INTERRUPTED = 130
_STOPPED = (_INTERRUPTED, 143)
_GRACE = 3.0
"""Seconds a run has to end after a signal, before it is ended."""
_ENDED = b"\0"
_SHOW_CURSOR = b"\x1b[?25h"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `recerase` command; ends in SystemExit, or at once when it was told to stop."""
    # Waiting torch threads sleep instead of spinning: on a machine shared with others, spinning costs twentyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = run(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # it is done: what is left is to say how it ended
        signal.signal(number, signal.SIG_IGN)
    _close_stdout()
    if code in _STOPPED:
        os._exit(code)  # who was told to stop does not spend seconds on unloading torch
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code (DESIGN: 0, 1, 2, 3, 4, 5, 130, 143)."""
    try:
        with _stopped_by_signals():
            command = next((word for word in argv if not word.startswith("-")), "")
            with companions(command, argv):
                return together(command, lambda: _dispatch(argv))
    except RecEraseError as error:
        _complain(f"recerase: {error}", error)
        return error.exit_code
    except (KeyboardInterrupt, Interrupted) as error:
        _show_cursor()
        _complain("recerase: interrupted; nothing unfinished was published.", error)
        return error.exit_code if isinstance(error, Interrupted) else _INTERRUPTED
    except MemoryError as error:
        _complain("recerase: out of memory. Use a smaller --batch or --max-users.", error)
        return _COULD_NOT_FINISH
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # whoever asks about a path may meet it
            _complain(
                f"recerase: The path {error.filename!s:.80}... is longer than the system allows. Give a shorter one."
            )
            return _USAGE
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a device; torch may not have been imported
            _complain("recerase: out of memory on the device. Use a smaller --batch, or --device cpu.", error)
            return _COULD_NOT_FINISH
        traceback.print_exc()
        _complain("recerase: this is a bug; nothing was published. Please report the traceback above.")
        return _COULD_NOT_FINISH


def _dispatch(argv: Sequence[str]) -> int:
    import typer

    from recerase.cli.app import app

    try:
        result = app(args=list(argv), prog_name="recerase", standalone_mode=False)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except typer.TyperException as error:
        show = getattr(error, "show", None)
        if show is not None and type(error).__name__ == "NoArgsIsHelpError":
            show()  # a group alone: its help is the answer
        else:
            where = getattr(getattr(error, "ctx", None), "command_path", "recerase")
            message = " ".join(error.format_message().replace("Value error, ", "").split())
            _complain(f"recerase: {message if message[-1:] in '.?' else message + '.'} See `{where} --help`.")
        return _USAGE
    except SystemExit as error:  # typer's answer to a closed pipe
        return error.code if isinstance(error.code, int) and error.code != 1 else _COULD_NOT_FINISH
    if result == _INTERRUPTED:  # typer's answer to a KeyboardInterrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted once; a second one, or `_GRACE` seconds, end the process where it stands.

    The handler runs between two steps of Python, and one step can be a long call into a library. So a thread watches
    as well: it hears of a signal at once, and ends a process that has not ended by itself.
    """
    if threading.current_thread() is not threading.main_thread():  # the embedding program owns its signals
        yield
        return
    told: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        if len(told) == 1:
            raise Interrupted(signum)

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    wakeup = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, stop) for number in heard}
    watch = threading.Thread(target=_watch, args=(ears, heard), daemon=True)
    watch.start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.write(mouth, _ENDED)
        watch.join()
        os.close(mouth)
        os.close(ears)


def _watch(ears: int, heard: Sequence[int]) -> None:
    """Wait for the first signal, then for a second one, the end of the run or the end of patience."""
    first = 0
    while first not in heard:
        said = os.read(ears, 1)
        if said == _ENDED:
            return
        first = said[0]
    ready, _, _ = select.select([ears], [], [], _GRACE)
    if ready and os.read(ears, 1) == _ENDED:
        return
    _show_cursor()
    _complain("recerase: stopped at once; what was finished before is kept, and nothing is half published.")
    os._exit(128 + first)


def _show_cursor() -> None:
    """Bars hide the cursor, and stand between us and stderr; they may have been stopped before they could be left."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)


def _complain(text: str, error: BaseException | None = None) -> None:
    """One message on stderr, with what the error was noted to leave behind."""
    with contextlib.suppress(OSError):
        print(" ".join([text, *getattr(error, "__notes__", ())]), file=sys.stderr, flush=True)  # noqa: T201 - the edge of the program


def _close_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
