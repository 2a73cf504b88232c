"""What a billion interactions and a hundred million items would take, from the rates of BENCH.md: writes SCALE.md.

Nothing here is measured anew, and nothing is assumed about machines that were not measured: hours are those of the two cores of
BENCH.md, and a line says what divides them. What would not work at that size is listed as such.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bench import FIGURES, HERE, Row

INTERACTIONS, ITEMS, WIDTH, LEVELS, USERS = 1_000_000_000, 100_000_000, 256, 4, 50_000_000
BEAUTY = 198_502 - 2 * 22_363
"""Training interactions behind `one epoch` in bench_erase."""
PAGE = HERE / "SCALE.md"


class MissingError(Exception):
    """BENCH.md lacks a figure."""


def figure(benchmark: str, *words: str) -> Row:
    """The first row of a benchmark whose name holds all words."""
    known: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for row in (known.get(benchmark) or {}).get("rows", ()):
        if all(word in row["name"] for word in words):
            return Row(**row)
    raise MissingError(f"{benchmark} has no row of {' '.join(words)}: run `make bench` first")


def lines() -> list[str]:
    """The page."""
    million = figure("bench_tokenize", "1,000,000 x 256", "time").value
    ten, one = (figure("bench_tokenize", f"{n} x 32", "time").value for n in ("10,000,000", "1,000,000"))
    grown = figure("bench_tokenize", "10,000,000", "grew").value
    trie = figure("bench_trie", "size of the trie")
    built = figure("bench_trie", "build, 10,000,000")
    mass = figure("bench_decode", "mass, T5", "over one decode").value / 1000
    audit = figure("bench_audit", "T5", "one checkpoint").value
    epochs = {
        name: figure("bench_erase", "beauty", name) for name in ("causal 3 x 128", "T5 4+4 x 128", "causal 4 x 256")
    }
    hours = 1 / 3600
    vectors = ITEMS * WIDTH * 4
    out = [
        "# A billion interactions, a hundred million items: what it takes",
        "",
        "Written by `python benchmarks/scale.py` from the figures of BENCH.md (two cores): do not edit it.",
        "",
        "| step | sharded | replicated in every process | bytes | hours on two cores |",
        "| --- | --- | --- | --- | --- |",
        f"| vectors, {WIDTH} wide, float32 | parquet files | nothing | {vectors / 1e9:,.0f} GB on disk | as long as the embedding model takes |",
        f"| `tokenize` (stream), {LEVELS} levels | files, by row blocks | codebooks; codes and id hashes of all items | {grown:.1f} bytes an item measured: {grown * ITEMS / 1e9:.1f} GB | at most {million * ITEMS / 1e6 * hours:,.0f} (rate of 1 M x 256), at least {(ten - one) / 9e6 * ITEMS * hours:,.0f} (what each further item took, 32 wide) |",
        f"| trie | nothing | all of it | {trie.value / 10e6 * ITEMS / 1e3:.1f} GB ({trie.value / 10:.0f} bytes an item at 10 M) | {built.value * 10 * 1.2 * hours:.2f} (sorting: n log n) |",
        f"| histories | users | all of them, today | {INTERACTIONS * 12 / 1e9:.0f} GB (item and time), more while parquet is read | - |",
    ]
    for name, row in epochs.items():
        epoch = float(row.peer.split(":")[1].split()[0])
        rate = BEAUTY / epoch
        out.append(
            f"| one epoch, {name} | batches | weights and optimiser | {16} bytes a parameter | {INTERACTIONS / rate * hours:,.0f} ({rate:,.0f} interactions a second) |"
        )
    out += [
        f"| audit, 22,363 users | users, by blocks of batches | weights, table, trie | as above | {audit * hours:.2f}: it reads a sample, whatever the number of users |",
        f"| exact mass, concept of 300 items | users | weights, sub-trie | - | {mass * 1000 * hours:.3f} for 1,000 users; grows with the concept's nodes, not with the catalogue |",
        "",
        "What divides the hours: processes, by the speed-up of `bench_processes` (batches, users and files are shared out, measurements",
        "gathered once), and GPUs, of which nothing was measured. An epoch over a billion interactions is not done on two cores: at",
        f"{6 * 0.8e6 * INTERACTIONS * LEVELS:.0e} floating point operations for the smallest model, it is what accelerators are for. A checkpoint that exists",
        "needs no training: auditing and erasing it cost what they cost at a thousandth of the size, but for the limits below.",
        "",
        "What would not work at that size, and why (read in the code, not measured):",
        "",
        "- `SidTable` and `Items` hold ids and titles as Python objects: some 100 bytes each, 10 GB and more for ids alone.",
        "- `Interactions` is read whole into every process; a billion rows want 12 GB after reading and several times that while it is done.",
        "- TRACER's target keeps, a level, a count for every prefix and vocabulary row (`erase/frontier.py`): at a million prefixes and",
        "  4,096 rows 32 GB. Up to a million items it is a fraction of that.",
        "- The first-level codes of the streamed tokenizer may hold no more items than there are SIDs below one: four levels of 256 are",
        "  enough for 100 M only if no first code has more than 16.7 M items.",
        "- Several machines need one file system for `--out`.",
        "",
    ]
    return out


def main() -> int:
    try:
        PAGE.write_text("\n".join(lines()))
    except MissingError as error:
        print(f"SCALE.md was not written: {error}")
        return 0
    print(PAGE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
