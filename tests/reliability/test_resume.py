"""Interrupted anywhere and continued, a command publishes the bytes of a straight run; with anything changed, nothing is reused.

A run is interrupted by its observer: every call the library makes to it is a place where a KeyboardInterrupt may come.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.reliability.conftest import Job

from recerase import api
from recerase.__main__ import run
from recerase.audit import readings
from recerase.catalog.readers import write_catalogue
from recerase.earlier import FILE
from recerase.errors import UsageError
from recerase.layouts.native import load_checkpoint, load_sids, save_checkpoint, save_sids
from recerase.model import decode, mass
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.report.schema import read_report, report_bytes
from recerase.resume import state_directory
from recerase.runtime import RunConfig
from recerase.store import publish, read_manifest, sha256_bytes, verify_manifest

WHERE = RunConfig(threads=1, device="cpu")
SHAPE = ModelConfig(width=16, layers=1, heads=2, feed_forward=16, window=6)
TRAINING = TrainConfig(epochs=4, validate_every=1, validation_users=20)
NPO = ("steps=3",)


class Watcher:
    """Counts what a run tells, and interrupts it at its `stop`-th word, or at the first word that `when` accepts."""

    def __init__(self, stop: int | None = None, when: Callable[[str, str], bool] | None = None) -> None:
        self.stop, self.when = stop, when
        self.words = self.work = 0
        self.notes: list[str] = []

    def _hear(self, word: str, task: str) -> None:
        self.words += 1
        if self.words == self.stop or (self.when is not None and self.when(word, task)):
            raise KeyboardInterrupt

    def start(self, task: str, total: int | None) -> None:
        self._hear("start", task)

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        self.work += bool(figures) and task != "audit"
        self._hear("advance", task)

    def finish(self, task: str) -> None:
        self._hear("finish", task)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._hear("note", text)


@dataclass(frozen=True)
class Command:
    """A command on a job's inputs; every keyword replaces what it is run with."""

    name: str
    inputs: dict[str, Any]
    call: Callable[..., Any] = field(repr=False)

    def run(self, out: Path, observer: Watcher | None = None, **changed: Any) -> None:
        self.call(out=out, observer=observer or Watcher(), **{**self.inputs, **changed})

    def made(self, out: Path) -> str:
        """Digest of all that was published: of a report, everything but its clock times."""
        if out.is_dir():
            verify_manifest(out)
            return sha256_bytes(repr(sorted(read_manifest(out)["files"].items())).encode())
        return sha256_bytes(report_bytes(replace(read_report(out), run={})))


def _train(out: Path, observer: Any, *, data: Path, sids: Path, kind: str = "causal", **more: Any) -> None:
    shape = replace(more.pop("shape", SHAPE), kind=kind)
    run = more.pop("run", WHERE)
    config = replace(more.pop("training", TRAINING), seed=run.seed)
    api.train(data, sids, out, shape, config, run=run, observer=observer, **more)


def _erase(out: Path, observer: Any, *, data: Path, model: Path, concept: str, **more: Any) -> None:
    report = api.erase(model, api.ConceptSpec((concept,)), data, out, observer=observer, **{"run": WHERE, **more})
    assert out.exists(), report.decision


def _audit(out: Path, observer: Any, *, data: Path, model: Path, concept: str, **more: Any) -> None:
    spec = api.ConceptSpec((concept,))
    api.audit(model, spec, data, outputs=[out], observer=observer, **{"run": WHERE, **more})


def command(job: Job, name: str) -> Command:
    judged = {"data": job.data, "concept": job.concept, "policy": job.policy, "max_users": 60}
    if name.startswith("train"):
        return Command(name, {"data": job.data, "sids": job.sids, "kind": name.split()[1]}, _train)
    if name == "audit":
        return Command(name, {**judged, "model": job.erased, "original": job.model}, _audit)
    method = name.split()[1]
    overrides = NPO if method == "npo" else ()
    return Command(name, {**judged, "model": job.model, "method": method, "overrides": overrides}, _erase)


def target(name: str, at: Path) -> Path:
    return at / ("audit.json" if name == "audit" else "out")


COMMANDS = ["train causal", "train seq2seq", "erase filter", "erase npo", "erase retrain", "audit"]


@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted_anywhere_it_continues_to_the_same_bytes(
    name: str,
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    effort: Callable[[int, int], int],
    figure: Callable[..., None],
) -> None:
    """One run, interrupted again and again at words spread over what is left of it, until nothing is left."""
    monkeypatch.setattr(readings, "BLOCK", 1)
    cut, straight, whole = command(job, name), target(name, tmp_path / "straight"), Watcher()
    for place in ("straight", "broken"):
        (tmp_path / place).mkdir()
    cut.run(straight, whole)
    out, times = target(name, tmp_path / "broken"), 0
    for stop in np.linspace(1, whole.words, effort(4, 60)).astype(int).tolist():
        error = interrupted(cut, out, Watcher(stop))
        if error is None:
            break
        times += 1
        assert not out.exists()
        kept = state_directory(out)
        assert kept.exists() == any(str(kept) in note for note in getattr(error, "__notes__", ()))
    else:
        cut.run(out)
    differs = cut.made(out) != cut.made(straight)
    figure("resume: interruptions anywhere after which the digest differs", int(differs), of=times)
    assert not differs
    assert times >= 2
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [out.name]


