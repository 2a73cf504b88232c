"""How long a person waits for help: `recerase --help` and `recerase audit --help` against `python -c pass`.

Fresh processes, wall clock, the three in turn, the median of 15 runs each; the ratio is what carries over to other
machines. The target is that of a command that takes under 0.3 s where an empty interpreter takes 0.02, so 15.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS, TARGET = 15, 15.0
PASS = "python -c pass"
COMMANDS = {
    PASS: ["-c", "pass"],
    "recerase --help": ["-m", "recerase", "--help"],
    "recerase audit --help": ["-m", "recerase", "audit", "--help"],
}


def seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> int:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(RUNS + 1):  # the first fills the disk cache
        for name, arguments in COMMANDS.items():
            one = seconds(arguments)
            if run:
                taken[name].append(one)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"median of {RUNS} fresh processes, Python {sys.version.split()[0]}; target for --help: ratio {TARGET:g}")
    for name, median in medians.items():
        print(f"{name:24} {1000 * median:6.0f} ms, ratio {median / medians[PASS]:5.1f}")
    return 0 if medians["recerase --help"] <= TARGET * medians[PASS] else 1


if __name__ == "__main__":
    sys.exit(main())
