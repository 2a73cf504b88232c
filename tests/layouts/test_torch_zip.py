"""Files of torch.save are read as data: what torch reads, without running anything, and only bytes of tensors change."""

from __future__ import annotations

import argparse
import functools
import io
import struct
import sys
import types
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from recerase.errors import CheckpointError
from recerase.layouts.pickle_values import Global, Stub
from recerase.layouts.torch_zip import exchanged, read_torch_zip

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


def of_dtype(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """[3, 4] of bytes that are valid numbers of the dtype."""
    raw = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(seed))
    return (raw + 1 if dtype != torch.bool else raw).to(dtype)


def records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_view_is_as_torch_reads_it(dtype: torch.dtype) -> None:
    base = of_dtype(dtype)
    value = {
        "whole": base,
        "nested": [base.t(), (base[1:], base[:, ::2])],
        "scalar": base[1, 2],
        "none": base[:0],
        "repeated": base[:1].expand(5, 4),
        3: base[2, 1:3],
    }
    data = saved(value)
    found, wanted = read_torch_zip(data), loaded(data)
    flat = {
        ("whole",): wanted["whole"],
        ("nested", "0"): wanted["nested"][0],
        ("nested", "1", "0"): wanted["nested"][1][0],
        ("nested", "1", "1"): wanted["nested"][1][1],
        ("scalar",): wanted["scalar"],
        ("none",): wanted["none"],
        ("repeated",): wanted["repeated"],
        ("3",): wanted[3],
    }
    assert found.tensors.keys() == flat.keys()
    for path, tensor in flat.items():
        mine = found.tensors[path]
        assert (mine.dtype, mine.shape, bits(mine)) == (tensor.dtype, tensor.shape, bits(tensor)), path
    assert found.tree["nested"][1][0] is found.tensors["nested", "1", "0"]
    assert (
        found.tensors["whole",].data_ptr() == found.tensors["nested", "0"].data_ptr()
    )  # memory is shared as in the file


class _Odd:
    """A class of a module that is gone when the file is read."""

    def __init__(self, **more: Any) -> None:
        self.__dict__.update(more)


