"""Writing is atomic, verified and refuses to touch what it must not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase import disk, store
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


def test_write_bytes_notices_a_disk_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(store, "digest_of", lambda path: "0" * 64)
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
from recerase import disk, store
with store.publish(sys.argv[1]) as result:
    store.write_bytes(result.directory / "half", b"1")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert killed.returncode == -9
    assert names(tmp_path) == [".out.recerase-lock", ".out.recerase-staging"]
    with store.publish(tmp_path / "out") as result:
        assert names(result.directory) == []
        store.write_bytes(result.directory / "whole", b"2")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_second_run_to_one_output_is_refused_before_any_work(tmp_path: Path, force: bool) -> None:
    with store.publish(tmp_path / "out") as first:
        store.write_bytes(first.directory / "a", b"a")
        with pytest.raises(OutputError, match="Another run is writing"), store.publish(tmp_path / "out", force=force):
            pytest.fail("the block must not run")
        assert names(first.directory) == ["a"]
    assert names(tmp_path / "out") == ["a", "recerase.json"]
    assert names(tmp_path) == ["out"]


def test_what_appears_at_the_last_moment_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def late(*_: object) -> None:
        out.mkdir()
        (out / "early").write_text("1")

    with pytest.raises(OutputError, match="meanwhile"), store.publish(out) as result:
        store.write_bytes(result.directory / "late", b"2")
        monkeypatch.setattr(result, "_check", late)
    assert names(out) == ["early"]
    assert names(tmp_path) == ["out"]


def test_directories_made_for_a_result_go_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), store.publish(tmp_path / "new" / "deep" / "out"):
        raise RuntimeError
    assert names(tmp_path) == []
    published(tmp_path / "new" / "deep" / "out")
    assert names(tmp_path / "new" / "deep") == ["out"]


def test_a_published_directory_honours_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        published(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "recerase.json").stat().st_mode) == 0o640


def test_dots_and_links_above_the_output_lead_where_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    published(tmp_path / "link" / ".." / "out")
    assert names(tmp_path / "far") == ["inner", "out"]
    with store.publish(tmp_path / "far" / "out" / "deep" / "..", force=True) as result:
        store.write_bytes(result.directory / "again", b"")
    assert names(tmp_path / "far" / "out") == ["again", "recerase.json"]
    store.write_bytes(tmp_path / "link" / ".." / "file", b"1")
    assert names(tmp_path / "far") == ["file", "inner", "out"]


def test_a_file_never_takes_the_place_of_a_directory(tmp_path: Path) -> None:
    published(tmp_path / "out")
    with pytest.raises(WriteError, match=r"out: Is a directory"):
        store.write_bytes(tmp_path / "out", b"")
    store.verify_manifest(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_report_may_have_a_name_with_any_characters(tmp_path: Path) -> None:
    for name in ["[a-z]*.json", "naïve ✓.json", "-rf", "a" * 255]:
        store.write_bytes(tmp_path / name, b"1")
        store.write_bytes(tmp_path / name, b"2")
        assert (tmp_path / name).read_bytes() == b"2"
    assert len(names(tmp_path)) == 4
    with pytest.raises(WriteError, match="name too long"):
        store.write_bytes(tmp_path / ("a" * 256), b"1")


def test_a_directory_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    for out in (tmp_path / ("a" * 255), tmp_path / ("a" * 254 + "b")):
        published(out)
        store.verify_manifest(out)
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("force", [False, True])
def test_what_is_there_is_seen_through_a_directory_that_is_not(tmp_path: Path, force: bool) -> None:
    """`missing/../mine` is nothing to the system, but to the rename at the end it is `mine`."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    out = tmp_path / "missing" / ".." / "mine"
    with pytest.raises(OutputError, match=r"exists already|not written by"), store.publish(out, force=force):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="exists already"):
        store.check_file_output(out / "thesis")
    with pytest.raises(OutputError, match="directory"):
        store.check_file_output(out, force=True)
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == ["thesis"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
    store.write_bytes(tmp_path / "a", bytes(range(256)))
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit"),
        (errno.EIO, "check the disk"),
        (errno.EPERM, "permissions"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "permissions"),
        (errno.ELOOP, "name another"),
    ],
)
def test_disk_errors_come_with_the_path_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(WriteError, match=f"a.txt.*{os.strerror(number)}.*{remedy}") as caught:
        store.write_bytes(tmp_path / "a.txt", b"x")
    assert caught.value.exit_code == 3


