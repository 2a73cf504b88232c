"""Puts RELIABILITY.md together from what the runs of `make test`, `make soak`, `make coverage` and `make mutants` left.

Each of them writes one JSON file into `.reliability/` (counts it made, nothing else); this script only lays them out, so
that no number stands in the tables that a run did not tell. What is not promised is written here by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / ".reliability"
PAGE = HERE / "RELIABILITY.md"
ENDINGS = ("passed", "failed", "error", "skipped")
SUITES = {"test": "make test", "soak": "make soak"}


LIMITS = """## What is not promised

- The interval of a mean of *masses* (numbers that are never exactly zero) is a bootstrap. On lognormal masses it holds the truth
  in about 92 % of runs at n = 100 and 94 % at n = 1,000; a leak that only one user in a thousand has can hide from it altogether
  (1 user at .9 over a floor of 1e-9, n = 1,000: its upper end was below the truth in 160 of 400 runs). Exposures do not have
  this hole: their bound counts one unseen user. The shipped policy decides nothing on fewer than 1,000 users.
- Intervals above 97 % are those of rare events, which no interval can hold more exactly, or bounds that hold more often by
  construction. "No claim" is a ratio to nothing.
- A seal shows damage and carelessness. It is no signature: who writes consistent numbers and seals them again is not caught.
- `erase` keeps what its method made, and the readings of its audit; a method that is interrupted (but `retrain`) starts again from
  its seed, to the same bytes. `tokenize`, `recommend` and `demo` keep nothing.
- The concepts of the planted worlds have first-level codes of their own. Where a concept shares them with retained items, a model
  retrained without it may keep .001-.003 of its probability on the concept's old SIDs and fail the shipped policy.
- Fuzzing bounds a parquet file by its rows and its repeated text; one row whose list claims billions of values is not bounded.
- mutmut changes what stands in functions; constants of modules and the words of messages are not counted."""


def main() -> int:
    """Write the page from the runs that are there; exit code 2 when there is none."""
    told = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RUNS.glob("*.json"))}
    found = {name: told[name] for name in ("test", "coverage", "mutants") if name in told}
    if soaks := [run for name, run in told.items() if name.startswith("soak")]:
        found["soak"] = merged(soaks)
    if not found:
        print(f"There is no run in {RUNS.name}/: make test, soak, coverage or mutants first.", file=sys.stderr)
        return 2
    PAGE.write_text("\n".join(page(found)) + "\n", "utf-8")
    print(PAGE.relative_to(HERE.parent))
    return 0


def merged(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A soak that was run in parts, a file of tests at a time, as one."""
    whole: dict[str, Any] = {"date": max(run["date"] for run in runs), "figures": {}}
    whole["soak"] = min(run["soak"] for run in runs)
    for kind in ENDINGS:
        whole[kind] = sum(run[kind] for run in runs)
    for run in runs:
        whole["figures"] |= run["figures"]
    return whole


def page(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    yield "# Reliability, counted"
    yield ""
    yield (
        "Every number below was told by a test while it ran (`figure` in tests/conftest.py) and is a count of what was "
        "really done. `make test` is the quick form, `make soak` the long one; `make reliability` writes this page."
    )
    yield ""
    suites = {name: found[name] for name in SUITES if name in found}
    if suites:
        yield from _suites(suites)
    if "coverage" in found:
        yield from _coverage(found["coverage"])
    if "mutants" in found:
        yield from _mutants(found["mutants"])
    yield from LIMITS.splitlines()


def _suites(suites: Mapping[str, Any]) -> Iterator[str]:
    for name, run in suites.items():
        ended = ", ".join(f"{run[kind]:,} {kind}" for kind in ENDINGS)
        share = run["soak"] if name == "soak" else 1
        part = "" if share == 1 else f", some of it at {share:g} of its counts"
        yield f"- `{SUITES[name]}`{part}, {run['date']}: {ended}"
    yield ""
    yield f"| | {' | '.join(f'`{SUITES[name]}`' for name in suites)} |"
    yield f"|---|{'---:|' * len(suites)}"
    for figure in sorted({name for run in suites.values() for name in run["figures"]}):
        yield f"| {figure} | {' | '.join(_shown(run['figures'].get(figure)) for run in suites.values())} |"
    yield ""


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    value = f"{row['value']:,}" if isinstance(row["value"], int) else str(row["value"])
    return value if row["of"] is None else f"{value} of {row['of']:,}"


def _coverage(run: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Branch coverage (`make coverage`, {run['date']})"
    yield ""
    yield "| | covered |"
    yield "|---|---:|"
    for name, percent in run["percent"].items():
        yield f"| {name} | {percent:.2f} % |"
    yield ""


def _mutants(run: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Mutation testing (`{run['command']}`, {run['date']})"
    yield ""
    yield "| module | tried, of all | killed | equivalent, listed | survivors | killed of those that can be |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in run["modules"]:
        judged = row["total"] - row["equivalent"]
        tried = f"{row['total']} of {row['made']}"
        share = f"{row['killed'] / max(judged, 1):.1%}"
        left = judged - row["killed"]
        yield f"| {row['module']} | {tried} | {row['killed']} | {row['equivalent']} | {left} | {share} |"
    yield ""
    yield "Survivors (what stood there, and what no test told from it):"
    yield ""
    for row in run["modules"]:
        for one in row["survivors"]:
            yield f"- `{row['module']}:{one['line']}` `{one['was']}` → `{one['becomes']}`"
    yield ""


if __name__ == "__main__":
    sys.exit(main())
