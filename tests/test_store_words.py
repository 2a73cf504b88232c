"""What store writes to the byte, and what it says when it refuses: a sentence with the path, and a remedy."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase import disk, outputs, store
from recerase.errors import ArtefactError, OutputError, RecEraseError, WriteError


@contextmanager
def refused(kind: type[RecEraseError], message: str, remedy: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert (caught.value.message, caught.value.remedy) == (message, remedy)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory that recerase wrote, with one file in it."""
    with store.publish(tmp_path / "made") as result:
        store.write_bytes(result.directory / "a.txt", b"one")
    return tmp_path / "made"


def changed(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    """The manifest with something else in it, and a digest that says it was always so."""
    manifest = store.read_manifest(directory)
    change(manifest)
    plain = {key: value for key, value in manifest.items() if key != "digest"}
    manifest["digest"] = store.sha256_bytes(store.canonical_json(plain))
    (directory / "recerase.json").write_bytes(store.pretty_json(manifest))


AGAIN = store._MAKE_AGAIN


def test_json_is_written_one_way() -> None:
    value = {"b": "é", "a": [1, {"d": None, "c": 0.5}]}
    assert store.canonical_json(value) == '{"a":[1,{"c":0.5,"d":null}],"b":"é"}'.encode()
    lines = [
        "{",
        '  "a": [',
        "    1,",
        "    {",
        '      "c": 0.5,',
        '      "d": null',
        "    }",
        "  ],",
        '  "b": "é"',
        "}",
        "",
    ]
    assert store.pretty_json(value) == "\n".join(lines).encode()
    with pytest.raises(ValueError):
        store.pretty_json({"a": float("nan")})


def test_parquet_is_compressed(tmp_path: Path) -> None:
    data = store.parquet_bytes(pa.table({"a": [1] * 1000}))
    assert pq.read_metadata(pa.BufferReader(data)).row_group(0).column(0).compression == "ZSTD"


def test_text_is_added_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    store.append_text(tmp_path / "summary", "one ")
    plain = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = "import sys; from recerase.store import append_text; append_text(sys.argv[1], '\\u2713')"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "summary")], env=plain, check=True)
    assert (tmp_path / "summary").read_bytes() == "one ✓".encode()


def test_what_is_discarded_never_appears(tmp_path: Path) -> None:
    with store.publish(tmp_path / "out") as result:
        store.write_bytes(result.directory / "a.txt", b"one")
        result.discard()
    assert os.listdir(tmp_path) == []
    assert result.manifest == {}


