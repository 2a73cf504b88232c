"""SID tables alone as RPG and TorchEasyRec leave them, and what these tools' own readers make of a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEM_IDS = "sentence-t5-base_OPQ4,IVF1,PQ4x4.sem_ids"


def digits(n: int = 30, levels: int = 4, size: int = 16, seed: int = 0) -> np.ndarray:
    """[N, L] codes; items 7 and 8 share theirs, and so do 9, 10 and 11."""
    out = np.random.default_rng(seed).integers(0, size, (n, levels))
    out[8], out[10], out[11] = out[7], out[9], out[9]
    return out


def rpg(out: Path, codes: np.ndarray | None = None) -> Path:
    """The cached file of `_generate_semantic_id_opq`, in a directory `processed`."""
    out.mkdir(parents=True)
    codes = digits() if codes is None else codes
    said = {f"B{row:04d}": tuple(sid) for row, sid in enumerate(codes.tolist())}
    (out / SEM_IDS).write_text(json.dumps(said))
    return out


def rpg_reader(file: Path, n_digit: int = 4, codebook_size: int = 16) -> dict[str, tuple[int, ...]]:
    """What `_init_tokenizer` makes of the file: item -> token ids."""
    found = json.loads(file.read_text())
    return {
        item: tuple(code + codebook_size * digit + 1 for digit, code in enumerate(sid[:n_digit]))
        for item, sid in found.items()
    }


def torcheasyrec(
    out: Path, codes: np.ndarray | None = None, sizes: tuple[int, ...] = (16,) * 4, capacity: int = 3
) -> Path:
    """ROOT/v1 as `CollisionResolutionRunner.run` publishes it, with ids of int64; item 8 was moved to its SID."""
    codes = digits() if codes is None else codes
    origin = codes.copy()
    origin[8, -1] = (origin[8, -1] + 1) % sizes[-1]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    buckets: dict[tuple[int, ...], list[int]] = {}
    slots = []
    for row, sid in enumerate(map(tuple, codes.tolist())):
        buckets.setdefault(sid, []).append(100 + row)
        slots.append(len(buckets[sid]))
    place = out / "v1"
    for artifact in ("item_to_sid", "sid_to_items"):
        (place / artifact).mkdir(parents=True)
    forward = {
        "item_id": pa.array(100 + np.arange(len(codes))),
        "origin_codebook": origin.tolist(),
        "codebook": codes.tolist(),
        "offset_codebook": (codes + starts).tolist(),
        "index": slots,
    }
    keys = sorted(buckets)
    backward = {
        "codebook": [list(key) for key in keys],
        "offset_codebook": [(np.array(key) + starts).tolist() for key in keys],
        "itemids": [buckets[key] for key in keys],
    }
    half = len(codes) // 2
    whole = pa.table(forward)
    pq.write_table(whole.slice(0, half), place / "item_to_sid" / "part-0.parquet")
    pq.write_table(whole.slice(half), place / "item_to_sid" / "part-1.parquet")
    pq.write_table(pa.table(backward), place / "sid_to_items" / "part-0.parquet")
    counts = {"item_to_sid": len(codes), "sid_to_items": len(keys)}
    manifest = {
        "bundle_uuid": "5" * 32,
        "codebook": list(sizes),
        "capacity": capacity,
        "max_observed_items_per_sid": max(slots),
        "artifacts": {
            name: {"save_type": "parquet", "rows": rows, "location": f"oss://bundle/v1/{name}"}
            for name, rows in counts.items()
        },
        "item_id_type": "int64",
    }
    (place / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return out


def append_reader(root: Path, generation: str, codebook: list[int]) -> dict[object, list[int]]:
    """What a later run with --from_generation asks of a generation (bundle.py, `_load_prior_occupancy`): item -> offset codes."""
    said = json.loads((root / generation / "manifest.json").read_text())
    assert said["codebook"] == codebook  # check_prior_compatible
    assert {"bundle_uuid", "capacity", "max_observed_items_per_sid"} <= said.keys()
    assert all(set(entry) == {"save_type", "rows", "location"} for entry in said["artifacts"].values())
    back = pq.read_table(sorted((root / generation / "sid_to_items").glob("part-*.parquet"))[0])
    sizes = np.array(codebook, np.int64)
    keys = []
    for sid in back["codebook"].to_pylist():
        key = 0
        for code, size in zip(sid, sizes.tolist(), strict=True):
            key = key * size + code
        keys.append(key)
    assert keys == sorted(set(keys))  # "must be ascending by SID key with one row per bucket"
    front = pa.concat_tables(
        pq.read_table(part) for part in sorted((root / generation / "item_to_sid").glob("part-*.parquet"))
    )
    assert front.column_names == ["item_id", "origin_codebook", "codebook", "offset_codebook", "index"]
    assert (
        front.num_rows
        == sum(len(ids) for ids in back["itemids"].to_pylist())
        == said["artifacts"]["item_to_sid"]["rows"]
    )
    assert str(front["item_id"].type) == said["item_id_type"]
    assert back["itemids"].type.value_type == front["item_id"].type
    assert front["index"].type == pa.int64()
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    by_bucket = {
        tuple(sid): ids for sid, ids in zip(back["codebook"].to_pylist(), back["itemids"].to_pylist(), strict=True)
    }
    for row in front.to_pylist():
        assert row["offset_codebook"] == (np.array(row["codebook"]) + starts).tolist()
        assert by_bucket[tuple(row["codebook"])][row["index"] - 1] == row["item_id"]  # slot order
    return dict(zip(front["item_id"].to_pylist(), front["offset_codebook"].to_pylist(), strict=True))
