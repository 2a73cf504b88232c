"""The memory a model is loaded into: read once, hashed there, held once, the file's no longer, and as transformers has it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save

from recerase.catalog.files import reading_verified
from recerase.errors import ArtefactError, CheckpointError, UsageError
from recerase.layouts import native
from recerase.layouts.native import load_checkpoint, save_checkpoint
from recerase.layouts.tensors import numpy_memory, read_safetensors, torch_memory
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.sid.quantize import TokenizeConfig, tokenize
from recerase.store import publish, read_manifest, write_manifest

N, D = 40, 8
IDS = np.array([f"item-{number:02d}" for number in range(N)], dtype=object)


@pytest.fixture(scope="module")
def sids() -> tuple[Any, ...]:
    points = np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)
    table, codebooks, _ = tokenize(points, IDS, TokenizeConfig(levels=3, codes=8))
    return table, codebooks, points


def published(out: Path, sids: tuple[Any, ...], kind: Any = "causal", dtype: Any = torch.float32, **more: Any) -> Path:
    config = ModelConfig(**{"kind": kind, "width": 16, "layers": 2, "heads": 2, "feed_forward": 24, "window": 5} | more)
    model = new_recommender(config, sids[0].schema)
    model.module.to(dtype)
    with publish(out) as result:
        save_checkpoint(result.directory, model, *sids)
        result.provenance = {"command": "test"}
    return out


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_file_holds_is_computed_as_transformers_computes_it(
    tmp_path: Path, sids: tuple[Any, ...], kind: str, dtype: torch.dtype
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    path = published(tmp_path / "ckpt", sids, kind, dtype)
    ours = load_checkpoint(path).recommender.module
    family: Any = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    theirs = family.from_pretrained(path, local_files_only=True)
    buffers = dict(theirs.named_buffers())
    assert buffers.keys() == dict(ours.named_buffers()).keys()
    assert bool(buffers) == (kind == "causal")
    for name, buffer in ours.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name])
    tensors = [*ours.parameters(), *ours.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert all(parameter.data_ptr() % 64 == 0 for parameter in ours.parameters())


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("tie", [False, True])
def test_changing_a_loaded_model_changes_no_file_and_no_neighbour(
    tmp_path: Path, sids: tuple[Any, ...], kind: str, tie: bool
) -> None:
    path = published(tmp_path / "ckpt", sids, kind, tie=tie)
    manifest, first, second = read_manifest(path), load_checkpoint(path), load_checkpoint(path)
    before = {name: tensor.clone() for name, tensor in second.recommender.module.state_dict().items()}
    seen: set[int] = set()
    for parameter in first.recommender.module.parameters():
        place = parameter.untyped_storage()
        assert place.nbytes() == parameter.nbytes
        assert place.data_ptr() not in seen
        seen.add(place.data_ptr())
    with torch.no_grad():
        for parameter in first.recommender.module.parameters():
            parameter.add_(1.0)
    first.embeddings[:] = 7.0  # type: ignore[index]
    third = load_checkpoint(path)
    assert read_manifest(path) == manifest
    for loaded in (second, third):
        state = loaded.recommender.module.state_dict()
        assert all(torch.equal(before[name], state[name]) for name in before)
        assert np.array_equal(loaded.embeddings, sids[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model.safetensors", "codebooks.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "header", "cut", "grown", "gone"])
def test_a_file_that_changes_after_it_was_verified_does_not_get_in(
    tmp_path: Path, sids: tuple[Any, ...], name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is in order when it is verified, and another by the time its weights are read."""
    path = published(tmp_path / "ckpt", sids)
    verify = native.verify_manifest

    def and_then_change(directory: Path, needed: Any = ()) -> None:
        verify(directory, needed)
        data = bytearray((directory / name).read_bytes())
        data[{"flipped": -5, "header": 30}.get(how, 0)] ^= 1 if how in ("flipped", "header") else 0
        data = {"cut": data[:-8], "grown": data + b"\0"}.get(how, data)
        (directory / name).write_bytes(data) if how != "gone" else (directory / name).unlink()

    monkeypatch.setattr(native, "verify_manifest", and_then_change)
    if (name, how) == ("codebooks.safetensors", "gone"):
        assert load_checkpoint(path).codebooks is None
        return
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_checkpoint(path)