def test_text_is_added_at_the_end(tmp_path: Path) -> None:
    store.append_text(tmp_path / "summary", "one\n")
    store.append_text(tmp_path / "summary", "two\n")
    assert (tmp_path / "summary").read_text() == "one\ntwo\n"
    with pytest.raises(WriteError, match="missing"):
        store.append_text(tmp_path / "missing" / "summary", "x")


def published(out: Path, **files: bytes) -> Path:
    """A small directory that recerase wrote: a.txt and deep/b.txt, or what is given."""
    with store.publish(out) as result:
        (result.directory / "deep").mkdir()
        for name, data in (files or {"a.txt": b"first", "deep/b.txt": b"second"}).items():
            store.write_bytes(result.directory / name, data)
        result.provenance = {"command": "test", "number": 0.1}
    return out


def damaged(path: Path) -> Iterator[str]:
    """Every single-bit flip and every shorter length of a file, made in place one after the other; says which it is."""
    whole = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for place, byte in enumerate(whole):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                yield f"bit {bit} of byte {place}"
            os.pwrite(file.fileno(), bytes([byte]), place)
        for length in reversed(range(len(whole))):
            os.ftruncate(file.fileno(), length)
            yield f"length {length}"
    path.write_bytes(whole)


def test_every_flipped_bit_and_missing_byte_of_a_manifest_is_seen(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    for how in damaged(out / "recerase.json"):
        with pytest.raises(ArtefactError, match=r"recerase\.json"):
            store.verify_manifest(out)
            pytest.fail(how)
    store.verify_manifest(out)


def forged(out: Path, change: dict[str, object]) -> None:
    """Change a manifest the way somebody would who can compute digests too."""
    manifest = json.loads((out / "recerase.json").read_bytes()) | change
    manifest["digest"] = store.sha256_bytes(
        store.canonical_json({key: value for key, value in manifest.items() if key != "digest"})
    )
    (out / "recerase.json").write_bytes(store.pretty_json(manifest))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "deep/../../secret", "", ".", "a.txt/", "./a.txt", "deep//b.txt", "a\0b"]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    out = published(tmp_path / "out")
    (tmp_path / "secret").write_bytes(b"first")
    forged(out, {"files": {name: {"bytes": 5, "sha256": store.sha256_bytes(b"first")}}})
    with pytest.raises(ArtefactError, match="no file of this directory"):
        store.verify_manifest(out)


@pytest.mark.parametrize("name", ["a.txt", "recerase.json", "deep"])
def test_links_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    out = published(tmp_path / "out")
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match="leaves"):
        store.verify_manifest(out)


