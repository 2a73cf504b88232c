"""A patch makes one directory of the other, byte for byte, in every layout; other directories and false patches are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from tests.patches.fixtures import LAYOUTS, MOVED, RUN, changed, files

from recerase import api
from recerase.errors import ArtefactError, OutputError, UsageError
from recerase.layouts.registry import open_checkpoint
from recerase.patches.file import SCHEMA
from recerase.store import read_manifest, sha256_bytes
from recerase.types import Silent


@pytest.mark.parametrize("name", LAYOUTS)
def test_applied_it_gives_what_was_after_and_reverted_what_was_before(home: Path, tmp_path: Path, name: str) -> None:
    before, after = files(home / name), files(home / f"{name}-after")
    api.apply_patch(home / name, home / f"{name}.patch", tmp_path / "applied")
    assert files(tmp_path / "applied") == after  # recerase.json too
    api.revert_patch(tmp_path / "applied", home / f"{name}.patch", tmp_path / "reverted")
    left = {"optimizer.pt"} if name == "letter-tiger" else set()
    wanted = {file: data for file, data in before.items() if file not in left}
    again = files(tmp_path / "reverted")
    if name != "native":
        assert read_manifest(tmp_path / "reverted")["provenance"]["command"] == "patch revert"
        del again["recerase.json"]
    assert again == wanted
    api.apply_patch(home / name, home / f"{name}.one-way", tmp_path / "once")
    assert files(tmp_path / "once") == after
    with pytest.raises(UsageError, match="one-way"):
        api.revert_patch(tmp_path / "once", home / f"{name}.one-way", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    assert files(home / name) == before


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_tells_what_moved_and_keeps_old_codes_only_to_be_reverted(home: Path, name: str) -> None:
    old, new = (open_checkpoint(home / f"{name}{side}", trust_pickle=True).table for side in ("", "-after"))
    patch, once = (api.read_patch(home / f"{name}.{kind}") for kind in ("patch", "one-way"))
    moves = {move["item_id"]: (move["from"], move["to"]) for move in patch.document["moves"]}
    assert moves == {str(old.item_ids[i]): (old.codes[i].tolist(), new.codes[i].tolist()) for i in MOVED}
    assert all(move["from"] is None for move in once.document["moves"])
    unlisted = [str(old.item_ids[MOVED[0]])] if name in ("native", "minionerec") else []
    assert patch.document["listing"] == {"listed": [], "unlisted": unlisted}
    assert "carries what was erased" in patch.document["note"]
    assert once.document["provenance"]["before"] is None
    assert all(change.backward is None for change in once.files.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_one_way_patch_holds_no_row_of_what_was_there(home: Path, name: str) -> None:
    table = open_checkpoint(home / name, trust_pickle=True).table
    weight = open_checkpoint(home / name, trust_pickle=True).recommender.module.get_input_embeddings().weight
    row = weight[table.schema.rows[0][table.codes[MOVED[0], 0]]].detach().numpy().tobytes()
    held, packed = {}, {}
    for kind in ("patch", "one-way"):
        held[kind] = b"".join(tensor.tobytes() for tensor in load_file(home / f"{name}.{kind}").values())
        changes = api.read_patch(home / f"{name}.{kind}").files.values()
        packed[kind] = b"".join(delta.new for c in changes for delta in (c.forward, c.backward) if delta)
    some = row[16:48]  # in an archive bytes are compared, and the first ones may be the same
    assert some in packed["patch"]
    assert some not in packed["one-way"]
    assert some not in held["one-way"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_change_of_embeddings_alone_is_those_rows(home: Path, tmp_path: Path, name: str) -> None:
    """Two rows of 16 numbers, forward and back, and a document: the rest of the weights is not there."""
    changed(home / name, tmp_path / "after", name, sids=False)
    leave = ["optimizer*"] if name == "letter-tiger" else []
    patch = api.make_patch(home / name, tmp_path / "after", tmp_path / "p", leave=leave, run=RUN)
    differing = {file: c for file, c in patch.files.items() if c.before != c.after}
    assert len(differing) == 1
    ((file, change),) = differing.items()
    rows = 2 * 16 * 4
    slack = 0 if file.endswith(".safetensors") else 128 * 60  # an archive says the name of every member twice
    for delta in (change.forward, change.backward):
        assert rows - 4 * 16 <= len(delta.new) <= rows + slack
    if file.endswith(".safetensors"):
        assert len(change.forward.new) == rows
        assert [changed for changed, _ in change.forward.rows.values()] == [2]
    size, whole = (tmp_path / "p").stat().st_size, len(files(tmp_path / "after")[file])
    assert size < (0.25 if file.endswith(".safetensors") else 0.35) * whole


def test_a_patch_grows_with_the_rows_that_changed_and_not_with_the_model(tmp_path: Path) -> None:
    """7 of 4,096 rows of 64 numbers: 2 x 1,792 bytes of rows, and a document, for a file of a megabyte."""
    rows = np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32)
    for side, factor in (("before", 1.0), ("after", 2.0)):
        (tmp_path / side).mkdir()
        changed_rows = rows.copy()
        changed_rows[100:800:100] *= factor
        (tmp_path / side / "model.safetensors").write_bytes(save({"embed": changed_rows, "other": rows[:8, :8].copy()}))
    api.make_patch(tmp_path / "before", tmp_path / "after", tmp_path / "p")
    size, whole = (tmp_path / "p").stat().st_size, (tmp_path / "after" / "model.safetensors").stat().st_size
    assert api.read_patch(tmp_path / "p").files["model.safetensors"].forward.rows == {"embed": (7, 4096)}
    assert 2 * 7 * 256 < size < 2 * 7 * 256 + 3000
    assert size / whole < 0.007


def test_equal_inputs_give_equal_bytes(home: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        api.make_patch(home / "native", home / "native-after", tmp_path / f"{number}", run=RUN)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (home / "native.patch").read_bytes()


def test_the_other_side_is_known(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="in already"):
        api.apply_patch(home / "native-after", home / "native.patch", tmp_path / "out")
    with pytest.raises(ArtefactError, match="in already"):
        api.revert_patch(home / "native", home / "native.patch", tmp_path / "out")
    with pytest.raises(ArtefactError, match="not a directory"):
        api.apply_patch(home / "native.patch", home / "native.patch", tmp_path / "out")


def test_where_it_may_be_written(home: Path, tmp_path: Path) -> None:
    given = (home / "native", home / "native.patch")
    api.apply_patch(*given, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        api.apply_patch(*given, tmp_path / "out")
    api.apply_patch(*given, tmp_path / "out", force=True)
    with pytest.raises(OutputError, match="input"):
        api.apply_patch(*given, home / "native", force=True)
    with pytest.raises(OutputError, match="input"):
        api.make_patch(home / "native", home / "native-after", home / "native" / "p", force=True)
    with pytest.raises(UsageError, match="the same files"):
        api.make_patch(home / "native", home / "native", tmp_path / "p")


def test_what_no_patch_can_hold_or_leave_out_is_refused(home: Path, tmp_path: Path) -> None:
    given = (home / "native", home / "native-after", tmp_path / "p")
    with pytest.raises(UsageError, match=r"No file or folder of either directory is called 'optimzer\*'"):
        api.make_patch(*given, leave=["optimzer*"])
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "a\nb").write_text("x")
    with pytest.raises(UsageError, match="a name that no patch can hold"):
        api.make_patch(home / "native", tmp_path / "after", tmp_path / "p")
    (tmp_path / "after" / "a\nb").rename(tmp_path / "after" / "b\udcff")
    with pytest.raises(UsageError, match="a name that no patch can hold"):
        api.make_patch(home / "native", tmp_path / "after", tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["after"]


def test_a_large_file_that_goes_is_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    for side in ("before", "after"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a").write_text(side)
    (tmp_path / "before" / "optimizer.pt").write_bytes(bytes(1 << 20))
    api.make_patch(tmp_path / "before", tmp_path / "after", tmp_path / "p", observer=Notes())
    assert "optimizer.pt is only there before" in said[0]
    api.revert_patch(tmp_path / "after", tmp_path / "p", tmp_path / "out")
    assert files(tmp_path / "out", "recerase.json") == files(tmp_path / "before")


def test_a_directory_that_is_not_what_its_manifest_says_makes_no_patch(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "native-after", tmp_path / "after")
    (tmp_path / "after" / "config.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"config\.json is not what"):
        api.make_patch(home / "native", tmp_path / "after", tmp_path / "p", run=RUN)


def test_moves_that_cannot_be_read_are_a_note(home: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    api.make_patch(home / "tiger-cf", home / "tiger-cf-after", tmp_path / "p", observer=Notes())
    assert ["is a pickle" in text for text in said] == [True]
    assert api.read_patch(tmp_path / "p").document["moves"] == []
    api.apply_patch(home / "tiger-cf", tmp_path / "p", tmp_path / "out")
    assert files(tmp_path / "out") == files(home / "tiger-cf-after")


def test_files_that_come_and_go_in_folders(tmp_path: Path) -> None:
    sides: dict[str, dict[str, bytes]] = {
        "before": {"a.txt": b"same", "old/deep/x.bin": b"gone" * 5, "empty": b"", "now empty": b"full", "text.csv": b"1,2\n" * 50},
        "after": {"a.txt": b"same", "new/y.bin": b"here", "empty": b"not now", "now empty": b"", "text.csv": b"1,2\n" * 40 + b"3\n"},
    }  # fmt: skip
    for side, content in sides.items():
        for name, data in content.items():
            (tmp_path / side / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / side / name).write_bytes(data)
    patch = api.make_patch(tmp_path / "before", tmp_path / "after", tmp_path / "p")
    assert patch.facts()["files"] == "3 files changed, 1 added, 1 removed, 1 unchanged"
    api.apply_patch(tmp_path / "before", tmp_path / "p", tmp_path / "applied")
    api.revert_patch(tmp_path / "after", tmp_path / "p", tmp_path / "reverted")
    assert files(tmp_path / "applied", "recerase.json") == sides["after"]
    assert files(tmp_path / "reverted", "recerase.json") == sides["before"]
    assert json.loads((tmp_path / "applied" / "recerase.json").read_text())["provenance"]["patch"] == patch.digest
    assert patch.document["schema"] == SCHEMA
    assert sha256_bytes(sides["after"]["a.txt"]) == patch.files["a.txt"].after.sha256
    assert patch.files["a.txt"].forward is None
