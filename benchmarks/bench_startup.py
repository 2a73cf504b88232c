"""How long a person waits for help: `recerase --help` and `recerase audit --help` against `python -c pass`.

Fresh processes, wall clock, all in turn, the median of 15 runs each; the ratio is what carries over to other machines. The
target is that of a command that takes under 0.3 s where an empty interpreter takes 0.02, so 15.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from bench import Row, main, median

RUNS, TARGET = 15, 15.0
PASS = "python -c pass"
COMMANDS = {
    PASS: ["-c", "pass"],
    "import recerase": ["-c", "import recerase"],
    "recerase --help": ["-m", "recerase", "--help"],
    "recerase audit --help": ["-m", "recerase", "audit", "--help"],
}


def seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def rows(scale: float = 1.0) -> list[Row]:
    """A row a command, in milliseconds, the median of `RUNS` (or the share `scale` of them)."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(max(1, round(RUNS * scale)) + 1):  # the first fills the disk cache
        for name, arguments in COMMANDS.items():
            one = seconds(arguments)
            if run:
                taken[name].append(one)
    medians = {name: 1000 * median(values) for name, values in taken.items()}
    empty = medians.pop(PASS)
    return [
        Row(name, each, "ms", f"{PASS}: {empty:.1f} ms", each / empty, f"<= {TARGET:g}")
        for name, each in medians.items()
    ]


if __name__ == "__main__":
    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
