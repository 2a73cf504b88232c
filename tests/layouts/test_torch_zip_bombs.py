"""Files of torch.save that are small and would take for ever, or that two readers of zips would read differently."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import warnings
import zipfile

import pytest
import torch
from tests.layouts.test_torch_zip import records, saved, zipped
from tests.layouts.test_torch_zip_hostile import tensor_pickle, with_pickle

from recerase.errors import CheckpointError
from recerase.layouts.torch_zip import exchanged, read_torch_zip

DOUBLED = b")" + b"q\x01h\x01\x86" * 60
"""A tuple of twice a tuple of twice ...: 242 bytes, and 2 ** 60 values for whoever goes through it."""
PARTS = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu%stQ"


@pytest.mark.parametrize(
    "content",
    [
        b"}" + DOUBLED + b"Ns.",
        b"(" + DOUBLED + b"Nd.",
        b"c__builtin__\nset\n(](" + DOUBLED + b"etR.",
        b"\x80\x04\x8f(" + DOUBLED + b"\x90.",
        b"\x80\x04(" + DOUBLED + b"\x91.",
        b"ccollections\nOrderedDict\n(](" + DOUBLED + b"N\x86etR.",
        b"\x80\x04ca\nb\n)](" + DOUBLED + b"N\x86e\x92.",
        PARTS % DOUBLED + b".",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + PARTS % b"K\x04" + b"K\x00" + DOUBLED + b"K\x01\x85\x89}tR.",
        b"ctorch._utils\n_rebuild_tensor_v3\n("
        + PARTS % b"K\x04"
        + b"K\x00K\x04\x85K\x01\x85\x89}"
        + DOUBLED
        + b"tR.",
        b"}" + b")" + b"\x85" * 250_000 + b"Ns.",
        b"}(" + b"".join(b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little") + b"N" for i in range(1, 20_000)) + b"u.",
        b"N" + b"".join(b"p%d\n" % ((2**61 - 1) * i) for i in range(1, 20_000)) + b".",
        b"\x80\x04}q\x00(" + b"".join(b"M" + i.to_bytes(2, "little") + b"N" for i in range(60_000)) + b"u0"
        b"ca\nb\nq\x01" + b"h\x01)h\x00\x920" * 20_000 + b"h\x00.",
        b"\x80\x04(K\x00" + b"l" + b"q\x000](" + b"K\x01K\x02\x86" * 60_000 + b"e\x85q\x020ccollections\nOrderedDict\nq\x03"
        b"ctorch._tensor\n_rebuild_from_type_v2\nq\x01" + b"h\x01(h\x03Nh\x02NtR0" * 3000 + b"h\x00.",
    ],
    ids=lambda content: repr(content[:32]),
)  # fmt: skip
def test_a_short_pickle_cannot_take_for_ever(content: bytes) -> None:
    began = time.process_time()
    data = with_pickle(content)
    with contextlib.suppress(CheckpointError):
        read_torch_zip(data)
    assert time.process_time() - began < 3.0  # each took minutes and more, or ended the process


def test_keys_that_files_have_are_read() -> None:
    tree = {"a": torch.ones(2), 1: {(0, "x", (None, 2.5)): 3, torch.float16: 4, True: frozenset({"y"})}}
    found = read_torch_zip(saved(tree))
    assert found.tree[1][0, "x", (None, 2.5)] == 3
    assert set(found.tensors) == {("a",)}


def two_directories() -> bytes:
    """A zip with a directory right before its end, where Python looks, and another where the end says, where torch looks."""

    def parts(data: bytes) -> tuple[bytes, bytes, bytes]:
        end = data.rindex(b"PK\x05\x06")
        size, begin = struct.unpack("<II", data[end + 12 : end + 20])
        return data[:begin], data[begin : begin + size], data[end:]

    (one, seen_by_torch, end), (two, seen_by_python, _) = (
        parts(zipped(records(saved({"a": torch.full((4,), value)})))) for value in (0.0, 1.0)
    )
    body = one + bytes(max(0, len(seen_by_torch) - len(one)))
    moved, at = bytearray(seen_by_python), 0
    while at < len(moved):
        sizes = struct.unpack("<HHH", moved[at + 28 : at + 34])
        (place,) = struct.unpack("<I", moved[at + 42 : at + 46])
        moved[at + 42 : at + 46] = struct.pack("<I", place + len(body) - len(seen_by_torch))
        at += 46 + sum(sizes)
    where = struct.pack("<II", len(moved), len(body + two))
    return body + two + seen_by_torch + bytes(moved) + end[:12] + where + end[20:]


def test_a_zip_that_two_readers_read_differently_is_refused() -> None:
    good = zipped(records(saved({"a": torch.zeros(4)})))
    assert read_torch_zip(good).tensors["a",].tolist() == [0, 0, 0, 0]
    double = two_directories()
    with zipfile.ZipFile(io.BytesIO(double)) as archive:
        assert archive.read("archive/data/0") == torch.ones(4).numpy().tobytes()
    with warnings.catch_warnings(action="ignore"):
        assert torch.load(io.BytesIO(double), weights_only=True)["a"].tolist() == [0, 0, 0, 0]
    buffer = io.BytesIO(good)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = zipped(records(saved({"a": torch.ones(4)})))
    for data in (double, buffer.getvalue(), good + b"\0" * 8, b"PK\x03\x04" + bytes(40) + good):
        with pytest.raises(CheckpointError, match="end as torch ends one"):
            read_torch_zip(data)
        with pytest.raises(CheckpointError):
            exchanged(data, {("a",): torch.ones(4)})
    folder, place = bytearray(good), good.rindex(b"archive/data/0") - 46
    folder[place + 38] |= 0x10  # torch reads nothing from a folder, and leaves the memory as it is
    with pytest.raises(CheckpointError, match="is a folder"):
        read_torch_zip(bytes(folder))
    with pytest.raises(CheckpointError, match="twice"):
        read_torch_zip(zipped({**records(good), "archive/DATA/0": bytes(16)}))


def test_the_end_of_a_large_zip_must_be_where_it_is_said_to_be() -> None:
    data = saved({"a": torch.zeros(4)})
    place = data.rindex(b"PK\x06\x07")
    moved = bytearray(data)
    moved[place + 8 : place + 16] = struct.pack("<Q", 0)
    with pytest.raises(CheckpointError):
        read_torch_zip(bytes(moved))


def test_the_tensor_of_these_tests_is_a_good_one() -> None:
    content = b"ctorch._utils\n_rebuild_tensor_v2\n(" + PARTS % b"K\x04" + b"K\x00K\x04\x85K\x01\x85\x89}tR."
    assert read_torch_zip(with_pickle(content)).tensors[()].tolist() == [0, 0, 0, 0]
    assert read_torch_zip(with_pickle(tensor_pickle())).tensors["a",].tolist() == [0, 0, 0, 0]
