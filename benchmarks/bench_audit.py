"""A whole quick audit of amazon_beauty_2014 (22,363 users, 12,101 items) on two cores: seconds, memory, and how both grow.

The checkpoints have the sizes of `bench_decode` and random weights, which cost what trained ones do: every reading is made in
full whatever it finds. Each audit is a fresh process, `recerase audit` as a user types it, with two threads; seconds are of the
wall clock and include start-up, the report and everything else. Memory is the most the process ever held (VmHWM) less what the
interpreter holds with torch and transformers imported and nothing done; the weights come on top of what is allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import Row, data_directory
from bench_decode import MODELS, random_model

BUDGET, MEGABYTES = 180, 500
_MEASURED = """
import resource, sys
from recerase.__main__ import main
try:
    sys.argv = ["recerase", *sys.argv[1:]]
    main()
finally:
    print("HWM", [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
"""
_IDLE = """
import torch, transformers
from transformers import LlamaForCausalLM, T5ForConditionalGeneration
print("HWM", [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@dataclass(frozen=True)
class Audited:
    seconds: float
    megabytes: float


def checkpoint(name: str, directory: Path) -> tuple[Path, float]:
    """A checkpoint directory with random weights and the published SIDs, and the megabytes of its weights."""
    from recerase.assembly import open_sids
    from recerase.catalog import load_catalogue
    from recerase.layouts.native import WEIGHTS, save_checkpoint
    from recerase.store import publish
    from recerase.types import SILENT

    data = data_directory("amazon_beauty_2014")
    catalogue = load_catalogue(data)
    table, codebooks, points = open_sids(data / "sids.json", catalogue.items, None, SILENT)
    out = directory / name
    with publish(out) as result:
        save_checkpoint(result.directory, random_model(MODELS[name], table), table, codebooks, points)
        result.provenance = {"command": "bench"}
    return out, (out / WEIGHTS).stat().st_size / 1e6


def audited(path: Path, concept: str, *, users: int, processes: int = 1, dtype: str | None = None) -> Audited:
    """One audit in a fresh process (or two)."""
    given = ["audit", str(path), "--concept", concept, "--data", str(data_directory("amazon_beauty_2014")), "--quiet"]
    given += ["--threads", str(2 // processes), "--max-users", str(users), *(["--dtype", dtype] if dtype else [])]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RECERASE_PROCESSES": str(processes)},
    )
    taken = time.perf_counter() - began
    if done.returncode not in (0, 1, 5):
        raise SystemExit(f"the audit ended with {done.returncode}: {done.stderr[-2000:]}")
    return Audited(taken, _high_water(done.stderr))


def _high_water(text: str) -> float:
    return int(next(line for line in text.splitlines() if line.startswith("HWM")).split()[1]) * 1024 / 1e6


def idle_megabytes() -> float:
    done = subprocess.run([sys.executable, "-c", _IDLE], capture_output=True, text=True, check=True)
    return _high_water(done.stdout)


def rows(scale: float = 1.0) -> list[Row]:
    """Seconds and memory with each model; with the T5 also half of the users and two processes, with the larger one bfloat16."""
    concept, users, idle = concept_spec(), max(200, int(22_363 * scale)), idle_megabytes()
    found = [Row("audit: memory of an idle process with torch and transformers", idle, "MB")]
    with tempfile.TemporaryDirectory() as place:
        for name in MODELS:
            path, weights = checkpoint(name, Path(place))
            whole, label = audited(path, concept, users=users), f"audit, {name}"
            more = whole.megabytes - idle - weights
            found += [
                Row(f"{label}: {users:,} users, one checkpoint", whole.seconds, "s", target=f"<= {BUDGET}"),
                Row(
                    f"{label}: memory above idle and {weights:.0f} MB of weights", more, "MB", target=f"<= {MEGABYTES}"
                ),
            ]
            if name == "T5":
                half = audited(path, concept, users=users // 2)
                told = beside("half", half.seconds, whole.seconds)
                found.append(Row(f"{label}: all users against half", whole.seconds, "s", *told, "<= 2"))
                told = beside("half", half.megabytes, whole.megabytes)
                found.append(Row(f"{label}: memory, all users against half", whole.megabytes, "MB", *told))
                how, other = "two processes of one thread", audited(path, concept, users=users, processes=2)
            else:
                how, other = "--dtype bfloat16", audited(path, concept, users=users, dtype="bfloat16")
            told = beside("one process, float32", whole.seconds, other.seconds)
            found.append(Row(f"{label}: {how}", other.seconds, "s", *told))
    return found


def beside(name: str, peer: float, own: float) -> tuple[str, float]:
    """The peer with its figure, and the ratio to it."""
    return f"{name}: {peer:.4g}", own / peer


def concept_spec() -> str:
    """The items of a brand worth erasing (203 of 12,101), as the data set lists them."""
    listed = json.loads((data_directory("amazon_beauty_2014") / "concepts.json").read_text())["brand_opi"]["item_ids"]
    return "item:" + ",".join(listed)


if __name__ == "__main__":
    from bench import main

    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
