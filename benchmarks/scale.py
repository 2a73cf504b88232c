"""What a billion interactions and a hundred million items would take, from the rates of BENCH.md: writes SCALE.md.

Nothing here is measured anew, and nothing is assumed about machines that were not measured: hours are those of the two cores of
BENCH.md, and a line says what divides them. What would not work at that size is listed as such.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bench import FIGURES, HERE, Row

INTERACTIONS, ITEMS, WIDTH, LEVELS = 1_000_000_000, 100_000_000, 256, 4
EPOCH = 198_502 - 2 * 22_363
"""Training interactions of amazon_beauty_2014, behind `one epoch` in bench_erase."""
SHAPES = ("causal 3 x 128", "T5 4+4 x 128", "causal 4 x 256")
PAGE = HERE / "SCALE.md"
HEAD = ("step", "sharded by", "in every process", "bytes", "hours on two cores")

AFTER = """
What divides the hours: processes (batches, users and files are shared out, measurements gathered once), and GPUs. Of two processes
an audit gained what BENCH.md says; a training on a small shop gained nothing, and no larger one was timed. Of GPUs nothing was
measured. An epoch over a billion interactions is not done on two cores: at least
{operations:.0e} floating point operations for a model of 0.8 M parameters are what accelerators are for. A checkpoint that
exists needs no training: auditing and erasing it cost what they cost at a thousandth of the size, but for the limits below.

What would not work at that size, and why (read in the code, not measured):

- `SidTable` and `Items` hold ids and titles as Python objects, some 100 bytes each: 10 GB and more for the ids alone.
- `Interactions` is read whole into every process: a billion rows are 12 GB afterwards, and several times that while they are read.
- TRACER's target keeps, a level, a count for every prefix and vocabulary row (`erase/frontier.py`): at a million prefixes and
  4,096 rows 32 GB.
- No first code of the streamed tokenizer may hold more items than there are SIDs below it: with 4 x 256 codes 16.7 M of the 100 M.
- Several machines need one file system for `--out`.
"""


class MissingError(Exception):
    """BENCH.md lacks a figure."""


def figure(benchmark: str, *words: str) -> Row:
    """The first row of a benchmark whose name holds all words."""
    known: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for row in (known.get(benchmark) or {}).get("rows", ()):
        if all(word in row["name"] for word in words):
            return Row(**row)
    raise MissingError(f"{benchmark} has no row of {' '.join(words)}: run `make bench` first")


def hours(seconds: float) -> str:
    found = seconds / 3600
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"


def steps() -> list[tuple[str, ...]]:
    """The lines of the table, in the order of HEAD."""
    wide = figure("bench_tokenize", "1,000,000 x 256", "time").value
    ten, one = (figure("bench_tokenize", f"{n} x 32", "time").value for n in ("10,000,000", "1,000,000"))
    held = figure("bench_tokenize", "10,000,000", "grew").value
    trie, built = figure("bench_trie", "size of the trie").value, figure("bench_trie", "build, 10,000,000").value
    mass, audit = (
        figure("bench_decode", "mass, T5", "over one decode").value,
        figure("bench_audit", "T5", "one checkpoint").value,
    )
    found: list[tuple[str, ...]] = [
        (
            f"vectors, {WIDTH} wide",
            "files",
            "nothing",
            f"{ITEMS * WIDTH * 4 / 1e9:,.0f} GB on disk",
            "those of the model",
        ),
        (
            f"`tokenize`, {LEVELS} levels",
            "blocks of rows",
            "codebooks; codes and hashes of ids",
            f"{held:.0f} an item: {held * ITEMS / 1e9:.1f} GB",
            f"{hours((ten - one) / 9e6 * ITEMS)} (32 wide, 1 thread) to {hours(wide / 1e6 * ITEMS)} (rate of 1 M x 256)",
        ),
        (
            "trie",
            "nothing",
            "all of it",
            f"{trie / 10:.0f} an item: {trie * ITEMS / 1e10:.1f} GB",
            f"{hours(built * 10 * 8 / 7)} (n log n)",
        ),
        ("histories", "users, once read", "all of them, today", f"{INTERACTIONS * 12 / 1e9:.0f} GB", "-"),
    ]
    for shape in SHAPES:
        took = float(figure("bench_erase", "beauty", shape).peer.split(":")[1].split()[0])
        rate = EPOCH / took
        told = f"{hours(INTERACTIONS / rate)} ({rate:,.0f} interactions a second)"
        found.append((f"one epoch, {shape}", "batches", "weights, optimiser", "16 a parameter", told))
    return [
        *found,
        (
            "audit of 22,363 users, T5",
            "users",
            "weights, table, trie",
            "as above",
            f"{hours(audit)}, whatever users there are",
        ),
        (
            "exact mass, 300 items, 1,000 users, T5",
            "users",
            "weights",
            "-",
            f"{hours(mass)}; grows with the concept's nodes",
        ),
    ]


def page() -> str:
    lines = [
        "# A billion interactions, a hundred million items: what it takes",
        "",
        "Written by `python benchmarks/scale.py` from the figures of BENCH.md (two cores): do not edit it.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"| {' | '.join('---' for _ in HEAD)} |",
        *(f"| {' | '.join(step)} |" for step in steps()),
    ]
    return "\n".join(lines) + "\n" + AFTER.format(operations=6 * 0.8e6 * INTERACTIONS * LEVELS)


def main() -> int:
    try:
        PAGE.write_text(page())
    except MissingError as error:
        print(f"SCALE.md was not written: {error}")
        return 0
    print(PAGE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