def test_a_sealed_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "state"
    store.write_sealed(path, b"")
    whole = path.read_bytes()
    assert store.read_sealed(path) == b""
    cut = f"{path} does not end in its seal: it was cut short or changed."
    for content in (b"", whole[1:], whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with refused(ArtefactError, cut, "Remove it."):
            store.read_sealed(path)
    path.write_bytes(b"x" + whole)
    with refused(ArtefactError, f"{path} is not what its seal says: its sha256 differs.", "Remove it."):
        store.read_sealed(path)


@pytest.mark.parametrize("read", [store.read_bytes, store.read_sealed, disk.sha256_file])
def test_a_file_that_is_not_there(tmp_path: Path, read: Callable[[Path], object]) -> None:
    message = f"Cannot read {tmp_path}/gone: No such file or directory."
    with refused(ArtefactError, message, "Check the path and its permissions."):
        read(tmp_path / "gone")


@pytest.mark.parametrize(
    ("content", "says", "remedy"),
    [
        (
            None,
            "{0} has no readable recerase.json: No such file or directory.",
            "Give a directory that recerase wrote.",
        ),
        (
            b"{",
            "{0}/recerase.json is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
            AGAIN,
        ),
        (b"[]", "{0}/recerase.json has schema 'list', not 'recerase.manifest/1'.", "Use the recerase that wrote it."),
        (b"{}", "{0}/recerase.json has schema None, not 'recerase.manifest/1'.", "Use the recerase that wrote it."),
        (b'{"schema": "recerase.manifest/1"}', "{0}/recerase.json names no files.", AGAIN),
        (b'{"schema": "recerase.manifest/1", "files": {}}', "{0}/recerase.json names no files.", AGAIN),
        (b'{"schema": "recerase.manifest/1", "provenance": {}}', "{0}/recerase.json names no files.", AGAIN),
        (
            b'{"schema": "recerase.manifest/1", "files": {}, "provenance": {}}',
            "{0}/recerase.json is not as it was written: its digest differs.",
            AGAIN,
        ),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes | None, says: str, remedy: str) -> None:
    if content is not None:
        (tmp_path / "recerase.json").write_bytes(content)
    with refused(ArtefactError, says.replace("{0}", str(tmp_path)), remedy):
        store.read_manifest(tmp_path)


def test_a_manifest_in_other_white_space(made: Path) -> None:
    place = made / "recerase.json"
    place.write_text(json.dumps(json.loads(place.read_text()), sort_keys=True, indent=1) + "\n")
    with refused(ArtefactError, f"{place} is not as it was written: its digest differs.", AGAIN):
        store.verify_manifest(made)


def test_files_that_are_not_what_the_manifest_says(made: Path) -> None:
    store.verify_manifest(made, needed=["a.txt"])
    vouched = f"{made}/b.txt is not vouched for: recerase.json does not name it."
    with refused(ArtefactError, vouched, AGAIN):
        store.verify_manifest(made, needed=["a.txt", "b.txt"])
    (made / "a.txt").write_bytes(b"two")
    differs = f"{made}/a.txt is not what recerase.json says: its size or sha256 differs."
    with refused(ArtefactError, differs, AGAIN):
        store.verify_manifest(made)
    (made / "a.txt").unlink()
    with refused(ArtefactError, f"{made}/a.txt is missing, though recerase.json names it.", AGAIN):
        store.verify_manifest(made)


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/etc/passwd", "a\0b", "a//b", "./a", "a/"])
def test_names_that_are_no_file_of_the_directory(made: Path, name: str) -> None:
    changed(made, lambda manifest: manifest.update(files={name: {}}))
    says = f"{made}/recerase.json names {name!r}, which is no file of this directory."
    with refused(ArtefactError, says, AGAIN):
        store.verify_manifest(made)


def test_a_link_out_of_the_directory(made: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"one")
    (made / "a.txt").unlink()
    (made / "a.txt").symlink_to(tmp_path / "elsewhere")
    with refused(ArtefactError, f"{made}/a.txt is a link that leaves {made}.", "Copy the file into the directory."):
        store.verify_manifest(made)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("settle", OSError(errno.EIO, os.strerror(errno.EIO)), "Cannot write {0}: Input/output error."),
        ("put", OSError(errno.EIO, os.strerror(errno.EIO)), "Cannot write {0}/recerase.json: Input/output error."),
        (
            "verify_manifest",
            ArtefactError("{1}/a.txt is not what it was.", "Restore it."),
            "{0}/a.txt is not what it was.",
        ),
    ],
)
def test_a_disk_that_fails_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception, says: str
) -> None:
    """The directory named is the one asked for, not the hidden one in which it was made."""

    def fail(directory: Path, *_: object, **__: object) -> None:
        if isinstance(error, ArtefactError):
            raise ArtefactError(error.message.replace("{1}", str(directory)), error.remedy)
        raise error

    with (
        refused(WriteError, says.replace("{0}", f"{tmp_path}/out"), "Nothing was replaced; check the disk."),
        store.publish(tmp_path / "out") as result,
    ):
        store.write_bytes(result.directory / "a.txt", b"one")
        monkeypatch.setattr(store, call, fail)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another = "Nothing was replaced; check the path, or name another."
    (tmp_path / "file").write_bytes(b"x")
    out = tmp_path / "file" / "below" / "out"
    with refused(WriteError, f"Cannot write {out}: Not a directory.", another), store.publish(out):
        pytest.fail("the block must not run")
    (tmp_path / "directory").mkdir()
    with refused(WriteError, f"Cannot write {tmp_path}/directory: Is a directory.", another):
        store.write_bytes(tmp_path / "directory", b"x")
    out = tmp_path / "out"
    busy = f"Another run is writing to --out {out}."
    with store.publish(out), refused(OutputError, busy, "Wait for it to end, or name another."), store.publish(out):
        pytest.fail("the block must not run")
    shutil.rmtree(out)

    def there(*_: object) -> None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(store, "settle", there)
    with refused(OutputError, f"--out {out} was made by another run meanwhile.", "Name another."), store.publish(out):
        pass


def test_an_error_without_a_number_says_itself(tmp_path: Path) -> None:
    told = disk.write_error(tmp_path, OSError("no words"))
    assert told.message == f"Cannot write {tmp_path}: no words."
    assert told.remedy == "Nothing was replaced; check the path, or name another."


