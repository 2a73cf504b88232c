"""Puts RELIABILITY.md together from what the runs of `make test`, `make soak`, `make coverage` and `make mutants` left.

Each of them writes one JSON file into `.reliability/` (counts it made, nothing else); this script only lays them out, so
that no number stands in the page that a run did not tell.
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


def _suites(suites: Mapping[str, Any]) -> Iterator[str]:
    for name, run in suites.items():
        ended = ", ".join(f"{run[kind]:,} {kind}" for kind in ENDINGS)
        share = run["soak"] if name == "soak" else 1
        part = "" if share == 1 else f", {share:g} of its counts"
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
    yield "| module | mutants | killed | share | equivalent, listed | survivors |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in run["modules"]:
        judged = row["total"] - row["equivalent"]
        yield (
            f"| {row['module']} | {row['total']} | {row['killed']} | {row['killed'] / max(judged, 1):.1%} "
            f"| {row['equivalent']} | {judged - row['killed']} |"
        )
    yield ""


if __name__ == "__main__":
    sys.exit(main())
