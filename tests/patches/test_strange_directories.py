"""Directories that a patch cannot hold, and names that mean another thing on another side or another file system."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from tests.patches.fixtures import files

from recerase import api
from recerase.errors import ArtefactError, WriteError
from recerase.patches import apply as applying
from recerase.patches.file import SCHEMA, _data_digest, _document_digest, read_patch
from recerase.store import sha256_bytes
from recerase.types import Silent


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def sides(home: Path, before: dict[str, bytes], after: dict[str, bytes]) -> tuple[Path, Path, Path]:
    """Two directories, and where the patch between them goes."""
    for side, content in (("before", before), ("after", after)):
        (home / side).mkdir(parents=True)
        for name, data in content.items():
            (home / side / name).parent.mkdir(parents=True, exist_ok=True)
            (home / side / name).write_bytes(data)
    return home / "before", home / "after", home / "p"


def both_ways(home: Path, before: dict[str, bytes], after: dict[str, bytes], **options: Any) -> None:
    """The patch makes either side of the other."""
    api.make_patch(*sides(home, before, after), **options)
    api.apply_patch(home / "before", home / "p", home / "applied")
    api.revert_patch(home / "after", home / "p", home / "reverted")
    assert files(home / "applied", "recerase.json") == after
    assert files(home / "reverted", "recerase.json") == before


def test_links_and_pipes_are_refused_and_never_dropped(tmp_path: Path) -> None:
    """A folder that is a link would be left out without a word, and what the patch makes would lack it."""
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "sids.json").write_text("{}")
    made = {
        "a folder": lambda place: place.symlink_to(tmp_path / "else"),
        "a file": lambda place: place.symlink_to(tmp_path / "else" / "sids.json"),
        "nothing": lambda place: place.symlink_to("/nowhere"),
        "a pipe": os.mkfifo,
    }
    for what, make in made.items():
        home = tmp_path / what
        before, after, patch = sides(home, {"a": b"1", "in/b": b"1"}, {"a": b"2", "in/b": b"1"})
        for side in (before, after):
            make(side / "in" / "info")
            with pytest.raises(ArtefactError, match=r"in/info' is .*which a patch cannot hold") as refused:
                api.make_patch(before, after, patch)
            assert "cp -rL" in refused.value.remedy
            (side / "in" / "info").unlink()
        api.make_patch(before, after, patch)
        make(before / "in" / "info")
        with pytest.raises(ArtefactError, match="which a patch cannot hold"):
            api.apply_patch(before, patch, home / "out")
        assert sorted(path.name for path in home.iterdir()) == ["after", "before", "p"]


def test_a_name_may_be_a_file_on_one_side_and_a_folder_on_the_other(tmp_path: Path) -> None:
    both_ways(tmp_path / "in", {"a": b"1", "c/d": b"1"}, {"a/b": b"2", "c": b"2"})


def test_names_and_contents_of_all_kinds(tmp_path: Path) -> None:
    names = ["模型/Ünï ✓.json", "e\u0301", "\u00e9", "A", "a", "-rf", "[1]*?", "a\\b", "x" * 200]
    same = b"the same in all"
    both_ways(
        tmp_path / "in",
        {**{name: b"1" for name in names}, "one": same, "two": same, "none": b""},
        {**{name: b"2" * n for n, name in enumerate(names)}, "two": same, "three": same, "none": b""},
    )
    both_ways(tmp_path / "from nothing", {}, {"a": b"1"})


def test_a_folder_is_left_out_with_all_that_is_in_it(tmp_path: Path) -> None:
    before = {"a": b"1", "checkpoint-5/x/optimizer.pt": b"2", "checkpoint-5/y": b"3"}
    given = sides(tmp_path / "in", before, {**before, "a": b"2", "checkpoint-5/y": b"4"})
    for pattern in ("checkpoint-5", "checkpoint-*", "checkpoint-5/"):
        patch = api.make_patch(*given, leave=[pattern], force=True)
        assert patch.left == ("checkpoint-5/x/optimizer.pt", "checkpoint-5/y")
        assert list(patch.files) == ["a"]


def test_a_report_that_names_old_sids_is_told(tmp_path: Path) -> None:
    """A one-way patch has no byte of what was before; what comes after may speak of it, and whoever sends it on must know."""
    report = {"schema": "recerase.audit/1", "moves": [{"item_id": "7", "old": [1, 2], "new": [3, 4]}]}
    given = sides(tmp_path / "in", {"a": b"1"}, {"a": b"2", "report.json": json.dumps(report).encode()})
    notes = Notes()
    patch = api.make_patch(*given, one_way=True, observer=notes)
    assert sum("report.json names the SIDs that items had before" in said for said in notes.said) == 1
    assert api.read_patch(given[2]).facts()["old SIDs named in"] == ["report.json"]
    assert "the new files themselves say" in patch.document["note"]
    notes = Notes()
    patch = api.make_patch(*given, one_way=True, leave=["report.json"], force=True, observer=notes)
    assert patch.facts()["old SIDs named in"] == []


def test_what_an_erased_checkpoint_remembers_is_told_too(tmp_path: Path) -> None:
    said = {"schema": "recerase.erased/1", "concepts": [{"name": "x", "items": {"7": [1, 2]}}]}
    given = sides(tmp_path / "in", {"a": b"1"}, {"a": b"2", "erased.json": json.dumps(said).encode()})
    notes = Notes()
    patch = api.make_patch(*given, one_way=True, observer=notes)
    assert sum("erased.json names the SIDs that items had before" in said for said in notes.said) == 1
    assert patch.facts()["old SIDs named in"] == ["erased.json"]
    assert not any("report.json" in said for said in notes.said)
    held = b"".join(tensor.tobytes() for tensor in load_file(given[2]).values())
    assert b'"old"' not in held + given[2].read_bytes()


def test_what_a_patch_could_not_tell_is_not_told_as_none(tmp_path: Path) -> None:
    patch = api.make_patch(*sides(tmp_path / "in", {"a": b"1"}, {"a": b"2"}))
    assert (patch.facts()["moves"], patch.facts()["unlisted"]) == ("not told", "not told")


def test_rows_that_come_behind_a_tensor_are_all_that_is_new(tmp_path: Path) -> None:
    """A vocabulary that has grown: the old rows are taken from where they are."""
    rows = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    longer = np.concatenate([rows, rows[:3] + 1])
    longer[7] += 1
    old, new = (save({"embed": tensor, "norm": rows[0]}) for tensor in (rows, longer))
    both_ways(tmp_path / "in", {"model.safetensors": old}, {"model.safetensors": new})
    change = read_patch(tmp_path / "in" / "p").files["model.safetensors"]
    assert change.forward is not None
    assert change.backward is not None
    assert change.forward.rows == {"embed": (4, 503)}
    assert 4 * 64 <= len(change.forward.new) < 4 * 64 + 200
    assert len(change.backward.new) < 64 + 200


def forged(path: Path, contents: dict[str, tuple[bytes, bytes | None]], **more: Any) -> Path:
    """A sealed patch that makes files, each of its content and, where given, the compressed bytes that claim to be it."""
    said, tensors = {}, {}
    for name, (data, packed) in contents.items():
        seal = {"bytes": len(data), "sha256": sha256_bytes(data)}
        said[name] = {"before": None, "after": seal, "forward": {"bytes": len(data), "zlib": packed is not None}}
        tensors[f"forward.steps/{name}"] = np.array([[-1, len(data)]], np.int64)
        tensors[f"forward.new/{name}"] = np.frombuffer(data if packed is None else packed, np.uint8)
    document: dict[str, Any] = {
        "schema": SCHEMA, "note": "", "kind": "one-way", "tool": "recerase", "left": [], "files": said, "moves": [],
        "provenance": {"before": None, "after": None}, "listing": {"unlisted": [], "listed": []}, **more,
    }  # fmt: skip
    document["data"] = _data_digest(tensors)
    document["digest"] = _document_digest(document)
    path.write_bytes(save(tensors, metadata={"recerase": json.dumps(document)}))
    return path


def test_many_small_bombs_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compressed bytes may unfold to is bounded for the patch, and not for each of its files."""
    size = 40 << 20
    packed = zlib.compress(bytes(size), 9)
    path = forged(tmp_path / "p", {f"f{n}": (bytes(size), packed) for n in range(3)})
    with pytest.raises(ArtefactError, match=r"claims 41,943,040 bytes in .* far too many with the others"):
        read_patch(path)
    monkeypatch.setattr("recerase.patches.file._FREE", 1 << 16)
    zeros = {f"f{n}": bytes(60_000) for n in range(4)}
    both_ways(tmp_path / "in", {"a": b"1"}, {"a": b"1", **zeros})  # what is written is what may be read
    assert (tmp_path / "in" / "p").stat().st_size > 60_000


