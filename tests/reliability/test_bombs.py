"""A few kilobytes that claim, or unfold to, more than the memory holds are refused in one sentence."""

from __future__ import annotations

import io
import json
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.reliability.conftest import Job

from recerase.catalog import load_embeddings, load_items
from recerase.catalog.items import items_from_table
from recerase.errors import (
    ArtefactError,
    TableError,
)
from recerase.layouts.native import load_checkpoint
from recerase.sid.table_files import read_table
from recerase.store import write_manifest

Figure = Callable[..., None]


@contextmanager
def bounded(megabytes: int = 512, seconds: float = 5.0) -> Iterator[None]:
    """The block takes little CPU time, and the process does not grow by more than `megabytes`."""
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - began < seconds
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    assert grown < megabytes, f"{grown} MB"


def items(n: int = 3) -> Any:
    nothing = [""] * n
    columns = {"item_id": [str(i) for i in range(n)], "title": nothing, "description": nothing, "categories": [[]] * n}
    return items_from_table(pa.table(columns))


@pytest.mark.parametrize(
    "claim",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"quantization_config": {"quant_method": "awq"}},
        {"model_type": "evil"},
        {"model_type": ["llama"]},
        {"vocab_size": 10**12},
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "many"},
        {"hidden_size": -1},
        {"hidden_act": "__import__('os')"},
        {"rope_scaling": {"type": "evil"}},
        {"recerase": {"window": 10**12}},
        {"recerase": []},
        {"dtype": "os.system"},
    ],
    ids=str,
)
def test_a_config_runs_nothing_and_claims_nothing(
    own_job: Job, claim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest vouches for it: whoever made the directory is the attacker."""
    marker = own_job.home / "marker"
    evil = f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    (own_job.model / "evil.py").write_text(evil)
    config = own_job.model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | claim))
    write_manifest(own_job.model, {})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with bounded(), pytest.raises(ArtefactError) as error:
        load_checkpoint(own_job.model)
    assert "\n" not in error.value.message
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------------ bombs


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


HEADERS = {
    "a header longer than the file": safetensors({}, length=2**62),
    "a header of 100 MB": safetensors({}, length=10**8),
    "offsets that overlap": safetensors(
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in ("a", "b")}, b"\0" * 8
    ),
    "offsets beyond the end": safetensors(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\0" * 8
    ),
    "a shape without content": safetensors({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
    "an unknown dtype": safetensors({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a dtype numpy lacks": safetensors({"a": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}, b"\0" * 4),
    "no tensors": safetensors({}),
    "nothing": b"",
    "metadata nested deep": safetensors(
        {"__metadata__": {"recerase": "[" * 100_000}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        b"\0" * 4,
    ),
}


@pytest.mark.parametrize("bomb", HEADERS.values(), ids=HEADERS)
def test_a_safetensors_bomb_is_refused(own_job: Job, bomb: bytes, figure: Figure) -> None:
    """As weights, as codebooks and as embeddings; the manifest agrees."""
    for name in ("model.safetensors", "codebooks.safetensors"):
        kept = (own_job.model / name).read_bytes()
        (own_job.model / name).write_bytes(bomb)
        write_manifest(own_job.model, {})
        with bounded(), pytest.raises(ArtefactError) as error:
            load_checkpoint(own_job.model)
        assert error.value.remedy
        (own_job.model / name).write_bytes(kept)
    (own_job.home / "e.safetensors").write_bytes(bomb)
    with bounded(), pytest.raises(ArtefactError):
        load_embeddings(own_job.home / "e.safetensors", items())
    figure("hostile: bombs that were read", 0, of=3)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(content: bytes, repeat: int, name: str = "embeddings.npy") -> bytes:
    """An archive with `content` and then megabytes of zeros in one member."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        member.write(content)
        for _ in range(repeat):
            member.write(bytes(1 << 20))
    return held.getvalue()


def test_an_array_that_unfolds_is_refused(tmp_path: Path, figure: Figure) -> None:
    bombs = {
        "zeros.npz": zipped(npy_header("(3, 17476266)"), 200),
        "claims.npz": zipped(npy_header("(3, 1000000000000)"), 1),
        "claims.npy": npy_header("(3, 1000000000000)"),
        "shape.npy": npy_header("(3, 10**18)"),
        "code.npy": npy_header("__import__('os')"),
        "short.npz": zipped(npy_header("(3, 9999)"), 1)[:-40],
        "names.npz": zipped(npy_header("(3, 2)") + bytes(24), 0, "../../escaped.npy"),
    }
    stream = 30 + sum(struct.unpack_from("<HH", bombs["names.npz"], 26))  # where the compressed bytes begin
    bombs["zlib.npz"] = bombs["names.npz"][:stream] + b"\xff" + bombs["names.npz"][stream + 1 :]
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        with bounded():
            if name == "names.npz":  # the name of a member is a key, never a path
                assert load_embeddings(tmp_path / name, items()).shape == (3, 2)
                continue
            with pytest.raises(ArtefactError) as error:
                pytest.fail(f"{name} was read: {load_embeddings(tmp_path / name, items())}")
        assert error.value.remedy, name
    assert not (tmp_path.parent.parent / "escaped.npy").exists()
    figure("hostile: bombs that were read", 0, of=len(bombs) - 1)


def test_a_parquet_that_unfolds_is_refused(tmp_path: Path, figure: Figure) -> None:
    """Millions of rows, or one long text for every row, in a few kilobytes."""
    n = 1_000_000
    rows = pa.table({"item_id": pa.array(["a"] * n), "codes": pa.array([[0]] * n, pa.list_(pa.int32()))})
    with pq.ParquetWriter(tmp_path / "rows.parquet", rows.schema, compression="zstd") as writer:
        for _ in range(6):
            writer.write_table(rows)
    texts = pa.array(["long " * 2_000_000] * 9)
    rest = {"description": [""] * 9, "categories": [[]] * 9}
    pq.write_table(
        pa.table({"item_id": list("abcdefghi"), "title": texts, **rest}), tmp_path / "text.parquet", compression="zstd"
    )
    bombs: list[tuple[str, Callable[[Path], Any], str]] = [
        ("rows.parquet", read_table, "claims"),
        ("text.parquet", load_items, "memory"),
    ]
    for name, read, says in bombs:
        assert (tmp_path / name).stat().st_size < 1 << 17
        with bounded(), pytest.raises(ArtefactError, match=says):
            read(tmp_path / name)
    figure("hostile: bombs that were read", 0, of=len(bombs))


@pytest.mark.parametrize(
    "table",
    [
        {"a": [16_000_000] * 500},
        {"a": ["<a_999999999>"]},
        {"a": [10**30]},
        {"a": [1], "\ud800": [2]},
    ],
    ids=["many codes", "large code", "larger code", "surrogate"],
)
def test_a_sid_table_does_not_claim_the_memory(tmp_path: Path, table: dict[str, Any]) -> None:
    (tmp_path / "sids.json").write_text(json.dumps(table))
    with bounded(), pytest.raises(TableError):
        read_table(tmp_path / "sids.json")


def test_a_json_table_that_names_an_item_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sids.json").write_text('{"a": [1], "a": [2]}')
    with pytest.raises(TableError, match="twice"):
        read_table(tmp_path / "sids.json")