def test_outputs_that_are_refused(made: Path, tmp_path: Path) -> None:
    another, exists = outputs._NAME_ANOTHER, outputs._EXISTS
    for out in (made, made / "inside", tmp_path):
        with refused(OutputError, f"--out {out} is, holds, or lies inside the input {made}.", another):
            outputs.check_output(out, inputs=[made], force=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "a.txt").write_bytes(b"one")
    with refused(OutputError, f"--out {copy} is a copy of the input {made}.", another):
        outputs.check_output(copy, inputs=[tmp_path / "nowhere", made])
    with refused(OutputError, f"--out {copy} exists already.", exists):
        outputs.check_output(copy)
    unknown = f"--out {copy} was not written by recerase (it has no recerase.json)."
    with refused(OutputError, unknown, "Remove it yourself, or name another."):
        outputs.check_output(copy, force=True)
    (copy / "a.txt").unlink()
    outputs.check_output(tmp_path / "new", inputs=[made])
    outputs.check_output(made, force=True)
    os.link(made / "a.txt", copy / "linked")
    with refused(OutputError, f"--out {copy} shares files with the input {made} (hard links).", another):
        outputs.check_output(copy, inputs=[made])


def test_file_outputs_that_are_refused(made: Path, tmp_path: Path) -> None:
    another, report = outputs._NAME_ANOTHER, tmp_path / "report.json"
    for path in (made, made / "a.txt", made / "new"):
        with refused(OutputError, f"{path} is, or lies inside, the input {made}.", another):
            outputs.check_file_output(path, inputs=[made], force=True)
    outputs.check_file_output(report, inputs=[made, made / "a.txt"])
    report.write_bytes(b"one")
    with refused(OutputError, f"{report} is a copy of the input {made}/a.txt.", another):
        outputs.check_file_output(report, inputs=[made / "recerase.json", made / "a.txt"])
    with refused(OutputError, f"{report} exists already.", outputs._EXISTS):
        outputs.check_file_output(report)
    outputs.check_file_output(report, force=True)
    report.unlink()
    os.link(made / "a.txt", report)
    with refused(OutputError, f"{report} is a hard link of a file of the input {made}.", another):
        outputs.check_file_output(report, inputs=[tmp_path / "nowhere", made], force=True)
    below = tmp_path / "none" / "report.json"
    with refused(OutputError, f"{below} is in a directory that does not exist.", "Make the directory first."):
        outputs.check_file_output(below)
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path, "directory"), (tmp_path / "pipe", "device or pipe")):
        with refused(OutputError, f"{path} is a {what}.", "Name a file."):
            outputs.check_file_output(path, force=True)


def test_empty_files_are_no_copies_of_each_other(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"")
    outputs.check_file_output(tmp_path / "one", inputs=[tmp_path / "two"], force=True)
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "two").write_bytes(b"y")
    outputs.check_file_output(tmp_path / "one", inputs=[tmp_path / "two"], force=True)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="this C library has no renameat2")
def test_the_rename_of_the_kernel_is_found_and_takes_relative_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk._libc_renameat2.cache_clear()
    assert disk._libc_renameat2() is not None
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(name).write_text(name)
    if disk._renameat2(Path("one"), Path("two"), disk._EXCHANGE):  # not every file system can
        assert (Path("one").read_text(), Path("two").read_text()) == ("two", "one")
    monkeypatch.setattr(disk, "_libc_renameat2", lambda: None)
    with pytest.raises(FileExistsError) as caught:
        disk.rename_new(Path("one"), Path("two"))
    assert caught.value.filename == "two"


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        disk.locked(tmp_path / "lock", wait=False)
    assert os.listdir(tmp_path) == ["lock"]


def test_what_may_not_survive_a_power_cut_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    staging, target = tmp_path / "staging", tmp_path / "target"
    staging.write_text("new")
    forth = disk.rename_new
    monkeypatch.setattr(disk, "sync_directory", fail)
    monkeypatch.setattr(disk, "rename_new", lambda a, b: forth(a, b) if a == staging else fail())
    says = f"{target} was written, but it may not survive a power cut: Input/output error."
    with refused(WriteError, says, "Check the disk, then the file."):
        disk.put(staging, target, replace=False)
    assert target.read_text() == "new"