def test_names_that_a_file_system_takes_for_one_publish_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forged(tmp_path / "p", {"A": (b"1", None), "a": (b"2", None)})
    (tmp_path / "in").mkdir()
    api.apply_patch(tmp_path / "in", path, tmp_path / "apart")
    write = applying.write_parts
    monkeypatch.setattr(applying, "write_parts", lambda place, parts: write(place.with_name(place.name.lower()), parts))
    with pytest.raises(ArtefactError, match="takes for one"):
        api.apply_patch(tmp_path / "in", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_path_that_no_file_can_have_is_one_sentence(tmp_path: Path) -> None:
    path = forged(tmp_path / "p", {"/".join(["d"] * 3000): (b"1", None)})
    (tmp_path / "in").mkdir()
    with pytest.raises(WriteError, match="too long"):
        api.apply_patch(tmp_path / "in", path, tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["in", "p"]


def test_nothing_in_a_patch_speaks_to_the_terminal(tmp_path: Path) -> None:
    path = forged(tmp_path / "p", {"a": (b"1", None)}, tool="\x1b]0;evil\x07")
    assert str(api.read_patch(path).facts()["made by"]).isprintable()
    for key in ("left", "telling"):
        with pytest.raises(ArtefactError, match="has no name"):
            api.read_patch(forged(tmp_path / "q", {"a": (b"1", None)}, **{key: ["\x1b[2J"]}))
