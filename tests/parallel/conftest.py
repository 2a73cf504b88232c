"""Starts two processes as a launcher would, and a tiny world for them to share."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from recerase.__main__ import run
from recerase.audit import probes
from recerase.catalog import load_catalogue
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.model import recommender
from recerase.store import publish

POLICY = """schema = "recerase.policy/1"
[audit]
min_users = 20
[[rule]]
id = "exposure"
metric = "natural.exposure@10"
max = 0.9
"""
SMALL_AUDITS = """
import functools
from recerase.audit import probes
probes.AuditConfig = functools.partial(probes.AuditConfig, saturated_histories=300)
"""
"""300 synthetic histories instead of 1,000: five batches of lists, three rounds of masses for two processes (audit.readings)."""
SHAPE = ["--width", "16", "--layers", "1", "--heads", "2", "--window", "6", "--threads", "1", "--device", "cpu"]


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str


class Pair:
    """Two processes of one run; each works in a directory of its own, so that what it writes by a relative name is seen."""

    def __init__(self, home: Path, argv: list[str], code: str | None = None, **more: str) -> None:
        self.homes = [home / f"rank{rank}" for rank in range(2)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        program = ["-m", "recerase"] if code is None else ["-c", code]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *program, *argv],
                cwd=place,
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "LOCAL_WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "OMP_WAIT_POLICY": "PASSIVE",
                    "RECERASE_TIMEOUT": "120",
                    **more,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, place in enumerate(self.homes)
            if place.mkdir(parents=True, exist_ok=True) is None
        ]

    def ended(self, seconds: float = 100.0) -> list[Ended]:
        """Wait for both; raises TimeoutExpired after `seconds`."""
        told = [process.communicate(timeout=seconds) for process in self.processes]
        return [Ended(p.returncode, *text) for p, text in zip(self.processes, told, strict=True)]

    def signal(self, number: int = signal.SIGINT) -> None:
        for process in self.processes:
            process.send_signal(number)

    def files(self, rank: int) -> list[str]:
        """Everything below a process's directory."""
        home = self.homes[rank]
        return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """`pair(argv)` starts two processes of `recerase argv`; `code=` a program of its own. None outlives the test."""
    started: list[Pair] = []

    def start(argv: list[str], code: str | None = None, **more: str) -> Pair:
        started.append(Pair(tmp_path, argv, code, **more))
        return started[-1]

    yield start
    for process in [process for one in started for process in one.processes]:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", autouse=True)
def small_audits() -> Iterator[None]:
    """What SMALL_AUDITS does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=300))
        yield


@dataclass(frozen=True)
class World:
    """Data, SIDs, policy and a model of a tiny shop."""

    home: Path

    @property
    def at(self) -> list[str]:
        """The options of audit and erase."""
        return [
            f"--data={self.home}/data",
            f"--concept={DEMO_CONCEPT}",
            f"--policy={self.home}/policy.toml",
            "--threads=1",
        ]

    @property
    def item_ids(self) -> list[str]:
        return [str(item) for item in load_catalogue(self.home / "data").items.item_ids]

    def train(self, out: str) -> list[str]:
        sids = ["--sids", f"{self.home}/sids"]
        return [
            "train",
            f"{self.home}/data",
            *sids,
            "--out",
            out,
            "--epochs",
            "2",
            "--batch",
            "31",
            "--dropout",
            "0",
            *SHAPE,
            "-q",
        ]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """data, sids, model (trained without dropout) and policy.toml of a tiny shop (200 items, 90 users)."""
    home = tmp_path_factory.mktemp("world")
    with publish(home / "data") as result:
        write_catalogue(result.directory, *demo_catalogue(0, n_items=200, n_users=90))
        result.provenance = {"command": "test"}
    (home / "policy.toml").write_text(POLICY)
    made_world = World(home)
    assert run(["tokenize", f"{home}/data", "--out", f"{home}/sids", "--codes", "8", "--dims", "16", "-q"]) == 0
    made = recommender.new_recommender
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommender, "new_recommender", lambda c, *more: made(replace(c, dropout=0.0), *more))
        assert run(made_world.train(f"{home}/model")) == 0
    return made_world