def test_a_file_that_changes_while_it_is_read_does_not_get_in(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    manifest = write_manifest(tmp_path, {})
    for late in (b"\1", b""):
        (tmp_path / "a").write_bytes(bytes(100))
        with pytest.raises(ArtefactError), reading_verified(tmp_path, "a", manifest) as file:
            file.read(50)
            (tmp_path / "a").write_bytes(bytes(60) + late * 40)
            file.read(50)


def test_weights_in_several_files_and_several_dtypes(tmp_path: Path, sids: tuple[Any, ...]) -> None:
    path = published(tmp_path / "ckpt", sids)
    weights = load_file(path / "model.safetensors")
    names = sorted(weights)
    norm = "model.norm.weight"  # ones: nothing is lost in two bytes
    parts = [{name: weights[name] for name in part} for part in (names[::2], names[1::2])]
    for part in parts:
        if norm in part and names[0] not in part:
            part[norm] = part[norm].to(torch.bfloat16)
    (path / "model.safetensors").unlink()
    for number, part in enumerate(parts):
        (path / f"model-{number}.safetensors").write_bytes(save(part))
    write_manifest(path, {})
    module = load_checkpoint(path).recommender.module
    state = module.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in names)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    for name, tensor, says in (
        ("a", weights[names[0]], "left over"),
        (names[0], weights[names[0]], "one set of weights"),
        ("b", torch.zeros(2, dtype=torch.int64), "int64"),
    ):
        (path / "model-2.safetensors").write_bytes(save({name: tensor}))
        write_manifest(path, {})
        with pytest.raises(CheckpointError, match=says):
            load_checkpoint(path)


def test_of_several_dtypes_the_widest_is_taken_so_that_nothing_is_lost(tmp_path: Path, sids: tuple[Any, ...]) -> None:
    path = published(tmp_path / "ckpt", sids, dtype=torch.bfloat16)
    weights = load((path / "model.safetensors").read_bytes())  # load_file would map what is written over below
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-4
    (path / "model.safetensors").write_bytes(save(weights))
    write_manifest(path, {})
    state = load_checkpoint(path).recommender.module.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(torch.equal(state[name], weights[name].float()) for name in weights)


def test_nan_is_refused(tmp_path: Path, sids: tuple[Any, ...]) -> None:
    path = published(tmp_path / "ckpt", sids)
    weights = load((path / "model.safetensors").read_bytes())
    weights["lm_head.weight"][3, 2] = torch.nan
    (path / "model.safetensors").write_bytes(save(weights))
    write_manifest(path, {})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN"):
        load_checkpoint(path)


