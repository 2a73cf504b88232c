"""Deltas against the files they make: any two files, and the small ones where tensors or entries are shared."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from recerase.errors import ArtefactError
from recerase.patches import delta as deltas
from recerase.patches.delta import Blob, Delta, find_delta, made_from
from recerase.patches.segments import segments


def between(place: Path, old: bytes, new: bytes) -> Delta:
    """The delta of two files, once it is known to make the one of the other."""
    (place / "old").write_bytes(old)
    (place / "new").write_bytes(new)
    with Blob(place / "old") as source, Blob(place / "new") as target:
        found = find_delta(source, target)
        assert b"".join(made_from(found, source)) == new
        assert source.sha256() == hashlib.sha256(old).hexdigest()
    steps = found.steps
    assert (steps[:, 1] > 0).all()
    assert steps[steps[:, 0] < 0, 1].sum() == len(found.new)
    assert not ((steps[1:, 0] < 0) & (steps[:-1, 0] < 0)).any()  # neighbours are one
    return found


@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_any_two_files(tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, same: bool) -> None:
    between(tmp_path_factory.mktemp("any"), old, old + new if same else new)


def test_rows_of_tensors_are_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"embed": rng.normal(size=(50, 12)).astype(np.float32), "norm": rng.normal(size=40).astype(np.float32)}
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    changed["embed"][[3, 4, 40], 5] += 1
    changed["norm"][7] += 1
    found = between(tmp_path, save(tensors), save(changed))
    assert found.new == changed["embed"][[3, 4]].tobytes() + changed["embed"][40].tobytes() + changed["norm"].tobytes()
    assert found.rows == {"embed": (3, 50), "norm": (1, 1)}


def test_tensors_that_lie_elsewhere_are_found_by_name(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    more = {"first": np.zeros((3, 4), np.float64), "b": rows}
    found = between(tmp_path, save({"b": rows}), save(more))
    assert len(found.new) < 400


def test_archives_of_torch_under_another_name(tmp_path: Path) -> None:
    """torch.save names the archive by the file, or "archive" in memory, and lays tensors at other places then."""
    state = {f"layer.{n}": torch.randn(200, 16) for n in range(3)}
    torch.save(state, tmp_path / "tiger_toy_final_state.pth")
    state["layer.1"][5] += 1
    buffer = io.BytesIO()
    torch.save(state, buffer)
    old, new = (tmp_path / "tiger_toy_final_state.pth").read_bytes(), buffer.getvalue()
    found = between(tmp_path, old, new)
    assert len(found.new) < 0.1 * len(new)
    assert b"tiger_toy_final_state/data.pkl" in old
    assert b"archive/data.pkl" in new


def test_entries_of_a_table_in_one_line(tmp_path: Path) -> None:
    index = {str(n): [f"<a_{n % 7}>", f"<b_{n % 11}>"] for n in range(500)}
    old = json.dumps(index).encode()
    index["77"], index["400"] = ["<a_100>", "<b_9>"], ["<a_1>"]
    found = between(tmp_path, old, json.dumps({**index, "tombstone": ["<a_3>"]}).encode())
    assert len(found.new) < 120


def test_repetition_does_not_become_copies_without_end(tmp_path: Path) -> None:
    found = between(tmp_path, b"line\n", b"line\n" * 100)
    assert found.steps.tolist() == [[-1, 500]]


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + b"x" * 100,
        b"\xff" * 16,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        (2).to_bytes(8, "little") + b"[]",
        (30).to_bytes(8, "little") + b'{"a": {"data_offsets": [0,9]}}',
        (46).to_bytes(8, "little") + b'{"a": {"data_offsets": [0,99], "shape": [3,3]}}' + b"0" * 9,
        b"",
    ],
)
def test_what_is_no_file_of_tensors_has_no_segments(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with Blob(tmp_path / "file") as file:
        assert segments(file) == []
    between(tmp_path, data, data + b"1")
    between(tmp_path, data, data[::-1])


def test_changes_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "_BLOCK", 64)
    rng = np.random.default_rng(1)
    old = {"a": rng.integers(0, 9, (20, 20), dtype=np.int8), "b": rng.integers(0, 9, (50, 3), dtype=np.int8)}
    new = {name: tensor.copy() for name, tensor in old.items()}
    new["a"][[0, 1, 19]] = 77
    new["b"][[20, 21, 22]] = 77
    found = between(tmp_path, save(old), save(new))
    assert len(found.new) == 3 * 20 + 3 * 3
    assert found.rows == {"a": (3, 20), "b": (3, 50)}
    data = bytearray(rng.bytes(1000))
    other = bytearray(data)
    for place in (0, 10, 63, 64, 500, 999):
        other[place] ^= 1
    assert len(between(tmp_path, bytes(data), bytes(other)).new) <= 80


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with Blob(tmp_path / "file") as file:
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(ArtefactError, match="shorter"):
            file.read(0, 100)
    with pytest.raises(ArtefactError, match="Cannot read"):
        Blob(tmp_path / "gone")
