"""Writing is atomic, verified and refuses to touch what it must not."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase import store
from recerase.errors import ArtefactError, OutputError, WriteError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@given(JSON)
def test_canonical_json_is_lossless_and_independent_of_key_order(value: object) -> None:
    text = store.canonical_json(value)
    assert json.loads(text) == value
    reordered = json.loads(text, object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert store.canonical_json(reordered) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError):
        store.canonical_json({"value": value})


def test_write_bytes_returns_the_digest_of_what_is_on_disk(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    digest = store.write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    assert digest == store.sha256_file(tmp_path / "a") == store.sha256_bytes(data)
    assert names(tmp_path) == ["a"]


def test_write_bytes_honours_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store.write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(WriteError, match="No space left"):
        store.write_bytes(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_write_bytes_notices_a_disk_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(store, "sha256_file", lambda path: "0" * 64)
    with pytest.raises(WriteError, match="read back"):
        store.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_publish_shows_nothing_before_the_end_and_everything_after(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store.publish(out) as result:
        store.write_bytes(result.directory / "a.txt", b"a")
        (result.directory / "deep").mkdir()
        store.write_bytes(result.directory / "deep" / "b.txt", b"b")
        result.provenance = {"command": "test"}
        assert not out.exists()
        assert result.directory.parent == tmp_path
    assert names(tmp_path) == ["out"]
    manifest = store.read_manifest(out)
    assert set(manifest["files"]) == {"a.txt", "deep/b.txt"}
    assert manifest["files"]["a.txt"] == {"bytes": 1, "sha256": store.sha256_bytes(b"a")}
    assert manifest["provenance"] == {"command": "test"}
    store.verify_manifest(out)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_publish_leaves_nothing_behind_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), store.publish(tmp_path / "out") as result:
        store.write_bytes(result.directory / "a.txt", b"a")
        raise error
    assert names(tmp_path) == []


def test_publish_refuses_an_existing_output_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store.publish(out) as result:
        store.write_bytes(result.directory / "first", b"1")
    with pytest.raises(OutputError, match="exists"), store.publish(out):
        pytest.fail("the block must not run")
    with store.publish(out, force=True) as result:
        store.write_bytes(result.directory / "second", b"2")
    assert names(out) == ["recerase.json", "second"]
    assert names(tmp_path) == ["out"]


def test_force_keeps_the_old_result_when_the_new_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store.publish(out) as result:
        store.write_bytes(result.directory / "first", b"1")
    with pytest.raises(RuntimeError), store.publish(out, force=True):
        raise RuntimeError
    assert names(out) == ["first", "recerase.json"]


def test_force_never_replaces_what_recerase_did_not_write(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not written by recerase"), store.publish(out, force=True):
        pytest.fail("the block must not run")
    assert names(out) == ["chapter.tex"]


@pytest.mark.parametrize("place", [".", "inner", "..", "link"])
def test_publish_refuses_to_touch_an_input(tmp_path: Path, place: str) -> None:
    source = tmp_path / "holder" / "model"
    source.mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    out = tmp_path / "link" if place == "link" else Path(os.path.normpath(source / place))
    with pytest.raises(OutputError, match="input"), store.publish(out, inputs=[source], force=True):
        pytest.fail("the block must not run")
    assert source.is_dir()


def test_a_sibling_whose_name_begins_alike_is_not_an_input(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with store.publish(tmp_path / "model-erased", inputs=[tmp_path / "model"]) as result:
        store.write_bytes(result.directory / "a", b"a")
    assert names(tmp_path) == ["model", "model-erased"]


def test_a_result_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists"), store.publish(out) as result:
        store.write_bytes(result.directory / "late", b"2")
        out.mkdir()
        (out / "early").write_text("1")
    assert names(out) == ["early"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_verify_names_the_file_that_is_not_what_it_was(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    with store.publish(out) as result:
        store.write_bytes(result.directory / "a.txt", b"a")
        store.write_bytes(result.directory / "b.txt", b"b")
    if damage == "change":
        (out / "b.txt").write_bytes(b"B")
    else:
        (out / "b.txt").unlink()
    with pytest.raises(ArtefactError, match=r"b\.txt"):
        store.verify_manifest(out)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "recerase.manifest/9", "files": {}}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recerase.json").write_text(text)
    with pytest.raises(ArtefactError):
        store.read_manifest(tmp_path)


def test_a_killed_run_publishes_nothing_and_its_remains_go_with_the_next(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from recerase import store
with store.publish(sys.argv[1]) as result:
    store.write_bytes(result.directory / "half", b"1")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert killed.returncode == -9
    remains = list(tmp_path.iterdir())
    assert len(remains) == 1
    assert remains[0].name.startswith(".out.recerase-")
    os.utime(remains[0], (0, 0))
    with store.publish(tmp_path / "out") as result:
        store.write_bytes(result.directory / "whole", b"2")
    assert names(tmp_path) == ["out"]


def test_the_staging_directory_of_a_living_run_is_left_alone(tmp_path: Path) -> None:
    with store.publish(tmp_path / "out") as first:
        store.write_bytes(first.directory / "a", b"a")
        os.utime(first.directory, (0, 0))
        with pytest.raises(RuntimeError), store.publish(tmp_path / "out"):
            raise RuntimeError
        assert first.directory.is_dir()
    assert names(tmp_path / "out") == ["a", "recerase.json"]
