"""What a command says: stdout is data that parses, -q is silent, and no terminal, width or closed pipe breaks it."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest

from recerase.__main__ import run
from recerase.audit.policy import default_policy
from recerase.report.schema import read_report
from recerase.store import canonical_json

from .conftest import Job

Figure = Callable[..., None]
Said = Callable[[str], tuple[int, str, str]]

WIDTHS = (40, 80, 200)
ESCAPE = "\x1b"
AUDIT = (
    "audit {erased} --original {model} --concept {concept} --data {data} --policy {policy} --threads 1 --max-users 40"
)
ERASE = "erase {model} -m filter --concept {concept} --data {data} --policy {policy} --threads 1 --max-users 40"
COMPARE = (
    "compare {model} --concept {concept} --data {data} -m ga --seeds 0 --set ga.steps=1 --set ga.batch=4 --threads 1 "
    "--max-users 20"
)
JSON = {
    "list": "list --json",
    "list methods": "list methods --json",
    "policy explain": "policy explain {policy} --json",
    "concept": "concept {concept} --data {data} --sids {model} --json",
    "concept without SIDs": "concept {concept} --data {data} --show 0 --json",
    "inspect a checkpoint": "inspect {model} --json",
    "inspect SIDs": "inspect {sids} --json",
    "inspect data": "inspect {data} --json",
    "inspect a report": "inspect {report} --json",
    "patch show": "patch show {patch} --json",
    "audit": AUDIT + " --json -q",
}
PATHS = {
    "tokenize": "tokenize {data} --codes 8 --dims 8 --iterations 2 --out {out} -q",
    "train": "train {data} --sids {sids} --epochs 1 --width 8 --layers 1 --heads 1 --window 3 --threads 1 --out {out} -q",
    "recommend": "recommend {model} --data {data} --top 3 --threads 1 --out {out} -q",
    "policy init": "policy init --out {out}",
    "export blocklist": "export blocklist {model} --concept {concept} --data {data} --out {table} -q",
    "export sids": "export sids {sids} --as integers --out {table} -q",
    "export prefixes": "export prefixes {model} --data {data} --out {table} -q",
    "patch make": "patch make {model} {erased} --out {out} -q",
    "patch apply": "patch apply {model} {patch} --out {out} -q",
    "patch revert": "patch revert {erased} {patch} --out {out} -q",
    "import": "import jsonl {items} {acts} --out {out} -q",
    "erase": ERASE + " --out {out} -q",
    "compare": COMPARE + " --out {out} -q",
    "prepare": "prepare {model} --data {data} --set prepare_steps=1 --threads 1 --out {out} -q",
}
TABLES = {
    "list": "list",
    "list readers": "list readers",
    "policy explain": "policy explain",
    "policy check": "policy check {policy}",
    "concept": "concept {concept} --data {data} --sids {model}",
    "inspect a checkpoint": "inspect {model} -q",
    "inspect data": "inspect {data} -q",
    "patch show": "patch show {patch}",
    "report show": "report show {report}",
    "report verify": "report verify {report}",
    "erase --plan": ERASE + " --plan",
    "compare --plan": COMPARE + " --search 2 --out {out} --plan",
    "audit": AUDIT + " -q",
}
"""Commands that lay something out for people."""


def words(line: str, job: Job, **more: Path) -> list[str]:
    kept = ("data", "sids", "model", "erased", "report", "patch", "policy", "concept")
    names = {n: getattr(job, n) for n in kept}
    return shlex.split(line.format(**{n: shlex.quote(str(v)) for n, v in (names | more).items()}))


@pytest.fixture
def said(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """said(line): exit code, stdout and stderr of one command line, in this process."""
    items = [{"item_id": i, "title": f"thing {i}"} for i in "abc"]
    acts = [{"user_id": u, "item_id": i, "timestamp": t} for u in "xy" for t, i in enumerate("abca")]
    for name, rows in (("items.jsonl", items), ("acts.jsonl", acts)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {
        "items": tmp_path / "items.jsonl",
        "acts": tmp_path / "acts.jsonl",
        "out": tmp_path / "out",
        "table": tmp_path / "out.json",
    }

    def tell(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(words(line, job, **places))
        return (code, *capsys.readouterr())

    return tell


def rules_of(name: str, job: Job) -> list[str]:
    """The ids that a table of rules must show whole."""
    if name == "policy explain":
        return [rule.id for rule in default_policy().rules]
    return [f.rule.id for f in read_report(job.report).decision.findings] if name in ("report show", "audit") else []


@pytest.mark.parametrize("name", JSON)
def test_json_on_stdout_is_canonical_and_alone(name: str, said: Said, figure: Figure) -> None:
    code, out, err = said(JSON[name])
    assert (code, err) == (code if code in (0, 1, 5) and name == "audit" else 0, "")
    assert out.encode() == canonical_json(json.loads(out)) + b"\n"
    figure("interface: commands whose --json parses, canonical", 1, of=1)


@pytest.mark.parametrize("name", PATHS)
def test_a_command_that_makes_something_says_where_and_no_more(
    name: str, said: Said, tmp_path: Path, figure: Figure
) -> None:
    code, out, err = said(PATHS[name])
    assert code in (0, 5) if name == "erase" else code == 0
    assert err == ""
    made = tmp_path / ("out.json" if "{table}" in PATHS[name] else "out")
    assert out.splitlines()[-1] == str(made)
    assert name in ("erase", "compare") or len(out.splitlines()) == 1  # these show what was found first
    assert made.exists()
    figure("interface: commands silent on stderr with -q", 1, of=1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_tables_keep_their_width_and_their_names(
    name: str, width: int, said: Said, job: Job, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = said(TABLES[name])
    assert code in (0, 5) if name == "audit" else code == 0
    assert (err, ESCAPE in out) == ("", False)
    if name not in ("policy check", "report verify"):  # one line of text each, not to be folded
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    for rule in rules_of(name, job):
        assert re.search(rf"(?<![\w-]){re.escape(rule)}(?![\w-])", out), f"{rule} is not whole"
    if name == "report show":
        assert read_report(job.report).decision.verdict.value.upper() in out
    figure("interface: tables whole at 40, 80 and 200 columns", 1, of=1)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_verdict_is_seen_at_any_width(width: int, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, _, err = said(AUDIT)
    assert {0: "PASS", 1: "FAIL", 5: "INCONCLUSIVE"}[code] in err


def on_terminal(line: list[str], width: int, **environment: str) -> tuple[int, str]:
    """Exit code and everything said by a fresh process whose stdout and stderr are one terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "CI", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "recerase", *line], stdin=theirs, stdout=theirs, stderr=theirs,
        env=plain | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    return process.wait(), said.decode()