def interrupted(cut: Command, out: Path, watcher: Watcher) -> KeyboardInterrupt | None:
    """Run until the watcher interrupts; None when there was less to do than that."""
    try:
        cut.run(out, watcher)
    except KeyboardInterrupt as error:
        return error
    return None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One word for each block of users that a model is asked about."""
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        inner = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return inner(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for module, name in ((decode, "recommend"), (decode, "generate_free"), (mass, "concept_mass")):
        counted(module, name)
    return calls


def interrupt_late(cut: Command, out: Path) -> None:
    """Leave the state of a run whose work is all done, and whose result is not yet there."""
    last = "train" if cut.name.startswith("train") else "audit"
    with pytest.raises(KeyboardInterrupt):
        cut.run(out, Watcher(when=lambda word, task: (word, task) == ("finish", last)))
    assert state_directory(out).is_dir()


@pytest.mark.parametrize("name", ["train causal", "erase filter", "erase retrain", "audit"])
def test_what_was_finished_is_not_done_again(name: str, job: Job, tmp_path: Path, made: list[str]) -> None:
    cut, out, rest = command(job, name), target(name, tmp_path), Watcher()
    interrupt_late(cut, out)
    assert len(made) > 3 or name.startswith("train")
    made.clear()
    cut.run(out, rest)
    assert made == []
    assert rest.work == 0
    assert any("continuing" in note for note in rest.notes)


# -- the key -----------------------------------------------------------------------------------------------------------


def other_model(job: Job, at: Path) -> Path:
    """The same model with one weight changed."""
    opened = load_checkpoint(job.erased)
    with torch.no_grad():
        next(opened.recommender.module.parameters())[0, 0] += 0.25
    with publish(at) as result:
        save_checkpoint(result.directory, opened.recommender, opened.table, opened.codebooks, opened.embeddings)
        shutil.copyfile(job.erased / FILE, result.directory / FILE)
        result.provenance = dict(opened.manifest["provenance"])
    return at


def other_table(job: Job, at: Path) -> Path:
    """The same SIDs, two of them exchanged."""
    table, codebooks, points = load_sids(job.sids)
    with publish(at) as result:
        save_sids(result.directory, table.replace(np.array([0, 1]), table.codes[[1, 0]]), codebooks, points)
    return at


def other_model_table(job: Job, at: Path) -> Path:
    """The same weights, two SIDs exchanged."""
    opened = load_checkpoint(job.erased)
    table = opened.table.replace(np.array([0, 1]), opened.table.codes[[1, 0]])
    with publish(at) as result:
        save_checkpoint(result.directory, opened.recommender, table, opened.codebooks, opened.embeddings)
        shutil.copyfile(job.erased / FILE, result.directory / FILE)
        result.provenance = dict(opened.manifest["provenance"])
    return at


def other_data(job: Job, at: Path) -> Path:
    """The same catalogue, one interaction later by a second."""
    items, acts = (pq.read_table(job.data / f"{name}.parquet") for name in ("items", "interactions"))
    stamps = acts["timestamp"].to_numpy().copy()
    stamps[-1] += 1
    with publish(at) as result:
        acts = acts.set_column(acts.column_names.index("timestamp"), "timestamp", pa.array(stamps))
        write_catalogue(result.directory, items, acts)
    return at


def other_policy(job: Job, at: Path) -> Path:
    at.write_text(job.policy.read_text().replace("max = 0.5", "max = 0.6"))
    return at


Change = Callable[[Job, Path], dict[str, Any]]
ANY: dict[str, Change] = {
    "data": lambda job, at: {"data": other_data(job, at)},
    "seed": lambda job, at: {"run": replace(WHERE, seed=1)},
    "threads": lambda job, at: {"run": replace(WHERE, threads=2)},
    "code": lambda job, at: {},
}
JUDGED: dict[str, Change] = {
    "model": lambda job, at: {"model": other_model(job, at)},
    "table": lambda job, at: {"model": other_model_table(job, at)},
    "policy": lambda job, at: {"policy": other_policy(job, at)},
    "concept": lambda job, at: {"concept": f"item:{load_sids(job.sids)[0].item_ids[0]}"},
    "settings": lambda job, at: {"max_users": 50},
    "reference": lambda job, at: {"reference": job.model},
}
CHANGES: dict[str, dict[str, Change]] = {
    "train causal": {
        **ANY,
        "model": lambda job, at: {"shape": replace(SHAPE, width=8)},
        "table": lambda job, at: {"sids": other_table(job, at)},
        "settings": lambda job, at: {"training": replace(TRAINING, epochs=5)},
        "concept": lambda job, at: {"without": api.ConceptSpec((job.concept,))},
    },
    "erase filter": {
        **ANY,
        **JUDGED,
        "method": lambda job, at: {"method": "npo", "overrides": NPO},
    },
    "audit": {**ANY, **JUDGED, "original": lambda job, at: {"original": None}},
}


@pytest.fixture(scope="module")
def left(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """left(name, out): puts the state of a late interrupted run of the command where a run to `out` looks for it."""
    kept: dict[str, Path] = {}

    def put(name: str, out: Path) -> None:
        if name not in kept:
            place = target(name, tmp_path_factory.mktemp("left"))
            interrupt_late(command(job, name), place)
            kept[name] = state_directory(place)
        shutil.copytree(kept[name], state_directory(out))

    return put


def files_of(directory: Path) -> set[tuple[str, int, int]]:
    """Which files these are: a file written anew under the same name is another."""
    found = [(path.name, path.stat()) for path in directory.glob("*")]
    return {(name, stat.st_ino, stat.st_mtime_ns) for name, stat in found}


@pytest.mark.parametrize(("name", "entry"), [(name, entry) for name in CHANGES for entry in CHANGES[name]])
def test_with_anything_changed_nothing_is_reused_and_the_message_names_it(
    name: str,
    entry: str,
    job: Job,
    left: Callable[[str, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[..., None],
) -> None:
    cut, out = command(job, name), target(name, tmp_path)
    left(name, out)
    changed = {"run": WHERE, **CHANGES[name][entry](job, tmp_path / "other")}
    if entry == "code":
        monkeypatch.setattr("recerase.assembly.code_digest", lambda: "other code")
    with pytest.raises(UsageError, match=rf"another run: .*\b{entry}\b.* ha(s|ve) changed"):
        cut.run(out, **changed, resume=True)
    before = files_of(state_directory(out))
    assert len(before) > 1
    watcher = Watcher(when=lambda word, task: word == "advance" and task != "audit")
    with pytest.raises(KeyboardInterrupt):  # at its first step
        cut.run(out, watcher, **changed)
    told = [note for note in watcher.notes if note.startswith("nothing of the interrupted run is reused: ")]
    reused = before & files_of(state_directory(out))
    figure("resume: changes of one input with which anything was reused", bool(reused), of=1)
    assert not reused
    assert len(told) == 1
    assert entry in told[0].replace(",", "").split()


def test_fresh_reuses_nothing(job: Job, left: Callable[[str, Path], None], tmp_path: Path) -> None:
    out, watcher = tmp_path / "out", Watcher()
    left("train causal", out)
    command(job, "train causal").run(out, watcher, resume=False)
    assert watcher.work > 0
    assert not watcher.notes or "continuing" not in watcher.notes[0]


def test_a_run_that_ends_leaves_no_state_whatever_its_verdict(job: Job, tmp_path: Path) -> None:
    strict = tmp_path / "policy.toml"
    rule = 'id = "mass"\nmetric = "natural.mass.old"\nmax = 1e-9\n'
    strict.write_text(f'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n[[rule]]\n{rule}')
    out = tmp_path / "out"
    report = api.erase(
        job.model,
        api.ConceptSpec((job.concept,)),
        job.data,
        out,
        method="filter",
        policy=strict,
        max_users=60,
        run=WHERE,
    )
    assert report.decision.verdict.value == "fail"
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]


def test_an_audit_without_a_file_keeps_nothing(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = api.ConceptSpec((job.concept,))
    with pytest.raises(KeyboardInterrupt) as caught:
        api.audit(job.model, spec, job.data, run=WHERE, max_users=60, observer=Watcher(12))
    assert "-o FILE" in caught.value.__notes__[0]
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_no_report_and_the_next_run_finishes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    at = [f"--data={job.data}", f"--concept={job.concept}", f"--policy={job.policy}", "--threads=1", "--max-users=60"]
    line = ["audit", f"{job.erased}", f"--original={job.model}", *at, "-o", f"{out}"]
    with monkeypatch.context() as broken:
        broken.setattr("recerase.audit.run.judge_controls", lambda *_: 1 / 0)
        assert run(line) == 3
    said = capsys.readouterr()
    assert "this is a bug" in said.err
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == [state_directory(out).name]
    assert run([*line, "--resume"]) in (0, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]
    assert run([*line, "--resume"]) == 2
    assert "nothing to continue" in capsys.readouterr().err
