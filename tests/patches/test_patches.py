"""A patch makes one directory of the other, byte for byte, in every layout; other directories and false patches are refused."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from tests.layouts import causal_fixtures, foreign_fixtures

from recerase import api
from recerase.errors import ArtefactError, OutputError, UsageError
from recerase.layouts.native import Checkpoint, save_checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.patches.file import SCHEMA, _data_digest, _document_digest
from recerase.runtime import RunConfig
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import canonical_json, publish, read_manifest, sha256_bytes
from recerase.types import Silent

RUN = RunConfig(device="cpu", trust_pickle=True)
LAYOUTS = ("native", "letter-tiger", "tiger-cf", "minionerec")
MOVED = (4, 10)
"""Items that change places with each other in what is after: no code loses its last item."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME and NAME-after a layout, with NAME.patch and NAME.one-way between them; read only."""
    place = tmp_path_factory.mktemp("patches")
    foreign_fixtures.letter(place / "letter-tiger")
    foreign_fixtures.tiger_cf(place / "tiger-cf")
    causal_fixtures.minionerec(place / "minionerec", causal_fixtures.make_world(), dtype=torch.float32)
    ids = [str(item) for item in range(foreign_fixtures.N)]
    table = SidTable.build(ids, foreign_fixtures.codes(), SidSchema.native((20, 20, 20, 20), "allowed"))
    shape = ModelConfig(kind="causal", width=16, layers=1, heads=2, feed_forward=16, window=4)
    with publish(place / "native") as made:
        save_checkpoint(made.directory, new_recommender(shape, table.schema, 0), table, None, None)
        made.provenance = {"command": "train"}
    for name in LAYOUTS:
        changed(place / name, place / f"{name}-after", name)
        leave = ["optimizer*"] if name == "letter-tiger" else []
        for kind in ("patch", "one-way"):
            given = (place / name, place / f"{name}-after", place / f"{name}.{kind}")
            api.make_patch(*given, one_way=kind == "one-way", leave=leave, run=RUN)
    return place


def changed(source: Path, out: Path, name: str, *, sids: bool = True) -> None:
    """As an erasure leaves it: rows of two codes differ, two items have other SIDs, one is unlisted where that can be."""
    found = open_checkpoint(source, trust_pickle=True)
    with torch.no_grad():
        weight = found.recommender.module.get_input_embeddings().weight
        weight[found.table.schema.rows[0][found.table.codes[MOVED[0], 0]]] += 1.0
        weight[found.table.schema.rows[1][found.table.codes[MOVED[1], 1]]] *= 2.0
    table = found.table
    if sids:
        table = table.replace(np.array(MOVED), table.codes[list(MOVED[::-1])])
        if name in ("native", "minionerec"):
            table = table.unlisted(np.arange(len(table)) == MOVED[0])
    with publish(out) as made:
        write_back(found, table, made.directory, name)
        made.provenance = {"command": "erase", "method": {"name": "test"}}


def write_back(found: Checkpoint, table: SidTable, staging: Path, name: str) -> None:
    named_layout(name).write_back(found, found.recommender, table, staging)


def files(path: Path, *without: str) -> dict[str, bytes]:
    found = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: data for name, data in found.items() if name not in without}


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
    leave = ["optimizer*", "codebooks.safetensors"]
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
