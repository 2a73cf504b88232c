"""A whole quick audit of amazon_beauty_2014 (22,363 users, 12,101 items) on two cores: seconds, memory, and how both grow.

The checkpoints have the sizes of `bench_decode` and random weights, which cost what trained ones do: every reading is made in
full whatever it finds. Each audit is a fresh process, `recerase audit` as a user types it, with two threads; seconds are of the
wall clock and include start-up, the report and everything else. Memory is the most the process ever held (VmHWM) less what the
interpreter holds with torch and transformers imported and nothing done; the weights come on top of what is allowed.
"""

from __future__ import annotations

import argparse
import json
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


def audited(path: Path, concept: str, *, users: int | None = None, original: bool = False) -> Audited:
    """One audit in a fresh process."""
    given = ["audit", str(path), "--concept", concept, "--data", str(data_directory("amazon_beauty_2014")), "--quiet"]
    given += ["--threads", "2", *(["--max-users", str(users)] if users else [])]
    given += ["--original", str(path)] if original else []
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _MEASURED, *given], capture_output=True, text=True, check=False)
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
    """Seconds and memory of an audit with each model, alone and against an original, and with half of the users."""
    concept = concept_spec()
    users = max(200, int(22_363 * scale))
    idle = idle_megabytes()
    found = [Row("audit: memory of an idle process with torch and transformers", idle, "MB")]
    with tempfile.TemporaryDirectory() as place:
        for name in MODELS:
            path, weights = checkpoint(name, Path(place))
            whole = audited(path, concept, users=users if scale < 1 else None)
            half = audited(path, concept, users=users // 2)
            held = audited(path, concept, users=users if scale < 1 else None, original=True)
            more = whole.megabytes - idle - weights
            found += [
                Row(f"audit, {name}: {users:,} users, one checkpoint", whole.seconds, "s", target=f"<= {BUDGET}"),
                Row(
                    f"audit, {name}: memory above the idle process and {weights:.0f} MB of weights",
                    more,
                    "MB",
                    target=f"<= {MEGABYTES}",
                ),
                Row(
                    f"audit, {name}: {users:,} users against half of them",
                    whole.seconds,
                    "s",
                    f"half: {half.seconds:.1f}",
                    whole.seconds / half.seconds,
                    "<= 2",
                ),
                Row(
                    f"audit, {name}: memory with all users against half of them",
                    whole.megabytes,
                    "MB",
                    f"half: {half.megabytes:.0f}",
                    whole.megabytes / half.megabytes,
                ),
                Row(
                    f"audit, {name}: with --original and its filter control",
                    held.seconds,
                    "s",
                    f"alone: {whole.seconds:.1f}",
                    held.seconds / whole.seconds,
                ),
            ]
    return found


def concept_spec() -> str:
    """The items of a brand worth erasing (203 of 12,101), as the data set lists them."""
    listed = json.loads((data_directory("amazon_beauty_2014") / "concepts.json").read_text())["brand_opi"]["item_ids"]
    return "item:" + ",".join(listed)


if __name__ == "__main__":
    from bench import main

    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