@pytest.mark.parametrize(
    "change", [{"files": []}, {"files": None}, {"provenance": "x"}, {"schema": "recerase.manifest/2"}, {"digest": "0"}]
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    out = published(tmp_path / "out")
    manifest = json.loads((out / "recerase.json").read_bytes()) | change
    (out / "recerase.json").write_bytes(store.pretty_json(manifest))
    with pytest.raises(ArtefactError, match=r"recerase\.json"):
        store.read_manifest(out)


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
def test_values_that_recerase_never_writes_are_refused(tmp_path: Path, value: str) -> None:
    whole = b'{"schema": "recerase.manifest/1", "files": {}, "provenance": {"a": %s}}' % value.encode()
    (tmp_path / "recerase.json").write_bytes(whole)
    with pytest.raises(ArtefactError, match=r"recerase\.json is not as it was written"):
        store.read_manifest(tmp_path)


def test_what_does_not_read_back_when_it_is_published_is_a_failure_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(directory: Path) -> None:
        raise ArtefactError(f"{directory / 'a'} is gone.", "Make it again.")

    monkeypatch.setattr(store, "verify_manifest", lost)
    with pytest.raises(WriteError, match=r"out/a is gone. Nothing was replaced; check the disk"):
        published(tmp_path / "out")
    assert names(tmp_path) == []


def test_links_inside_the_directory_are_files_like_others(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    (out / "a.txt").rename(out / "deep" / "a.bin")
    (out / "a.txt").symlink_to(Path("deep") / "a.bin")
    store.verify_manifest(out)


@pytest.mark.parametrize(
    "entry", [None, [], {}, {"bytes": 5}, {"bytes": 6, "sha256": store.sha256_bytes(b"first")}, "x"]
)
def test_an_entry_that_says_something_else_is_refused(tmp_path: Path, entry: object) -> None:
    out = published(tmp_path / "out")
    forged(out, {"files": {"a.txt": entry}})
    with pytest.raises(ArtefactError, match=r"a\.txt"):
        store.verify_manifest(out)


def test_files_that_are_needed_must_be_named(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    (out / "extra.safetensors").write_bytes(b"x")
    store.verify_manifest(out, needed=["a.txt", "deep/b.txt"])
    with pytest.raises(ArtefactError, match=r"extra\.safetensors is not vouched for"):
        store.verify_manifest(out, needed=["a.txt", "extra.safetensors"])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": 1e999}', '{"schema": NaN}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_json_that_python_stumbles_over_is_refused_like_any_other(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "recerase.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtefactError, match=r"recerase\.json"):
        store.read_manifest(tmp_path)


@given(st.binary(max_size=200))
def test_sealed_files_come_back(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "sealed"
    assert store.write_sealed(path, data) == store.sha256_bytes(data)
    assert store.read_sealed(path) == data


def test_every_flipped_bit_and_missing_byte_of_a_sealed_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "state"
    store.write_sealed(path, b"what a run had done")
    for how in damaged(path):
        with pytest.raises(ArtefactError, match="state"):
            store.read_sealed(path)
            pytest.fail(how)
    assert store.read_sealed(path) == b"what a run had done"


@pytest.mark.parametrize("more", [b"\n", b"\0", b"all of it"])
def test_bytes_after_the_seal_or_before_what_was_sealed_are_seen(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "state"
    store.write_sealed(path, b"what a run had done")
    whole = path.read_bytes()
    more = whole if more == b"all of it" else more
    for content in (whole + more, more + whole):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match="state"):
            store.read_sealed(path)


@pytest.mark.parametrize("place", ["missing", "."])
def test_sealed_files_that_cannot_be_read_are_said_to_be(tmp_path: Path, place: str) -> None:
    with pytest.raises(ArtefactError, match="Cannot read"):
        store.read_sealed(tmp_path / place)


def file_cases(home: Path) -> dict[str, Path]:
    """Places at which a file must not be written when home/model is an input directory and home/policy.toml an input file."""
    model = published(home / "model")
    (home / "policy.toml").write_bytes(b"rules")
    (home / "copy.toml").write_bytes(b"rules")
    (home / "link.toml").symlink_to(home / "policy.toml")
    (home / "folder-link").symlink_to(model)
    os.link(home / "policy.toml", home / "hard.toml")
    os.link(model / "deep" / "b.txt", home / "hard.txt")
    return {
        "path": home / "policy.toml",
        "spelled otherwise": home / "model" / ".." / "policy.toml",
        "symlink": home / "link.toml",
        "hard link": home / "hard.toml",
        "hard link into a directory": home / "hard.txt",
        "digest": home / "copy.toml",
        "inside": model / "new.json",
        "inside, through a symlink": home / "folder-link" / "deep" / "new.json",
        "directory": model,
    }


@pytest.mark.parametrize("force", [False, True])
def test_a_file_output_never_touches_an_input(tmp_path: Path, force: bool) -> None:
    for name, path in file_cases(tmp_path).items():
        with pytest.raises(OutputError, match="input"):
            store.check_file_output(path, inputs=[tmp_path / "model", tmp_path / "policy.toml"], force=force)
            pytest.fail(name)


def test_a_file_output_that_cannot_be_is_refused_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "empty").write_bytes(b"")
    store.check_file_output(tmp_path / "new", inputs=[tmp_path / "missing"])
    store.check_file_output(tmp_path / "old", inputs=[tmp_path / "empty"], force=True)
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        store.check_file_output(tmp_path / "old")
    with pytest.raises(OutputError, match=r"is a directory.*Name a file"):
        store.check_file_output(tmp_path, force=True)
    with pytest.raises(OutputError, match=r"does not exist.*Make the directory"):
        store.check_file_output(tmp_path / "no" / "where", force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["hard link", "hard link in", "digest", "link in the input"])
def test_a_directory_output_never_is_an_input_in_disguise(tmp_path: Path, way: str, force: bool) -> None:
    source, out = published(tmp_path / "model"), tmp_path / "out"
    if way == "digest":
        shutil.copytree(source, out)
    elif way == "link in the input":
        published(out, weights=b"shared")
        (source / "weights").symlink_to(out / "weights")
    else:
        published(out, other=b"other")
        place = out / "deep" / "linked" if way == "hard link in" else out / "linked"
        os.link(source / "deep" / "b.txt", place)
    before = names(out)
    with pytest.raises(OutputError, match="input"), store.publish(out, inputs=[source], force=force):
        pytest.fail("the block must not run")
    assert names(out) == before


def test_a_directory_output_with_other_bytes_is_no_copy(tmp_path: Path) -> None:
    source, out = (
        published(tmp_path / "model"),
        published(tmp_path / "out", **{"a.txt": b"First", "deep/b.txt": b"second"}),
    )
    with store.publish(out, inputs=[source], force=True) as result:
        store.write_bytes(result.directory / "c", b"3")
    assert names(out) == ["c", "recerase.json"]


def test_a_directory_without_a_manifest_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no readable recerase\.json: No such file"):
        store.read_manifest(tmp_path)


def test_equal_tables_are_equal_bytes() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"item_id": ["a", "b"], "codes": [[1, 2], [3]]})
    data = store.parquet_bytes(table)
    assert pq.read_table(pa.BufferReader(data)).equals(table)
    assert store.parquet_bytes(pa.table(table.to_pydict())) == data


