"""A whole tiny job, made once a process by the commands themselves, for the tests that attack what it left on disk."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import counted

from recerase.__main__ import run
from recerase.audit import probes
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.store import publish

POLICY = """schema = "recerase.policy/1"
[audit]
min_users = 20
[[rule]]
id = "exposure"
metric = "natural.exposure@10"
max = 0.5
[[rule]]
id = "utility"
metric = "utility.ndcg@10"
max_drop = 0.9
max_drop_vs = "original"
"""
"""Loose enough that a barely trained toy can pass or be inconclusive: what is tested here is the machinery."""
SHAPE = ["--width", "16", "--layers", "1", "--heads", "2", "--window", "6", "--threads", "1", "--device", "cpu"]
FAST = ["--set", "reassign_steps=2", "--set", "settle_steps=2", "--set", "pool=1"]

HISTORIES = counted(100, 1000)
"""How many synthetic histories an audit of the job draws: what is held against one another here is files, not metrics.

Still several batches of lists and several rounds of masses (recerase.audit.readings), so that an audit can be stopped between them.
"""
SMALL_AUDITS = f"""
import functools
from recerase.audit import probes
probes.AuditConfig = functools.partial(probes.AuditConfig, saturated_histories={HISTORIES})
"""
"""The same for a process of its own, before its first audit."""


@contextlib.contextmanager
def few_histories() -> Iterator[None]:
    """Within it audits draw HISTORIES synthetic histories instead of 1,000; in a whole soak all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=HISTORIES))
        yield


@pytest.fixture(scope="module", autouse=True)
def small_audits() -> Iterator[None]:
    """Every audit by a command or by the API is small; `job` outlives a module and asks for it itself."""
    with few_histories():
        yield


@dataclass(frozen=True)
class Job:
    """Where everything of a tiny job is; read only, `copy` what a test wants to spoil."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def sids(self) -> Path:
        return self.home / "sids"

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def erased(self) -> Path:
        """Made by `--method filter`, which is quick; with its report.json inside."""
        return self.home / "erased"

    @property
    def report(self) -> Path:
        return self.home / "audit.json"

    @property
    def patch(self) -> Path:
        """What makes `erased` of `model`."""
        return self.home / "patch.safetensors"

    @property
    def policy(self) -> Path:
        return self.home / "policy.toml"

    @property
    def concept(self) -> str:
        return DEMO_CONCEPT

    def copy(self, name: str, to: Path) -> Path:
        """A copy of `data`, `sids`, `model`, `erased`, `audit.json` or `policy.toml` at `to`."""
        source = self.home / name
        if source.is_dir():
            shutil.copytree(source, to)
        else:
            shutil.copy2(source, to)
        return to


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """data, sids, model, erased, audit.json, patch.safetensors and policy.toml of a tiny shop (260 items, 150 users)."""
    home = tmp_path_factory.mktemp("job")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=260, n_users=150))
        made.provenance = {"command": "test"}
    (home / "policy.toml").write_text(POLICY)
    at = [f"--data={home}/data", f"--concept={DEMO_CONCEPT}", f"--policy={home}/policy.toml", "--threads=1", "-q"]
    tokenize = ["tokenize", f"{home}/data", "--out", f"{home}/sids", "--codes", "16", "--dims", "16", "-q"]
    train = ["train", f"{home}/data", "--sids", f"{home}/sids", "--out", f"{home}/model", "--epochs", "2", *SHAPE, "-q"]
    assert run(tokenize) == 0
    assert run(train) == 0
    erase = ["erase", f"{home}/model", "--out", f"{home}/erased", "-m", "filter", *at]
    audit = ["audit", f"{home}/erased", "--original", f"{home}/model", "-o", f"{home}/audit.json", *at]
    with few_histories():
        assert run(erase) in (0, 5)
        assert run(audit) in (0, 5)
    assert run(["patch", "make", f"{home}/model", f"{home}/erased", "--out", f"{home}/patch.safetensors", "-q"]) == 0
    return Job(home)


@pytest.fixture
def own_job(job: Job, tmp_path: Path) -> Job:
    """A copy of the whole job that a test may spoil."""
    shutil.copytree(job.home, tmp_path / "job")
    return Job(tmp_path / "job")


@pytest.fixture
def verdict_of() -> Callable[[Path], str]:
    """The verdict in a report file, read with recerase's own reader."""

    def read(path: Path) -> str:
        from recerase.report.schema import read_report

        return read_report(path).decision.verdict.value

    return read