TERMINALS: list[tuple[int, dict[str, str], bool]] = [
    (40, {}, True),
    (80, {"NO_COLOR": "1"}, False),
    (200, {"TERM": "dumb"}, False),
    (80, {"FORCE_COLOR": "1"}, True),
]


@pytest.mark.parametrize(("width", "environment", "coloured"), TERMINALS)
def test_a_terminal_of_any_kind(
    width: int, environment: dict[str, str], coloured: bool, job: Job, figure: Figure
) -> None:
    for line in ("report show {report}", "policy explain", "nonsense")[:: 1 if width == 40 else 2]:
        code, out = on_terminal(words(line, job), width, **environment)
        assert code == (2 if line == "nonsense" else 0)
        assert "Traceback" not in out
        if line != "nonsense":
            assert (ESCAPE in out) == coloured
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
            assert max(len(row.rstrip()) for row in shown.splitlines()) <= width
            for rule in rules_of(line.split(" {")[0], job):
                assert rule in shown
        figure("interface: runs on a terminal without a broken row", 1, of=1)


def test_help_knows_no_colour(job: Job) -> None:
    code, out = on_terminal(["audit", "--help"], 80, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*(?<![0-9])(3[0-8]|4[0-8]|9[0-7])[;m]", out)


PIPED = [("list", "head -n 1"), ("policy explain", "true"), ("report show", "true"), ("audit", "true")]


@pytest.mark.parametrize(("name", "reader"), PIPED)
def test_a_reader_that_goes_away(
    name: str, reader: str, job: Job, figure: Figure, effort: Callable[[int, int], int]
) -> None:
    """`head` reads a line; `true` is gone before the first one is written."""
    code = (0, 5) if name == "audit" else (0,)
    for line in (TABLES[name], {"list": JSON["list"], "audit": JSON["audit"]}.get(name, ""))[: effort(1, 2)]:
        if line:
            command = shlex.join([sys.executable, "-m", "recerase", *words(line, job)])
            script = f"{command} | {reader}; exit ${{PIPESTATUS[0]}}"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
            assert done.returncode in code
            assert done.stderr == ""
            figure("interface: closed pipes without a traceback or a wrong exit code", 1, of=1)


def test_every_command_is_in_one_of_the_tables() -> None:
    """A new command must be added above, or said here to be tried elsewhere."""
    import typer

    from recerase.cli.app import app

    elsewhere = {"demo", "doctor"}  # tests/test_demo.py: it takes a minute; tests/cli/test_doctor.py
    elsewhere |= {
        "report card",
        "report attest",
        "report schema",
    }  # tests/report/test_told.py: files for others, as they want them
    group = typer.main.get_command(app)
    names = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        names |= {f"{name} {sub}" for sub in command.commands} if hasattr(command, "commands") else {name}
    tried = {line.split(" {")[0].split(" -")[0] for line in (*JSON.values(), *PATHS.values(), *TABLES.values())}
    missing = {n for n in names - elsewhere if not any(t == n or t.startswith(n + " ") for t in tried)}
    assert not missing - {"report bless", "report diff"}
