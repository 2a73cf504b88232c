"""Whether the tests run what they must: 90 % of all branches and lines, and every one of the modules that promise most.

The decision that shaped this file: it judges the JSON report that coverage wrote and runs nothing, so that the same run of
the tests that is the check is also the measurement, commands started by tests included.

    pytest --cov --cov-report=json:.reliability/covered.json && python benchmarks/coverage_gate.py .reliability/covered.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

OVERALL = 90.0
WHOLE = {
    "errors": ["errors.py"],
    "store": ["store.py", "disk.py", "encoded.py", "outputs.py"],
    "audit/policy": ["audit/policy.py", "audit/policy_file.py"],
    "report/schema": ["report/schema.py", "report/codec.py"],
}
"""What must be covered wholly, and the files it is made of."""


def main() -> int:
    """Exit code 0 when everything is covered as it must be, 1 when something is not, 2 without a report to judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("report", type=Path, help="the file that --cov-report=json:FILE wrote")
    parser.add_argument("--json", type=Path, help="write the percentages here as well")
    parser.add_argument("--all", action="store_true", help="name what is not covered in every file")
    asked = parser.parse_args()
    try:
        told = json.loads(asked.report.read_text("utf-8"))
        files = {name.partition("recerase/")[2]: file for name, file in told["files"].items()}
        percent = {"overall": told["totals"]["percent_covered"]}
    except (OSError, ValueError, KeyError) as error:
        print(f"{asked.report} is no report of coverage: {error!r}", file=sys.stderr)
        return 2
    percent |= {room: share([files.get(name) for name in names]) for room, names in WHOLE.items()}
    needed = {"overall": OVERALL, **dict.fromkeys(WHOLE, 100.0)}
    for name, found in percent.items():
        print(f"{name:<16} {found:6.2f} %   at least {needed[name]:g} %{'' if found >= needed[name] else '   TOO LOW'}")
    patterns = ["*"] if asked.all else [name for names in WHOLE.values() for name in names]
    for name in sorted(name for name in files if any(fnmatch(name, pattern) for pattern in patterns)):
        for line in open_places(name, files[name]):
            print(line)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        whole = {"date": datetime.date.today().isoformat(), "percent": percent}
        asked.json.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    return 0 if all(percent[name] >= needed[name] for name in percent) else 1


def share(files: Sequence[Mapping[str, Any] | None]) -> float:
    """The percentage of lines and branches of some files together; 0 when one is not in the report (it was renamed)."""
    counts = [file["summary"] for file in files if file is not None]
    total = sum(c["num_statements"] + c["num_branches"] for c in counts)
    covered = sum(c["covered_lines"] + c["covered_branches"] for c in counts)
    return 100 * covered / total if total and len(counts) == len(files) else 0.0


def open_places(name: str, file: Mapping[str, Any]) -> Iterator[str]:
    """One line for a file of which something was not run."""
    gone = set(file["missing_lines"])
    jumps = [f"{a}->{'exit' if b < 0 else b}" for a, b in file["missing_branches"] if a not in gone and b not in gone]
    if gone or jumps:
        yield f"  {name}: lines {_ranges(sorted(gone)) or 'none'}; branches {', '.join(jumps) or 'none'}"


def _ranges(lines: list[int]) -> str:
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][-1] + 1:
            runs[-1][1:] = [line]
        else:
            runs.append([line])
    return ", ".join("-".join(str(end) for end in run) for run in runs)


if __name__ == "__main__":
    sys.exit(main())
