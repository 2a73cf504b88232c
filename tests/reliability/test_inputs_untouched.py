"""No command changes its input by a bit, a time or a mode, and none writes where its input is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.reliability.conftest import FAST, SHAPE, Job

from recerase.__main__ import run
from recerase.catalog import load_catalogue

State = dict[str, tuple[int, int, int, int, bytes]]


def state(directory: Path) -> State:
    """Everything below a directory: kind and mode, identity, time of last write, time of any change, content."""
    found: State = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        about = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        name = path.relative_to(directory).as_posix()
        found[name] = (about.st_mode, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, content)
    return found


@pytest.fixture(scope="module")
def given(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands can be given besides the job: CSV files, embeddings, a list of items, a settings file."""
    place = tmp_path_factory.mktemp("given")
    catalogue = load_catalogue(job.data)
    (place / "items.csv").write_text("item_id,title\na,Alpha\nb,Beta\nc,Gamma\n")
    (place / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nv,c,1\n")
    (place / "items.txt").write_text("\n".join(catalogue.items.item_ids[:5]) + "\n")
    (place / "recerase.toml").write_text(f'data = "{job.data}"\ncheckpoint = "{job.model}"\n')
    np.save(place / "points.npy", np.random.default_rng(0).normal(size=(len(catalogue.items), 8)).astype(np.float32))
    return place


ON = ["--data={data}", "--concept={concept}", "--policy={policy}", "--threads=1", "-q"]
COMMANDS: dict[str, list[str]] = {
    "import": ["import", "csv", "{given}/items.csv", "{given}/interactions.csv", "--out", "{new}"],
    "tokenize": ["tokenize", "{data}", "--out", "{new}", "--codes", "8", "--dims", "8", "-q"],
    "tokenize --embeddings": [
        *("tokenize", "{data}", "--embeddings", "{given}/points.npy"),
        *("--out", "{new}", "--codes", "8", "-q"),
    ],
    "tokenize --extend": ["tokenize", "{data}", "--extend", "{sids}", "--out", "{new}", "-q"],
    "export sids": ["export", "sids", "{sids}", "--as", "integers", "--out", "{new}", "-q"],
    "train": ["train", "{data}", "--sids", "{sids}", "--out", "{new}", "--epochs", "1", *SHAPE, "-q"],
    "train --without": [
        *("train", "{data}", "--sids", "{sids}", "--without", "@{given}/items.txt"),
        *("--out", "{new}", "--epochs", "1", *SHAPE, "-q"),
    ],
    "recommend": ["recommend", "{model}", "--data", "{data}", "--top", "3", "--out", "{new}.parquet", "-q"],
    "recommend --settings": [
        "recommend",
        "--settings",
        "{given}/recerase.toml",
        "--top",
        "3",
        "--out",
        "{new}.parquet",
    ],
    "inspect a checkpoint": ["inspect", "{model}"],
    "inspect SIDs": ["inspect", "{sids}"],
    "inspect data": ["inspect", "{data}"],
    "inspect a report": ["inspect", "{report}"],
    "concept": ["concept", "{concept}", "--data", "{data}", "--sids", "{sids}"],
    "audit": [
        *("audit", "{erased}", "--original", "{model}", "--reference", "{model}"),
        *("-o", "{new}.json", "-o", "{new}.html", *ON),
    ],
    "prepare": [
        *("prepare", "{model}", "--data={data}", "--set", "prepare_steps=1"),
        *("--out", "{new}", "--threads=1", "-q"),
    ],
    "erase with filter": ["erase", "{model}", "--out", "{new}", "-m", "filter", "-o", "{new}.md", *ON],
    "erase with tracer": ["erase", "{model}", "--out", "{new}", "-m", "tracer", *FAST, *ON],
    "erase --plan": ["erase", "{model}", "--data={data}", "--concept={concept}", "--plan"],
    "compare": [
        *("compare", "{model}", "--data={data}", "--concept={concept}", "--reference", "{model}", "-m", "ga,retrain"),
        *("--seeds", "0", "--set", "ga.steps=1", "--search", "2", "--max-users", "20", "--threads=1", "-q"),
        *("--out", "{new}", "-o", "{new}.md"),
    ],
    "compare --plan": ["compare", "{model}", "--data={data}", "--concept={concept}", "--out", "{new}", "--plan"],
    "report show": ["report", "show", "{report}", "-o", "{new}.md"],
    "report verify": ["report", "verify", "{report}", "--subject", "{erased}", "--data", "{data}"],
    "report diff": ["report", "diff", "{report}", "{erased}/report.json"],
    "report card": ["report", "card", "{report}", "--out", "{new}.md"],
    "report schema": ["report", "schema"],
    "doctor": ["doctor"],
    "report bless": ["report", "bless", "{report}", "--reason", "a test", "--out", "{new}.json"],
    "export blocklist": [
        *("export", "blocklist", "{model}", "--data={data}", "--concept={concept}", "--out", "{new}.json"),
    ],
    "export prefixes": [
        *("export", "prefixes", "{model}", "--data={data}", "--concept={concept}", "--out", "{new}.parquet"),
    ],
    "patch make": ["patch", "make", "{model}", "{erased}", "--out", "{new}.safetensors"],
    "patch apply": ["patch", "apply", "{model}", "{patch}", "--out", "{new}"],
    "patch revert": ["patch", "revert", "{erased}", "{patch}", "--out", "{new}"],
    "patch show": ["patch", "show", "{patch}"],
    "policy init": ["policy", "init", "--out", "{new}.toml"],
    "policy check": ["policy", "check", "{policy}"],
    "policy explain": ["policy", "explain", "{policy}"],
    "list": ["list"],
}


def words(line: list[str], job: Job, given: Path, new: Path) -> list[str]:
    kept = ("data", "sids", "model", "erased", "report", "patch", "policy", "concept")
    places = {name: getattr(job, name) for name in kept}
    return [word.format(**places, given=given, new=new) for word in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leaves_its_inputs_as_they_are(
    job: Job, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[..., None], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state(job.home), state(given)
    code = run(words(COMMANDS[name], job, given, tmp_path / "new"))
    assert code in ((0, 1, 5) if name.startswith(("audit", "erase with")) else (0,))
    assert (state(job.home), state(given)) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    figure("inputs: commands that changed one", 0, of=1)


def test_every_command_is_among_them() -> None:
    from typer.main import get_command

    from recerase.cli.app import app

    leaves = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        leaves |= {f"{name} {part}" for part in parts} if parts else {name}
    tested = {
        " ".join(line[: 2 if line[0] in ("export", "patch", "policy", "report") else 1]) for line in COMMANDS.values()
    }
    assert tested == leaves - {
        "demo",
        "report attest",
    }  # tests/report/test_told.py has it: it wants a report of the very checkpoint


def test_the_state_can_tell(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "file").chmod(0o644)
    before = state(tmp_path)
    assert state(tmp_path) == before
    for change in (
        lambda: (tmp_path / "file").chmod(0o600),
        lambda: os.utime(tmp_path / "file", (0, 0)),
        lambda: (tmp_path / "file").write_bytes(b"2"),
        lambda: (tmp_path / "more").write_bytes(b""),
    ):
        change()
        assert state(tmp_path) != before
        before = state(tmp_path)


def disguises(source: Path, home: Path) -> dict[str, Path]:
    """Directories that are the directory `source`, or share with it, and what they look like."""
    home.mkdir()
    (home / "symlink").symlink_to(source)
    (home / "above").symlink_to(source.parent)
    shutil.copytree(source, home / "copy")
    shutil.copytree(source, home / "shared", copy_function=os.link)
    shutil.copytree(source, home / "one shared")
    place = min(path for path in (home / "one shared").iterdir() if path.name != "recerase.json")
    (home / "one shared" / "more").write_bytes(b"so that it is not a copy")
    place.unlink()
    os.link(source / place.name, place)
    return {
        "path": source,
        "path, spelled otherwise": source / ".." / source.name,
        "symlink": home / "symlink",
        "symlink above": home / "above" / source.name,
        "digest": home / "copy",
        "hard links": home / "shared",
        "a hard link": home / "one shared",
        "inside": source / "new",
        "around": source.parent,
    }


WRITERS = {
    "tokenize": ("data", ["tokenize", "{data}", "--out", "{new}", "-q"]),
    "train, data": ("data", ["train", "{data}", "--sids", "{sids}", "--out", "{new}", *SHAPE, "-q"]),
    "train, SIDs": ("sids", ["train", "{data}", "--sids", "{sids}", "--out", "{new}", *SHAPE, "-q"]),
    "erase, checkpoint": ("model", ["erase", "{model}", "--out", "{new}", "-m", "filter", *ON]),
    "erase, data": ("data", ["erase", "{model}", "--out", "{new}", "-m", "filter", *ON]),
    "erase, reference": ("erased", ["erase", "{model}", "--out", "{new}", "--reference", "{erased}", *ON]),
    "patch apply": ("model", ["patch", "apply", "{model}", "{patch}", "--out", "{new}"]),
    "patch revert": ("erased", ["patch", "revert", "{erased}", "{patch}", "--out", "{new}"]),
    "import": ("data", ["import", "csv", "{data}/items.parquet", "{data}/interactions.parquet", "--out", "{new}"]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_directory_that_is_an_input_in_any_disguise_is_refused(
    own_job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: Callable[..., None], name: str
) -> None:
    source, line = WRITERS[name]
    places = disguises(getattr(own_job, source), tmp_path / "disguised")
    if name == "import":  # its inputs are the two files: a copy of the directory is no copy of them
        places = {way: place for way, place in places.items() if way not in ("digest", "inside")}
    before = state(tmp_path)
    for way, place in places.items():
        for force in ([], ["--force"]):
            assert run([*words(line, own_job, tmp_path, place), *force]) == 2, way
            said = capsys.readouterr()
            assert said.out == "", way
            assert "input" in said.err, way
            assert state(tmp_path) == before, way
            figure("inputs: outputs that are one in disguise, not refused", 0, of=1)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_file_that_is_an_input_in_any_disguise_is_refused(
    own_job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: Callable[..., None], force: list[str]
) -> None:
    (tmp_path / "above").symlink_to(own_job.model)
    (tmp_path / "symlink").symlink_to(own_job.data / "items.parquet")
    os.link(own_job.data / "items.parquet", tmp_path / "linked")
    before = state(tmp_path)
    for place in (
        own_job.data / "items.parquet",
        own_job.model / "new.parquet",
        tmp_path / "above" / "new.parquet",
        tmp_path / "symlink",
        tmp_path / "linked",
    ):
        line = ["recommend", str(own_job.model), "--data", str(own_job.data), "--out", str(place), *force]
        assert run(line) == 2, place
        assert "input" in capsys.readouterr().err, place
        assert state(tmp_path) == before, place
        figure("inputs: outputs that are one in disguise, not refused", 0, of=1)


@pytest.mark.parametrize("spec", ["@{}", " !@ {}"])
def test_the_item_list_of_a_concept_is_an_input(
    own_job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: Callable[..., None], spec: str
) -> None:
    items = tmp_path / "items.json"
    items.write_text("\n".join(load_catalogue(own_job.data).items.item_ids[:5]))
    before = state(tmp_path)
    concept = ["--data", str(own_job.data), "--concept", own_job.concept, "--concept", spec.format(items)]
    for line in (
        ["audit", str(own_job.model), *concept, "-o", str(items)],
        ["erase", str(own_job.model), *concept, "--out", str(own_job.home / "new"), "-o", str(items)],
    ):
        assert run(line) == 2
        assert f"the input {items}" in capsys.readouterr().err
        assert state(tmp_path) == before
        figure("inputs: outputs that are one in disguise, not refused", 0, of=1)
