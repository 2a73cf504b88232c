"""What a patch is not applied to, and what is no patch: one sentence, and nothing published."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from recerase import api
from recerase.errors import ArtefactError
from recerase.patches.file import _data_digest, _document_digest
from recerase.store import canonical_json


def wrong_directories() -> dict[str, Callable[[Path], Any]]:
    """What may be the matter with a directory that a patch is applied to, and how it gets so."""

    def flip(path: Path) -> None:
        data = bytearray((path / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (path / "model.safetensors").write_bytes(bytes(data))

    return {
        "model.safetensors differs": flip,
        "it has no sids.parquet": lambda path: (path / "sids.parquet").unlink(),
        "it holds more.txt, which the patch does not know": lambda path: (path / "more.txt").write_text("x"),
        "config.json differs": lambda path: (path / "config.json").write_text("{}"),
    }


@pytest.mark.parametrize("reason", wrong_directories())
def test_anything_but_what_it_was_made_from_is_refused(home: Path, tmp_path: Path, reason: str) -> None:
    shutil.copytree(home / "native", tmp_path / "ckpt")
    wrong_directories()[reason](tmp_path / "ckpt")
    with pytest.raises(ArtefactError) as refused:
        api.apply_patch(tmp_path / "ckpt", home / "native.patch", tmp_path / "out")
    assert reason in refused.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt"]


def forged(home: Path, to: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """A patch with another document and other tensors, sealed as if it had been made so."""
    tensors: dict[str, Any] = load_file(home / "native.patch")
    document = json.loads(canonical_json(dict(api.read_patch(home / "native.patch").document)))
    change(document, tensors)
    document["data"] = _data_digest(tensors)
    document["digest"] = _document_digest(document)
    to.write_bytes(save(tensors, metadata={"recerase": json.dumps(document)}))
    return to


def renamed(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(document: dict[str, Any], tensors: dict[str, Any]) -> None:
        document["files"][name] = document["files"].pop("model.safetensors")
        for key in [key for key in tensors if key.endswith("/model.safetensors")]:
            tensors[key.removesuffix("model.safetensors") + name] = tensors.pop(key)

    return change


def stepped(row: list[int]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(document: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["forward.steps/model.safetensors"][0] = row

    return change


def bomb(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    size = 1 << 30
    document["files"]["model.safetensors"]["after"]["bytes"] = size
    document["files"]["model.safetensors"]["forward"] = {"bytes": size, "zlib": True}
    tensors["forward.steps/model.safetensors"] = np.array([[-1, size]])
    tensors["forward.new/model.safetensors"] = np.frombuffer(zlib.compress(b"\0" * (1 << 20)), np.uint8)


def repeated(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    size = document["files"]["model.safetensors"]["before"]["bytes"]
    document["files"]["model.safetensors"]["after"]["bytes"] = 1000 * size
    document["files"]["model.safetensors"]["forward"]["bytes"] = 0
    tensors["forward.steps/model.safetensors"] = np.array([[0, size]] * 1000)
    tensors["forward.new/model.safetensors"] = np.zeros(0, np.uint8)


def at(document: Mapping[str, Any], *path: str) -> Any:
    return document if not path else at(document[path[0]], *path[1:])


FORGED: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "outside": renamed("../model.safetensors"),
    "absolute": renamed("/tmp/model.safetensors"),
    "no name": renamed(""),
    "nul": renamed("a\0b"),
    "manifest": renamed("recerase.json"),
    "staging": renamed("x.recerase-staging"),
    "a file as a folder": renamed("config.json/model"),
    "before the file": stepped([-5, 10]),
    "behind the file": stepped([1 << 40, 10]),
    "far too long": stepped([0, 1 << 61]),
    "negative": stepped([0, -1]),
    "nothing": stepped([0, 0]),
    "a bomb": bomb,
    "repeated": repeated,
    "absurd size": lambda d, t: at(d, "files", "model.safetensors", "after").update(bytes=1 << 62),
    "size of another kind": lambda d, t: at(d, "files", "model.safetensors", "after").update(bytes="9"),
    "no files": lambda d, t: d.update(files={}),
    "files of another kind": lambda d, t: d.update(files=[]),
    "kind": lambda d, t: d.update(kind="both"),
    "left": lambda d, t: d.update(left=[3]),
    "moves": lambda d, t: d.update(moves=None),
    "provenance": lambda d, t: d.update(provenance=[]),
    "rows": lambda d, t: at(d, "files", "model.safetensors").update(rows={"a": 3}),
    "listing": lambda d, t: d.update(listing={}),
    "no tool": lambda d, t: d.pop("tool"),
    "schema": lambda d, t: d.update(schema="recerase.patch/9"),
    "a tensor more": lambda d, t: t.update(more=np.zeros(3)),
    "a tensor less": lambda d, t: t.pop("backward.steps/model.safetensors"),
    "other steps": lambda d, t: t.update({"forward.steps/model.safetensors": np.zeros((2, 3))}),
    "other bytes": lambda d, t: t.update({"forward.new/model.safetensors": np.zeros(4, np.float32)}),
    "no zlib": lambda d, t: at(d, "files", "model.safetensors", "forward").update(zlib=True),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_patch_is_one_sentence(home: Path, tmp_path: Path, how: str) -> None:
    path = forged(home, tmp_path / "p", FORGED[how])
    with pytest.raises(ArtefactError) as refused:
        api.apply_patch(home / "native", path, tmp_path / "out")
    assert f"{path} is not a patch that can be used: " in refused.value.message
    assert len(refused.value.message) < 400 + len(str(path))
    assert "\n" not in refused.value.message
    assert how != "a bomb" or "claims 1,073,741,824 bytes" in refused.value.message  # before it is unfolded
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_a_patch_that_promises_another_file_publishes_nothing(home: Path, tmp_path: Path) -> None:
    path = forged(
        home, tmp_path / "p", lambda d, t: at(d, "files", "model.safetensors", "after").update(sha256="0" * 64)
    )
    with pytest.raises(ArtefactError, match="did not become what"):
        api.apply_patch(home / "native", path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_a_patch_that_was_cut_or_changed_is_refused_wherever(home: Path, tmp_path: Path) -> None:
    whole, path = (home / "native.one-way").read_bytes(), tmp_path / "p"
    for cut in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArtefactError, match="not a patch"):
            api.read_patch(path)
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        spoiled = bytearray(whole)
        spoiled[place] ^= 4
        path.write_bytes(bytes(spoiled))
        with pytest.raises(ArtefactError):
            api.read_patch(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtefactError):
        api.read_patch(path)
    path.write_bytes(save({"a": np.zeros(2)}))
    with pytest.raises(ArtefactError, match="does not say so"):
        api.read_patch(path)
    with pytest.raises(ArtefactError, match="Cannot read"):
        api.read_patch(tmp_path / "gone")
    with pytest.raises(ArtefactError, match="Cannot read"):
        api.read_patch(tmp_path)
