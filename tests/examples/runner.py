"""A place for the steps of a CI job: bash runs them, and the `recerase` that they call is this process.

Starting torch for each step would take most of a test's time. So `recerase` on their PATH is a small script that sends its arguments
and its directory here and ends with the exit code it is told; `run` answers, and nothing else of the command is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recerase.__main__ import run

_CALLER = """#!{python} -IS
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({meeting!r})
line.sendall(json.dumps([os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
answer = b""
while part := line.recv(65536):
    answer += part
code, out, err = json.loads(answer)
sys.stdout.write(out)
sys.stderr.write(err)
sys.stdout.flush()
os._exit(code)
"""


@dataclass(frozen=True)
class Done:
    """How a script ended."""

    code: int
    out: str
    err: str


@dataclass
class Runner:
    """Runs scripts as a CI system does; `calls` are the command lines of recerase that they made."""

    home: Path
    """PATH's first directory."""
    line: socket.socket
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    calls: list[list[str]] = field(default_factory=list)

    def script(self, shell: list[str], text: str, cwd: Path, variables: Mapping[str, str]) -> Done:
        """Run `text` as a file by `shell`, with nothing in the environment but PATH and `variables`."""
        file = self.home / "script"
        file.write_text(text)
        env = {"PATH": f"{self.home}:/usr/bin:/bin", "HOME": str(self.home), **variables}
        with open(self.home / "out", "w+") as out, open(self.home / "err", "w+") as err:
            process = subprocess.Popen([*shell, str(file)], cwd=cwd, env=env, stdout=out, stderr=err)
            deadline = time.monotonic() + 240
            while process.poll() is None:
                assert time.monotonic() < deadline
                self._answer()
            out.seek(0)
            err.seek(0)
            return Done(process.returncode, out.read(), err.read())

    def _answer(self) -> None:
        try:
            caller, _ = self.line.accept()
        except TimeoutError:
            return
        with caller, caller.makefile("r") as heard, self.monkeypatch.context() as patched:
            cwd, argv = json.loads(heard.readline())
            self.calls.append(argv)
            patched.chdir(cwd)
            self.capsys.readouterr()
            code = run(argv)
            out, err = self.capsys.readouterr()
            caller.sendall(json.dumps([code, out, err]).encode())


@pytest.fixture
def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    home = Path(tempfile.mkdtemp(prefix="ci-", dir="/tmp"))  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(home / "meeting"))
        line.listen()
        line.settimeout(0.05)
        (home / "recerase").write_text(_CALLER.format(python=sys.executable, meeting=str(home / "meeting")))
        os.chmod(home / "recerase", 0o755)
        (home / "python").symlink_to(sys.executable)
        yield Runner(home, line, capsys, monkeypatch)
    shutil.rmtree(home)