@pytest.mark.parametrize("old", [False, True])
def test_everything_is_on_the_disk_before_it_is_seen_and_its_name_right_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    home = tmp_path / "home"
    if old:
        published(home / "out")
    log: list[object] = []
    fsync, rename = os.fsync, disk._renameat2

    def syncing(descriptor: int) -> None:
        log.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renaming(source: Path, target: Path, flag: int) -> bool:
        if target == home / "out":
            log.append({path.stat().st_ino for path in (source, *source.rglob("*"))})
        return rename(source, target, flag)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(disk, "_renameat2", renaming)
    with store.publish(home / "out", force=old) as result:
        (result.directory / "deep").mkdir()
        store.write_bytes(result.directory / "deep" / "file", b"1")
    (moment,) = (place for place, entry in enumerate(log) if isinstance(entry, set))
    tree = log[moment]
    assert isinstance(tree, set)
    assert len(tree) == 4
    assert tree <= {entry for entry in log[:moment] if isinstance(entry, int)}
    assert log[moment + 1 :] == [home.stat().st_ino]
    assert old or tmp_path.stat().st_ino in log[:moment]


def test_parts_do_not_replace_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept").write_bytes(b"1")
    for write in (lambda: store.write_bytes(tmp_path / "a", b"x"), lambda: store.write_parts(tmp_path / "a", [b"x"])):
        with pytest.raises(WriteError, match="Is a directory"):
            write()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["kept"]


def test_what_a_clock_says_stands_beside_the_manifest_and_is_sealed(tmp_path: Path) -> None:
    for name, seconds in (("one", 1.5), ("two", 2.5), ("none", None)):
        with store.publish(tmp_path / name) as result:
            store.write_bytes(result.directory / "a", b"a")
            result.provenance = {"command": "test"}
            result.run = {} if seconds is None else {"seconds": seconds}
    one, two, none = (store.read_manifest(tmp_path / name) for name in ("one", "two", "none"))
    assert one == two == none
    assert "run" not in one
    assert [store.read_run(tmp_path / name) for name in ("one", "two", "none")] == [
        {"seconds": 1.5},
        {"seconds": 2.5},
        {},
    ]
    store.verify_manifest(tmp_path / "one")
    place = tmp_path / "one" / "recerase.json"
    told = json.loads(place.read_bytes())
    changes: list[dict[str, object]] = [{"run": {"seconds": 1.4}}, {"seal": None}, {"run": None}, {"run": {}}]
    for change in changes:
        place.write_bytes(store.pretty_json({**told, **change}))
        with pytest.raises(ArtefactError, match="not as it was written"):
            store.read_run(tmp_path / "one")
    for gone in ("run", "seal"):
        place.write_bytes(store.pretty_json({key: value for key, value in told.items() if key != gone}))
        with pytest.raises(ArtefactError, match="not as it was written"):
            store.read_manifest(tmp_path / "one")