def test_weights_that_a_dtype_cannot_hold_are_not_made_infinite(tmp_path: Path, sids: tuple[Any, ...]) -> None:
    path = published(tmp_path / "ckpt", sids)
    weights = load((path / "model.safetensors").read_bytes())
    weights["lm_head.weight"][3, 2] = -1e6
    (path / "model.safetensors").write_bytes(save(weights))
    write_manifest(path, {})
    with pytest.raises(UsageError, match="does not fit into float16") as caught:
        load_checkpoint(path, dtype=torch.float16)
    assert "bfloat16" in caught.value.remedy
    state = load_checkpoint(path, dtype=torch.bfloat16).recommender.module.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_tensors_of_a_pickle_that_share_memory_do_not_share_it_afterwards(
    tmp_path: Path, sids: tuple[Any, ...]
) -> None:
    path = published(tmp_path / "ckpt", sids, "seq2seq")
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["shared.weight"]
    wide = torch.cat([weights["decoder.block.0.layer.0.SelfAttention.k.weight"].T] * 2)
    weights["decoder.block.0.layer.0.SelfAttention.k.weight"] = wide[: len(wide) // 2].T
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    write_manifest(path, {})
    module: Any = load_checkpoint(path, trust_pickle=True).recommender.module
    state = module.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    with torch.no_grad():
        module.lm_head.weight.zero_()
    assert bool(module.shared.weight.any())


def test_another_dtype_leaves_what_is_computed_alone(tmp_path: Path, sids: tuple[Any, ...]) -> None:
    path = published(tmp_path / "ckpt", sids)
    stored, half = load_checkpoint(path), load_checkpoint(path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.recommender.module.parameters()} == {torch.bfloat16}
    for one, two in zip(stored.recommender.module.buffers(), half.recommender.module.buffers(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(stored.recommender.module.parameters(), half.recommender.module.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), two)


PEAK = """
import sys
from pathlib import Path
import torch
from recerase.layouts.native import load_checkpoint
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024
small, large = sys.argv[1:]
load_checkpoint(small)
for dtype in (None, torch.bfloat16):
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    kept = load_checkpoint(large, dtype=dtype)
    print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux's /proc"
)
def test_weights_are_held_once(tmp_path: Path, sids: tuple[Any, ...]) -> None:
    """About 60 MB of them, in a fresh process; two copies would be a factor of 2.

    Half precision needs half, and a tensor or two on the way, which of 60 MB is much; stored beside its source it would be 1.5.
    """
    small = published(tmp_path / "small", sids)
    large = published(tmp_path / "large", sids, width=512, layers=4, heads=4, feed_forward=2048)
    weights = (large / "model.safetensors").stat().st_size
    assert weights > 60e6
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(small), str(large)], capture_output=True, text=True, check=True
    )
    peaks = [int(line) / weights for line in done.stdout.split()]
    assert 0.95 < peaks[0] < 1.2
    assert 0.45 < peaks[1] < 0.95


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: Any, begin: Any, end: Any, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


READS = {
    "in any order": (file_of({"b": tensor([1], 4, 8), "a": tensor([1], 0, 4)}, bytes(8)), {"a", "b"}),
    "a number": (file_of({"a": tensor([], 0, 4)}, bytes(4)), {"a"}),
    "an empty one": (file_of({"a": tensor([0, 3], 0, 0), "b": tensor([2, 1], 0, 8)}, bytes(8)), {"a", "b"}),
    "spaces": (file_of(b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   ', bytes(4)), {"a"}),
}
REFUSES = {
    "a gap": file_of({"a": tensor([1], 4, 8)}, bytes(8)),
    "bytes left over": file_of({"a": tensor([1], 0, 4)}, bytes(8)),
    "bytes missing": file_of({"a": tensor([2], 0, 8)}, bytes(4)),
    "one tensor, two names": file_of({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, bytes(4)),
    "a shape of another size": file_of({"a": tensor([3], 0, 8)}, bytes(8)),
    "a negative side": file_of({"a": tensor([-1, -2], 0, 8)}, bytes(8)),
    "a side that is no number": file_of({"a": tensor([True, 2], 0, 8)}, bytes(8)),
    "a fraction": file_of({"a": tensor([2.0], 0, 8)}, bytes(8)),
    "backwards": file_of({"a": tensor([], 4, 0)}, bytes(4)),
    "an endless empty one": file_of({"a": tensor([0, 1 << 61, 1 << 61], 0, 0)}),
    "too many sides": file_of({"a": tensor([1] * 99, 0, 4)}, bytes(4)),
    "a dtype that is no text": file_of({"a": tensor([1], 0, 4, ["F32"])}, bytes(4)),
    "a key too many": file_of({"a": tensor([1], 0, 4, more=1)}, bytes(4)),
    "a list": file_of([1]),
    "no JSON": file_of(b"{]"),
    "no text": file_of(b"\xff\xfe\xfd"),
    "deep": file_of(b"[" * 100_000),
    "a name twice": file_of(b'{"a":' + json.dumps(tensor([0], 0, 0)).encode() + b',"a":1}'),
    "NaN": file_of(b'{"__metadata__":{},"a":NaN}'),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}}),
    "a number without end": file_of(b'{"a":' + b"9" * 10_000 + b"}"),
    "seven bytes": b"1234567",
}


def read(path: Path, memory: Any) -> dict[str, Any]:
    manifest = write_manifest(path, {})
    with reading_verified(path, "t", manifest) as file:
        return read_safetensors(file, memory)[0]


@pytest.mark.parametrize("memory", [numpy_memory, torch_memory])
@pytest.mark.parametrize("case", READS.values(), ids=READS)
def test_a_header_in_order_is_read(tmp_path: Path, memory: Any, case: tuple[bytes, set[str]]) -> None:
    (tmp_path / "t").write_bytes(case[0])
    found = read(tmp_path, memory)
    theirs = load_file(tmp_path / "t")
    assert found.keys() == theirs.keys() == case[1]
    assert all(tuple(found[name].shape) == tuple(theirs[name].shape) for name in found)


@pytest.mark.parametrize("memory", [numpy_memory, torch_memory])
@pytest.mark.parametrize("data", REFUSES.values(), ids=REFUSES)
def test_a_header_that_lies_is_refused(tmp_path: Path, memory: Any, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(ValueError, match=r".+"):
        read(tmp_path, memory)


def test_every_dtype_comes_as_safetensors_has_it(tmp_path: Path) -> None:
    given = {
        str(dtype): torch.tensor([[0, 1, 1]], dtype=dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        )
    }
    (tmp_path / "t").write_bytes(save(given))
    found = read(tmp_path, torch_memory)
    assert all(found[name].dtype == given[name].dtype and torch.equal(found[name], given[name]) for name in given)
    given.pop("torch.bfloat16")
    (tmp_path / "t").write_bytes(save(given))
    arrays = read(tmp_path, numpy_memory)
    assert all(np.array_equal(arrays[name], given[name].numpy()) for name in given)
    assert all(arrays[name].dtype == given[name].numpy().dtype for name in given)
