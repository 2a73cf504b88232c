"""Tokenizing at scale: seconds and peak memory of `recerase tokenize`, beside faiss's residual quantiser.

Three parts: 12 thousand real titles end to end; a million vectors, streamed from parquet files, against `faiss.ResidualQuantizer`
trained on the same sample; and catalogues of one to ten million, whose peak memory must not follow their size. Every run is a
process of its own, so that its peak (VmHWM) is its own. The peer has an advantage: it is handed blocks of vectors, and neither checks
ids nor keeps SIDs apart nor publishes. `--scale 0.01` tries it out on a hundredth of the vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench import Row, data_directory, main

MILLION, WIDE, NARROW = 1_000_000, 256, 32
GROWTH = (1, 2, 4, 10)
CODES, FILE_ROWS, BLOCK = 256, 100_000, 1 << 14
CLUSTERS, SPREAD = 4096, 0.6
NAMES = {"seconds": "time", "error": "error", "peak": "peak memory", "collisions": "collisions"}
JUDGED = 8
"""Every how many blocks one is decoded for the error."""


def row(name: str, value: float, unit: str, peer: float | None = None, target: str = "") -> Row:
    """One line of the table; `peer` is the other's figure and the ratio ours over it."""
    return Row(name, value, unit, f"{peer:.4g}" if peer else "", value / peer if peer else None, target)


def titles(*_: float) -> list[Row]:
    """12 thousand items of amazon_beauty_2014, from words to published SIDs, through the command line."""
    items = data_directory("amazon_beauty_2014") / "items.parquet"
    with tempfile.TemporaryDirectory() as home:
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "recerase", "tokenize", str(items), "--out", f"{home}/sids", "-q"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return [row("12,101 titles, end to end", time.monotonic() - began, "s", target="<= 20")]


def million(scale: float = 1.0, threads: int = 2) -> list[Row]:
    """A million vectors 256 wide, 3 x 256 codes, beside faiss at a beam of 1, which makes the same error, and at its own of 5."""
    n = max(2000, round(MILLION * scale))
    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / "vectors"
        write_vectors(data, n, WIDE)
        ours = child("ours", data, f"{home}/sids", threads, 3)
        peers = {beam: child("faiss", data, "-", threads, 3, beam) for beam in (1, 5)}
    name = f"{n:,} x {WIDE}, 3 x {CODES} codes"
    gib = 2**30
    rows = [
        row(f"{name}: time", ours["seconds"], "s", target="<= 600"),
        row(f"{name}: peak memory", ours["peak"] / gib, "GiB", target="<= 2"),
        row(f"{name}: of it before any work", ours["base"] / gib, "GiB"),
    ]
    for figure, unit in (("seconds", "s"), ("error", "of variance"), ("peak", "GiB"), ("collisions", "of items")):
        for beam, peer in peers.items():
            said = f"{NAMES[figure]} beside faiss with a beam of {beam}"
            each = gib if figure == "peak" else 1
            rows.append(row(f"{name}: {said}", ours[figure] / each, unit, peer[figure] / each))
    return rows


def growth(scale: float = 1.0, threads: int = 2) -> list[Row]:
    """Peak memory at one to ten million vectors 32 wide, 4 x 256 codes: what grows is bytes an item.

    Told since the smallest size, where the buffers of a block still count, and between the last two.
    """
    rows: list[Row] = []
    sizes: list[tuple[int, float]] = []
    for millions in GROWTH:
        n = max(2000, round(millions * MILLION * scale))
        with tempfile.TemporaryDirectory() as home:
            write_vectors(Path(home) / "vectors", n, NARROW)
            made = child("ours", Path(home) / "vectors", f"{home}/sids", threads, 4)
        rows.append(row(f"{n:,} x {NARROW}, 4 x {CODES} codes: time", made["seconds"], "s"))
        rows.append(row(f"{n:,} x {NARROW}, 4 x {CODES} codes: peak memory", made["peak"] / 2**20, "MiB"))
        sizes.append((n, made["peak"]))
        if n > sizes[0][0]:
            rows.append(slope(sizes[0], sizes[-1]))
    if sizes[-1][0] > sizes[-2][0] > sizes[0][0]:
        rows.append(slope(*sizes[-2:]))
    return rows


def slope(less: tuple[int, float], more: tuple[int, float]) -> Row:
    """What peak memory grew between two numbers of items, an item."""
    each = (more[1] - less[1]) / (more[0] - less[0])
    return row(f"{more[0]:,} x {NARROW}: what grew since {less[0]:,}", each, "bytes an item", target="<= 32")


