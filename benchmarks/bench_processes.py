"""Two processes against one: the same SIDs and measurements, and how much sooner they are there on two cores.

The world is the demo's shop, larger or smaller with --scale. Every command is a fresh process (or two, started as a launcher
does), with the start of Python and torch in it, best of the runs. Two processes with a thread each are held against one process
with two threads by the wall clock, which says nothing on fewer than two free cores, and against one with one thread by
the processor time of the busier process, which others on the machine hardly change. What is equal is equal anywhere.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import Row, main

from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.report.schema import read_report
from recerase.sid.table_files import read_table
from recerase.store import publish

RUNS, CLOSE = 2, 1e-6
ITEMS, USERS, EPOCHS = 1200, 4000, 2


@dataclass(frozen=True)
class Spent:
    """What one command took."""

    wall: float
    busiest: float
    """Processor seconds of the process that used most."""


def spent(arguments: list[str], processes: int = 1) -> Spent:
    """Run one command in so many processes; an audit may end without a pass, nothing else may."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_WAIT_POLICY": "PASSIVE"}
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "recerase", *arguments, "-q"],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    ended = [os.wait4(process.pid, 0)[1:] for process in started]
    codes = {os.waitstatus_to_exitcode(status) for status, _ in ended}
    if len(codes) != 1 or not codes <= ({0, 1, 5} if arguments[0] == "audit" else {0}):
        raise SystemExit(f"recerase {' '.join(arguments)} ended with {codes}")
    return Spent(time.perf_counter() - began, max(usage.ru_utime + usage.ru_stime for _, usage in ended))


class World:
    """Data, SIDs and a model of the demo's shop in a directory."""

    def __init__(self, home: Path, scale: float) -> None:
        self.home, self._numbers = home, 0
        with publish(home / "data") as made:
            write_catalogue(
                made.directory,
                *demo_catalogue(0, n_items=max(200, int(ITEMS * scale)), n_users=max(60, int(USERS * scale))),
            )
        self.tokenize(1, "sids")
        spent(self.train("model", 1))

    def tokenize(self, processes: int, out: str) -> Spent:
        return spent(["tokenize", f"{self.home}/data", "--out", f"{self.home}/{out}", "--codes", "32"], processes)

    def train(self, out: str, threads: int) -> list[str]:
        at = [f"{self.home}/data", "--sids", f"{self.home}/sids", "--out", f"{self.home}/{out}", "--force", "--fresh"]
        return ["train", *at, "--epochs", str(EPOCHS), "--threads", str(threads), "--device", "cpu"]

    def audit(self, out: str, threads: int) -> list[str]:
        at = ["--original", f"{self.home}/model", "--data", f"{self.home}/data", "--concept", DEMO_CONCEPT, "--fresh"]
        where = ["--threads", str(threads), "--device", "cpu", "-o", f"{self.home}/{out}"]
        return ["audit", f"{self.home}/model", *at, *where]


def equal_rows(world: World) -> list[Row]:
    """What must not differ: codes of the SID table, and measurements of the audit (both with one thread a process)."""
    world.tokenize(2, "sids2")
    spent(world.audit("one.json", 1), 1)
    spent(world.audit("two.json", 1), 2)
    one, two = (read_table(world.home / name / "sids.parquet") for name in ("sids", "sids2"))
    moved = int((one.codes != two.codes).any(1).sum())
    first, second = (read_report(world.home / name).measurements for name in ("one.json", "two.json"))
    names = [[(m.metric, m.role, m.versus, m.kind) for m in found] for found in (first, second)]
    if names[0] != names[1]:
        raise SystemExit("two processes made other measurements than one")
    apart = max(abs(a.value - b.value) for a, b in zip(first, second, strict=True))
    return [
        Row("tokenize, 2 processes against 1: items with another SID", moved, "items", target="<= 0"),
        Row(
            f"audit, 2 processes against 1: largest difference of {len(first)} measurements",
            apart,
            "",
            target=f"<= {CLOSE}",
        ),
    ]


def speed_rows(world: World, runs: int = RUNS) -> list[Row]:
    """A row a command and peer: seconds of two processes with a thread each, and how many times as long the peer takes."""
    found_rows: list[Row] = []
    for name in ("audit", "train"):
        taken: dict[tuple[int, int], list[Spent]] = {(2, 1): [], (1, 2): [], (1, 1): []}
        for run in range(runs):
            for (processes, threads), found in taken.items():
                out = f"{name}{run}{processes}{threads}" + (".json" if name == "audit" else "")
                command = world.audit(out, threads) if name == "audit" else world.train(out, threads)
                found.append(spent(command, processes))
        wall = {how: min(one.wall for one in found) for how, found in taken.items()}
        busy = {how: min(one.busiest for one in found) for how, found in taken.items()}
        for what, times, threads, target in (("wall clock", wall, 2, 1.0), ("processor time", busy, 1, 1.5)):
            own, peer = times[2, 1], times[1, threads]
            found_rows.append(
                Row(
                    f"{name}, 2 processes x 1 thread, {what}: how many times as fast",
                    own,
                    "s",
                    f"1 process x {threads} thread{'s' * (threads > 1)}: {peer:.1f} s",
                    peer / own,
                    f">= {target}",
                )
            )
    return found_rows


def rows(scale: float = 1.0) -> list[Row]:
    """What is equal, and what is sooner; `scale` is the size of the shop, 1: 1200 items and 4000 users."""
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home), scale)
        return equal_rows(world) + speed_rows(world)


if __name__ == "__main__":
    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
