"""Regular expressions over texts, in a process of their own that may not think for long.

Python's `re` is what a concept spec means, and it can take centuries over `(a+)+$`; while it does, nothing interrupts it. So
this file is also a script, run by `search` as a child whose CPU time is bounded: too slow is an error, never a wait. It
imports nothing but the standard library, so that the child starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PLAIN = re.compile(r"(?:\\[bBdDsSwW]|[^\\^$.|?*+()\[\]{}])*")
"""Patterns without repetition, choice or group: every text is searched in time linear in its length."""
_SECONDS, _SECONDS_A_TEXT = 0.5, 0.0005


class PatternError(ValueError):
    """Why a pattern cannot be used, in words that finish the sentence `The regular expression '...' `."""


def search(pattern: str, texts: Sequence[str]) -> list[bool]:
    """[len(texts)] whether the pattern is found in each text, ignoring case. Raises PatternError."""
    if _PLAIN.fullmatch(pattern):
        return _found(pattern, texts)
    question = json.dumps([pattern, list(texts), _SECONDS + _SECONDS_A_TEXT * len(texts)])
    command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    try:
        done = subprocess.run(command, input=question.encode(), capture_output=True, check=False)
    except OSError as error:
        raise PatternError(f"cannot be tried: no process to try it in starts ({error.strerror})") from error
    if done.returncode == -signal.SIGVTALRM:
        raise PatternError("takes too long to match: it repeats what already repeats")
    if done.returncode:
        raise PatternError("is more than can be matched")
    answer: list[bool] | str = json.loads(done.stdout)
    if isinstance(answer, str):
        raise PatternError(answer)
    return answer


def _found(pattern: str, texts: Sequence[str]) -> list[bool]:
    try:
        regex = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise PatternError(f"is wrong at position {error.pos}: {error.msg}") from error
    except (RecursionError, OverflowError) as error:
        raise PatternError("is nested too deep or repeats too often") from error
    return [regex.search(text) is not None for text in texts]


def _answer() -> None:
    """The child: read the question, bound the CPU time left, write the answer."""
    pattern, texts, seconds = json.load(sys.stdin)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # whose signal nobody handles: it ends the process
    try:
        answer: list[bool] | str = _found(pattern, texts)
    except PatternError as error:
        answer = str(error)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _answer()