def write_vectors(home: Path, n: int, width: int) -> None:
    """n vectors in clusters of clusters, float32, in parquet files of 100,000 rows."""
    home.mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(64, width)).astype(np.float32)
    centres = coarse[rng.integers(0, 64, CLUSTERS)] + 0.7 * rng.normal(size=(CLUSTERS, width)).astype(np.float32)
    for number, start in enumerate(range(0, n, FILE_ROWS)):
        size = min(FILE_ROWS, n - start)
        x = SPREAD * rng.standard_normal((size, width), np.float32) + centres[rng.integers(0, CLUSTERS, size)]
        ids = pa.array(np.char.add("item-", np.arange(start, start + size).astype(str)))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), width)
        table = pa.table({"item_id": ids, "vector": vectors})
        pq.write_table(table, home / f"{number:05d}.parquet", compression="none", use_dictionary=False)


def child(who: str, data: Path, out: str, threads: int, levels: int, beam: int = 0) -> dict[str, float]:
    """One run in a process of its own: seconds, peak and starting memory in bytes, error and collisions."""
    line = [sys.executable, __file__, "--child", who, str(data), out, str(threads), str(levels), str(beam)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_ours(data: Path, out: str, threads: int, levels: int, _: int) -> dict[str, float]:
    """`recerase.tokenize` of a dataset."""
    from recerase.api import tokenize
    from recerase.layouts.native import load_sids
    from recerase.sid.quantize import TokenizeConfig

    base = peak()
    config = TokenizeConfig(levels=levels, codes=CODES, threads=threads)
    began = time.monotonic()
    made = tokenize(data, out, config, stream=True)
    seconds, most = time.monotonic() - began, peak()
    codebooks = load_sids(out)[1]
    assert codebooks is not None
    error = unexplained(data, lambda x: codebooks.point(codebooks.encode(x)))
    collisions = made.quality.collision_before
    return {"seconds": seconds, "peak": most, "base": base, "error": error, "collisions": collisions}


def run_faiss(data: Path, _: str, threads: int, levels: int, beam: int) -> dict[str, float]:
    """faiss trained on the sample that recerase draws."""
    import faiss

    from recerase.catalog.dataset import Dataset
    from recerase.sid.quality import collision_share
    from recerase.sid.quantize import TokenizeConfig, sample_rows

    faiss.omp_set_num_threads(threads)
    base, source = peak(), Dataset.open(data)
    began = time.monotonic()
    chosen = sample_rows(len(source), TokenizeConfig(levels=levels, codes=CODES))
    parts, at = [], 0
    for x in source.vectors(BLOCK):
        low, high = (0, len(x)) if chosen is None else np.searchsorted(chosen, [at, at + len(x)])
        parts.append(x if chosen is None else x[chosen[low:high] - at])
        at += len(x)
    quantiser = faiss.ResidualQuantizer(source.width, levels, CODES.bit_length() - 1)
    quantiser.max_beam_size = beam
    quantiser.train(np.concatenate(parts))
    codes = np.concatenate([quantiser.compute_codes(x) for x in source.vectors(BLOCK)])
    seconds, most = time.monotonic() - began, peak()
    error = unexplained(data, lambda x: quantiser.decode(quantiser.compute_codes(x)))
    return {"seconds": seconds, "peak": most, "base": base, "error": error, "collisions": collision_share(codes)}


def unexplained(data: Path, decoded: Any) -> float:
    """Share of the variance that is lost between vectors and what their codes say, over every eighth block of rows."""
    from recerase.catalog.dataset import Dataset

    lost, squares, total, count = 0.0, 0.0, np.zeros(1), 0
    for number, x in enumerate(Dataset.open(data).vectors(BLOCK)):
        if number % JUDGED == 0:
            x = x.astype(np.float64)
            lost += float(((x - decoded(x.astype(np.float32))) ** 2).sum())
            squares += float((x**2).sum())
            total, count = total + x.sum(axis=0), count + len(x)
    return lost / (squares - float((total**2).sum()) / count)


def peak() -> int:
    """Most bytes of memory this process has had (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


PARTS = {"titles": titles, "million": million, "growth": growth}


def rows(scale: float = 1.0, only: str | None = None) -> list[Row]:
    """All parts; `scale` shrinks the drawn catalogues."""
    return [found for name, part in PARTS.items() if only in (None, name) for found in part(scale)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        who, data, out, *numbers = sys.argv[2:]
        print(json.dumps((run_ours if who == "ours" else run_faiss)(Path(data), out, *map(int, numbers))))
        sys.exit(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS))
    only = parser.parse_known_args()[0].only
    sys.exit(main(lambda scale: rows(scale, only), parser))
