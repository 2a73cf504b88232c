"""Runs the app; the one place where an exception becomes an exit code.

Exit 1 is kept for a violated rule, so nothing that goes wrong may end in Python's own exit 1: whatever no class of
errors.py claims is a bug, says so with its traceback, and exits 3.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from recerase.errors import Interrupted, RecEraseError

_COULD_NOT_FINISH = 3
_USAGE = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `recerase` command; always ends in SystemExit."""
    # Waiting torch threads sleep instead of spinning: on a machine shared with others, spinning costs twentyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = run(sys.argv[1:] if argv is None else argv)
    _close_stdout()
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code (DESIGN: 0, 1, 2, 3, 4, 5, 130, 143)."""
    previous = _on_sigterm()
    try:
        return _dispatch(argv)
    except RecEraseError as error:
        _complain(f"recerase: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("recerase: interrupted; nothing was published.")
        return _INTERRUPTED
    except MemoryError:
        _complain("recerase: out of memory. Use a smaller --batch or --max-users.")
        return _COULD_NOT_FINISH
    except Exception:
        traceback.print_exc()
        _complain("recerase: this is a bug; nothing was published. Please report the traceback above.")
        return _COULD_NOT_FINISH
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _dispatch(argv: Sequence[str]) -> int:
    import typer

    from recerase.cli.app import app

    try:
        result = app(args=list(argv), prog_name="recerase", standalone_mode=False)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except typer.TyperException as error:
        show = getattr(error, "show", None)
        if show is None:
            _complain(f"recerase: {error}")
        else:
            show()
        return _USAGE
    except SystemExit as error:  # typer's answer to a closed pipe
        return error.code if isinstance(error.code, int) and error.code != 1 else _COULD_NOT_FINISH
    if result == _INTERRUPTED:  # typer's answer to Ctrl-C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _on_sigterm() -> Any:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted("Interrupted by SIGTERM; nothing was published.", exit_code=143)

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: the embedding program owns its signals
        return None


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the edge of the program


def _close_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
