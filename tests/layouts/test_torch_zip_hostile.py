"""Files of torch.save that lie, or want to run something, are refused in one sentence; nothing of them is run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.layouts.test_torch_zip import records, saved, zipped

from recerase.errors import CheckpointError
from recerase.layouts.torch_zip import exchanged, read_torch_zip


class Runs:
    """Leaves a file behind when a pickle is believed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def with_pickle(content: bytes) -> bytes:
    files = records(saved({"a": torch.zeros(4)}))
    return zipped(files | {"archive/data.pkl": content})


def tensor_pickle(
    kind: str = "FloatStorage", key: str = "0", count: Any = 4, offset: int = 0, shape: Any = (4,), strides: Any = (1,)
) -> bytes:
    """A pickle of {"a": tensor}, every part of which may lie."""

    def pushed(value: Any) -> bytes:
        if isinstance(value, tuple):
            return b"(" + b"".join(pushed(inner) for inner in value) + b"t"
        return pickle.dumps(value, 2)[2:-1]

    return b"".join(
        (
            b"\x80\x02}",
            pushed("a"),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            pushed("storage"),
            b"ctorch\n" + kind.encode() + b"\n",
            pushed(key),
            pushed("cpu"),
            pushed(count),
            b"tQ",
            pushed(offset),
            pushed(shape),
            pushed(strides),
            b"\x89}tRs.",
        )
    )


def test_the_tests_own_pickle_is_a_good_one() -> None:
    assert read_torch_zip(with_pickle(tensor_pickle())).tensors["a",].tolist() == [0, 0, 0, 0]


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    data = saved({"a": torch.ones(2), "b": Runs(mark), "c": [Runs(mark)]})
    found = read_torch_zip(data)
    assert str(found.tree["b"].origin) == f"{os.system.__module__}.system"
    exchanged(data, {("a",): torch.zeros(2)})
    for text in (
        f"cposix\nsystem\n(S'touch {mark}'\ntR.",
        f"(S'touch {mark}'\niposix\nsystem\n.",
        f"(cposix\nsystem\nS'touch {mark}'\no.",
        f"c__builtin__\neval\n(S'open({str(mark)!r}, \"w\")'\ntR.",
        f"c__builtin__\ngetattr\n(cposix\nsystem\nS'__call__'\ntR(S'touch {mark}'\ntR.",
        f"}}S'a'\ncbuiltins\nexec\n(S'open({str(mark)!r}, \"w\")'\ntRs.",
        f"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nNS'touch {mark}'\n\x85NtR.",
        f"ccollections\ndefaultdict\n(cposix\nsystem\ntRS'a'\nS'touch {mark}'\ns.",
    ):
        content = text.encode("latin-1")
        with contextlib.suppress(CheckpointError):
            read_torch_zip(with_pickle(content))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        tensor_pickle(count=5),
        tensor_pickle(count=1 << 60),
        tensor_pickle(count=-1),
        tensor_pickle(offset=1),
        tensor_pickle(offset=-1),
        tensor_pickle(shape=(5,)),
        tensor_pickle(shape=(1 << 40,), strides=(0,)),
        tensor_pickle(shape=(1 << 61,), strides=(1 << 61,)),
        tensor_pickle(shape=(4, 4), strides=(1,)),
        tensor_pickle(shape=(-1,)),
        tensor_pickle(shape=(2,), strides=(4,)),
        tensor_pickle(shape="four"),
        tensor_pickle(key="9"),
        tensor_pickle(key="../data.pkl"),
        tensor_pickle(kind="QInt8Storage"),
        tensor_pickle(kind="load"),
        tensor_pickle()[:-1],
        tensor_pickle()[:40],
        b"",
        b".",
        b"(.",
        b"\x80\x02]r\xff\xff\xff\x7f",  # a memo of two thousand million places
        b"\x80\x02\x82\x01.",
        b"\x80\x02(lp0\ng0\na.",  # a list in itself
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x3f.",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"]" * 3000 + b"a" * 2999 + b".",
        b"]q\x00"
        + b"".join(b"](h" + bytes([at]) + b"h" + bytes([at]) + b"eq" + bytes([at + 1]) for at in range(60))
        + b".",
        b"]q\x00(" + b"K\x01" * 3000 + b"e" + b"c__builtin__\nset\nh\x00\x85R0" * 3000 + b"h\x00.",
        b"}(U\x01a" + tensor_pickle()[6:-2] + b"U\x01au.",
        b"I1\n}b.",
        b"K\x01K\x02a.",
        b"cposix\nsystem\nK\x01R.",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_lies_are_refused_in_one_sentence(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^The file cannot be read: .{5,250}\.") as refused:
        read_torch_zip(with_pickle(content))
    assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError):
        exchanged(with_pickle(content), {("a",): torch.zeros(4)})


def test_a_damaged_zip_is_refused() -> None:
    data = saved({"a": torch.arange(4000.0)})
    for size in (0, 3, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_torch_zip(data[:size])
    at = data.index(torch.arange(4000.0).numpy().tobytes())
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_zip(data[:at] + b"\x01" + data[at + 1 :])


def test_a_zip_that_torch_never_writes_is_refused() -> None:
    files = records(saved({"a": torch.zeros(4000)}))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_zip(zipped(files, zipfile.ZIP_DEFLATED))
    good = zipped(files)
    central = good.index(b"PK\x01\x02")
    large = bytearray(good)
    large[central + 20 : central + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_zip(bytes(large))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in files:
            archive.writestr(name, files[name])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data/0", b"")
    with pytest.raises(CheckpointError, match="twice"):
        read_torch_zip(buffer.getvalue())
    with pytest.raises(CheckpointError, match="holds 2 pickles"):
        read_torch_zip(zipped(files | {"other/data.pkl": b"N."}))
    with pytest.raises(CheckpointError, match="holds 0 pickles"):
        read_torch_zip(zipped({"a": b""}))
    one, two = (good.index(name, central) for name in (b"archive/data/0", b"archive/byteorder"))
    same = bytearray(good)  # two records at one place
    same[one - 4 : one] = same[two - 4 : two]
    with pytest.raises(CheckpointError, match="lies where another does"):
        read_torch_zip(bytes(same))


def test_a_plain_pickle_is_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="is no zip as torch"):
        read_torch_zip(buffer.getvalue(), "x.pt")