def lightning() -> dict[str, Any]:
    """What Lightning and its users put in a checkpoint."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": OrderedDict(
            args=argparse.Namespace(lr=0.1, name="x"),
            make=functools.partial(torch.optim.AdamW, lr=0.1),
            dtype=torch.float16,
            device=torch.device("cpu"),
            size=torch.Size([3, 4]),
            many=defaultdict(list, a=1),
            odd=_Odd(weight=torch.ones(2), name="odd"),
            raw=b"\x00\xff",
            names={"a", "b"},
            parameter=torch.nn.Parameter(torch.arange(3.0)),
        ),
    }


@pytest.fixture
def gone() -> Iterator[Callable[[], None]]:
    """`_Odd` lives in a module that can be taken away."""
    module = types.ModuleType("not_installed_here")
    module._Odd = _Odd  # type: ignore[attr-defined]
    old, _Odd.__module__ = _Odd.__module__, module.__name__
    sys.modules[module.__name__] = module
    yield lambda: sys.modules.pop(module.__name__)
    sys.modules.pop(module.__name__, None)
    _Odd.__module__ = old


def test_unknown_classes_are_read_as_stubs_and_written_back_as_they_are(gone: Callable[[], None]) -> None:
    value = lightning()
    data = saved(value)
    gone()
    found = read_torch_zip(data)
    said = found.tree["hyper_parameters"]
    assert isinstance(said["args"], Stub)
    assert str(said["args"].origin) == "argparse.Namespace"
    assert said["args"].state == {"lr": 0.1, "name": "x"}
    assert isinstance(said["make"], Stub)
    assert said["make"].args == (Global("torch.optim.adamw", "AdamW"),)
    assert str(said["odd"].origin) == "not_installed_here._Odd"
    assert (said["dtype"], said["size"], said["many"]) == (torch.float16, (3, 4), {"a": 1})
    assert (said["raw"], said["names"], found.tree["epoch"]) == (b"\x00\xff", {"a", "b"}, 3)
    assert found.tensors["hyper_parameters", "parameter"].tolist() == [0, 1, 2]
    assert found.tensors["optimizer_states", "0", "state", "1", "exp_avg"].shape == (3,)
    path = ("state_dict", "1.weight")
    new = exchanged(data, {path: torch.full((2, 3), 7.0)})
    before, after = records(data), records(new)
    assert len(new) == len(data)
    assert [name for name in before if before[name] != after[name]] == ["archive/data/2"]
    assert read_torch_zip(new).tensors[path].tolist() == [[7.0] * 3] * 2


def test_the_memory_of_a_file_is_not_that_of_the_tensors() -> None:
    data = saved({"a": torch.ones(3)})
    found = read_torch_zip(data)
    found.tensors["a",].zero_()
    assert read_torch_zip(data).tensors["a",].tolist() == [1, 1, 1]


# ----------------------------------------------------------------------------------------------------------- exchanging


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exchanged_values_are_what_torch_then_loads(dtype: torch.dtype) -> None:
    base = of_dtype(dtype)
    data = saved({"a": base[1:].t(), "whole": base, "other": of_dtype(dtype, 5), "text": "kept"})
    new = of_dtype(dtype, 1)[1:].t()
    out = exchanged(data, {("a",): new})
    found = loaded(out)
    assert bits(found["a"]) == bits(new)
    assert bits(found["whole"]) == bits(base[:1]) + bits(new.t())
    assert bits(found["other"]) == bits(of_dtype(dtype, 5))
    assert found["text"] == "kept"
    assert sum(a != b for a, b in zip(records(data).values(), records(out).values(), strict=True)) == 1
    assert exchanged(out, {("a",): new.clone()}) == out


def test_nan_and_negative_zero_are_values_too() -> None:
    data = saved({"a": torch.tensor([0.0, 1.0, float("nan")])})
    new = torch.tensor([-0.0, float("nan"), float("nan")])
    assert bits(loaded(exchanged(data, {("a",): new}))["a"]) == bits(new)


def test_tensors_that_share_memory_must_agree() -> None:
    shared = torch.zeros(4)
    data = saved({"a": shared, "b": shared, "c": shared[2:], "d": shared[:1].expand(3)})
    new = torch.arange(4.0)
    out = exchanged(data, {("a",): new, ("b",): new, ("c",): new[2:], ("d",): torch.zeros(3)})
    assert loaded(out)["b"].tolist() == loaded(out)["a"].tolist() == [0, 1, 2, 3]
    for other in ({("b",): new + 1}, {("c",): new[:2]}, {("d",): torch.ones(3)}):
        with pytest.raises(CheckpointError, match="shares memory"):
            exchanged(data, {("a",): new, **other})
    with pytest.raises(CheckpointError, match="shares memory"):
        exchanged(data, {("d",): torch.arange(3.0)})


def test_what_does_not_fit_its_place_is_refused() -> None:
    data = saved({"a": torch.zeros(2, 3)})
    for path, tensor in (
        (("b",), torch.zeros(2, 3)),
        (("a",), torch.zeros(3, 2)),
        (("a",), torch.zeros(2, 3, dtype=torch.float64)),
    ):
        with pytest.raises(CheckpointError):
            exchanged(data, {path: tensor})


def test_the_byte_order_of_the_file_is_kept() -> None:
    value = {"f": torch.tensor([1.0, -2.5]), "h": torch.tensor([3, 4], dtype=torch.int16), "c": torch.tensor([1 + 2j])}
    files = records(saved(value))
    turned = dict(files)
    turned["archive/byteorder"] = b"big" if sys.byteorder == "little" else b"little"
    for key, unit in (("0", 4), ("1", 2), ("2", 4)):
        raw = files[f"archive/data/{key}"]
        turned[f"archive/data/{key}"] = b"".join(raw[at : at + unit][::-1] for at in range(0, len(raw), unit))
    data = zipped(turned)
    found = read_torch_zip(data)
    assert all(torch.equal(found.tensors[name,], tensor) for name, tensor in value.items())
    out = exchanged(data, {("f",): torch.tensor([4.0, 5.0])})
    assert records(out)["archive/data/0"] == struct.pack(">2f" if sys.byteorder == "little" else "<2f", 4, 5)
    assert torch.equal(loaded(out)["f"], torch.tensor([4.0, 5.0]))


def test_checksums_are_right_with_and_without_descriptors() -> None:
    data = saved({"a": torch.zeros(4)})
    for content in (data, zipped(records(data))):
        out = exchanged(content, {("a",): torch.ones(4)})
        with zipfile.ZipFile(io.BytesIO(out)) as archive:
            info = archive.getinfo("archive/data/0")
            assert zlib.crc32(torch.ones(4).numpy().tobytes()) == info.CRC
        assert records(out).keys() == records(content).keys()
        assert read_torch_zip(out).tensors["a",].tolist() == [1, 1, 1, 1]
