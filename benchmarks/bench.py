"""What the benchmarks share, and the page they make: `python benchmarks/bench.py` runs them all and writes BENCH.md.

A benchmark is a module `bench_*.py` with `rows(scale) -> list[Row]`: one row a claim, with the peer measured in the same run and
the target it is held to. Each runs in a process of its own, so that no one's memory or threads are another's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WITHOUT_DATA = 77
"""Exit code of a benchmark that lacks its data: neither a target met nor one missed, nor a crash."""
PAGE, FIGURES = HERE / "BENCH.md", HERE / "bench.json"
NOT_HERE = ("bench_sasrec",)
"""Has a page of its own."""


@dataclass(frozen=True)
class Row:
    """One claim, measured."""

    name: str
    value: float
    unit: str
    peer: str = ""
    """What was measured beside it, with its figure."""
    ratio: float | None = None
    target: str = ""
    """`<= 6` or `>= 5`, of the ratio where there is one, else of the value; `value <= 6` of the value in any case."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        *which, sign, limit = self.target.split()
        held = self.value if self.ratio is None or which else self.ratio
        return held <= float(limit) if sign == "<=" else held >= float(limit)


class NoDataError(Exception):
    """A benchmark needs data that is not here; says which."""


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def data_directory(name: str) -> Path:
    """A real data set: below $RECERASE_DATA, or in shared/data beside the repository. Raises NoDataError."""
    for root in (os.environ.get("RECERASE_DATA"), HERE.parent.parent / "shared" / "data"):
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
    raise NoDataError(f"needs the data set {name} (set RECERASE_DATA)")


def table_of_beauty() -> Any:
    """The SID table that others published for amazon_beauty_2014."""
    from recerase.sid.table_files import read_table

    return read_table(data_directory("amazon_beauty_2014") / "sids.json")


def lines(found: Sequence[Row]) -> list[str]:
    """A Markdown table."""
    out = ["| what | measured | beside | ratio | target |", "| --- | ---: | --- | ---: | --- |"]
    for row in found:
        ratio = "" if row.ratio is None else f"**{_number(row.ratio)}**"
        told = {None: row.target, True: f"{row.target} (met)", False: f"{row.target} (**missed**)"}[row.met]
        out.append(f"| {row.name} | {_number(row.value)} {row.unit} | {row.peer} | {ratio} | {told} |")
    return out


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def page(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    """BENCH.md: a table a benchmark, in the order of their names; None for one that was not run."""
    out = [
        "# Side by side: what recerase costs",
        "",
        "Made with `make bench`, which writes this file: do not edit it.",
        "A ratio compares two things measured in one run; the target is the ratio's, or the figure's own where there is no ratio.",
        "How each is measured stands at the head of its script.",
    ]
    for name in sorted(found):
        one = found[name]
        told = [Row(**row) for row in one["rows"]] if one else []
        out += ["", f"## `benchmarks/{name}.py`" + (f" ({one['seconds']:.0f} s)" if one and one["seconds"] else ""), ""]
        out += [f"{one['made']}", "", *lines(told)] if one else ["not run"]
    return "\n".join(out) + "\n"


def machine() -> str:
    """Date, processor and versions, for the page."""
    import torch

    names = [
        x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")
    ]
    date = time.strftime("%Y-%m-%d")
    return (
        f"{date}, {len(os.sched_getaffinity(0))} cores ({names[0] if names else platform.machine()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


def run_all(only: Sequence[str]) -> int:
    """Run the benchmarks, each in its process, and write the page anew after each; 1 when a target is missed."""
    names = sorted(path.stem for path in HERE.glob("bench_*.py") if path.stem not in NOT_HERE)
    unknown = sorted(set(only) - set(names))
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(names)}")
        return 2
    known = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    found = {name: known.get(name) for name in names}
    for name in [name for name in names if not only or name in only]:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            told = Path(place) / "rows.json"
            done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--json", str(told)], check=False)
            if done.returncode == WITHOUT_DATA:
                continue
            if not told.is_file():
                print(f"{name} did not end: no figure was changed")
                return done.returncode or 1
            found[name] = {"made": machine(), **json.loads(told.read_text())}
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found))
    missed = [row["name"] for one in found.values() if one for row in one["rows"] if Row(**row).met is False]
    print("\n".join(["targets missed:", *missed]) if missed else "every target is met")
    return 1 if missed else 0


def main(rows: Callable[[float], Sequence[Any]], parser: argparse.ArgumentParser) -> int:
    """The command line of one benchmark: prints its table; 0 when every target is met."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size, to try it out")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    given = parser.parse_args()
    began = time.monotonic()
    try:
        found = list(rows(given.scale))
    except NoDataError as error:
        print(f"not run: {error}")
        return WITHOUT_DATA
    print("\n".join(lines(found)))
    if given.json:
        taken = round(time.monotonic() - began, 1)
        given.json.write_text(json.dumps({"seconds": taken, "rows": [asdict(row) for row in found]}))
    return 0 if all(row.met is not False for row in found) else 1


if __name__ == "__main__":
    sys.exit(run_all(sys.argv[1:]))
