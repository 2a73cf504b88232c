"""Names change hands in one step, with or without help from the kernel, and locks end with their process."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from recerase import disk
from recerase.errors import ArtefactError, WriteError

Kernel = Callable[[int | None], None]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Lets the system's renameat2 fail with an errno, or not exist at all (None)."""

    def answer(number: int | None) -> None:
        def refuse(*_: object) -> int:
            ctypes.set_errno(number or 0)
            return -1

        monkeypatch.setattr(disk, "_libc_renameat2", lambda: None if number is None else refuse)

    return answer


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def two(home: Path, directories: bool) -> tuple[Path, Path]:
    """The staging place of home/target with `new` in it, and home/target with `old`."""
    staging, target = home / ".target.recerase-staging", home / "target"
    for path, text in ((staging, "new"), (target, "old")):
        if directories:
            path.mkdir()
            (path / "file").write_text(text)
        else:
            path.write_text(text)
    return staging, target


def text(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("directories", [False, True])
@pytest.mark.parametrize("missing", ["nothing", None, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_two_names_are_exchanged_and_back(
    tmp_path: Path, kernel: Kernel, directories: bool, missing: int | str | None
) -> None:
    staging, target = two(tmp_path, directories)
    if missing != "nothing":
        kernel(missing if isinstance(missing, int) else None)
    inodes = os.stat(staging).st_ino, os.stat(target).st_ino
    disk.exchange(staging, target)
    assert (text(target), text(staging)) == ("new", "old")
    assert (os.stat(target).st_ino, os.stat(staging).st_ino) == inodes
    disk.exchange(staging, target)
    assert (text(target), text(staging)) == ("old", "new")
    assert names(tmp_path) == [staging.name, "target"]


def test_other_errors_of_the_kernel_are_not_worked_around(tmp_path: Path, kernel: Kernel) -> None:
    staging, target = two(tmp_path, False)
    kernel(errno.EACCES)
    with pytest.raises(PermissionError) as caught:
        disk.exchange(staging, target)
    assert (caught.value.filename, caught.value.filename2) == (str(staging), str(target))
    assert (text(target), text(staging)) == ("old", "new")


@pytest.mark.parametrize("missing", ["nothing", None])
def test_a_new_name_never_covers_another(tmp_path: Path, kernel: Kernel, missing: str | None) -> None:
    if missing is None:
        kernel(None)
    for directories in (False, True):
        home = tmp_path / str(directories)
        home.mkdir()
        staging, target = two(home, directories)
        with pytest.raises(FileExistsError):
            disk.rename_new(staging, target)
        assert (text(target), text(staging)) == ("old", "new")
        disk.rename_new(staging, home / "free")
        assert names(home) == ["free", "target"]


def test_a_file_is_replaced_even_where_there_are_neither_exchange_nor_links(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(None)
    monkeypatch.setattr(os, "link", fail)
    staging, target = two(tmp_path, False)
    disk.put(staging, target, replace=True)
    assert names(tmp_path) == ["target"]
    assert text(target) == "new"


@pytest.mark.parametrize("replaces", [False, True])
def test_what_cannot_be_confirmed_and_not_be_undone_is_said(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    staging, target = two(tmp_path, False)
    if not replaces:
        target.unlink()

    def unconfirmed(path: Path) -> None:
        kernel(errno.EIO)
        fail()

    monkeypatch.setattr(disk, "sync_directory", unconfirmed)
    with pytest.raises(WriteError, match=r"target was written, but it may not survive a power cut: Input/output error"):
        disk.put(staging, target, replace=replaces)
    assert text(target) == "new"


def test_the_staging_place_is_empty_before_and_gone_after(tmp_path: Path) -> None:
    for left in (".target.recerase-staging", "other"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").write_text("left")
    with disk.staging_place(tmp_path / "target", wait=False) as staging:
        assert not staging.exists()
        staging.symlink_to(tmp_path / "other")
    with pytest.raises(RuntimeError), disk.staging_place(tmp_path / "target", wait=False) as staging:
        staging.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["other"]
    assert text(tmp_path / "other") == "left"


def test_one_holds_the_staging_place_at_a_time(tmp_path: Path) -> None:
    with disk.staging_place(tmp_path / "target", wait=False) as staging:
        staging.mkdir()
        with pytest.raises(BlockingIOError), disk.staging_place(tmp_path / "target", wait=False):
            pytest.fail("the block must not run")
        with disk.staging_place(tmp_path / "another", wait=False):
            pass
        assert staging.is_dir()
    assert names(tmp_path) == []


def test_many_who_wait_come_one_after_the_other(tmp_path: Path) -> None:
    """Whoever leaves removes the lock file; those who waited for it must not all believe to hold it."""
    inside, most, done = [0], [0], [0]

    def work() -> None:
        for _ in range(25):
            with disk.staging_place(tmp_path / "target", wait=True) as staging:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                staging.mkdir()  # fails when somebody else is here
                staging.rmdir()
                inside[0] -= 1
                done[0] += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most[0], done[0]) == (1, 150)
    assert names(tmp_path) == []


def test_the_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from recerase import disk
with disk.staging_place(Path(sys.argv[1]), wait=False) as staging:
    staging.mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "target")], check=False).returncode == -9
    assert names(tmp_path) == [".target.recerase-lock", ".target.recerase-staging"]
    with disk.staging_place(tmp_path / "target", wait=False) as staging:
        assert not staging.exists()
    assert names(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_what_an_interrupted_exchange_left_aside_comes_back_or_goes(tmp_path: Path, there: bool) -> None:
    (tmp_path / ".target.recerase-replaced").mkdir()
    (tmp_path / ".target.recerase-replaced" / "file").write_text("old")
    if there:
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "file").write_text("new")
    with disk.staging_place(tmp_path / "target", wait=False):
        assert text(tmp_path / "target") == ("new" if there else "old")
    assert names(tmp_path) == ["target"]


def test_parents_are_made_and_told(tmp_path: Path) -> None:
    assert disk.make_parents(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]
    assert disk.make_parents(tmp_path / "a" / "b") == []
    assert (tmp_path / "a" / "b").is_dir()


def test_listing_knows_files_from_what_serves_writing_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_text("12")
    (tmp_path / "a").write_text("1")
    for name in (".a.recerase-lock", "deep/.b.recerase-staging", ".c.recerase-replaced"):
        (tmp_path / name).write_text("left")
    assert disk.listing(tmp_path) == [("a", 1), ("deep/b", 2)]
    disk.settle(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "deep"]


def test_a_digest_of_what_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"missing: No such file.*permissions"):
        disk.sha256_file(tmp_path / "missing")


def test_too_many_open_files_have_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(disk.os, "open", refuse)
    with pytest.raises(WriteError, match="Too many open files") as caught, disk.Scratch([tmp_path / "a"]):
        pass
    assert "ulimit -n" in caught.value.remedy


@pytest.mark.parametrize(("limit", "spare"), [(1024, 512), (256, 128), (1, 1), (-1, 1 << 20)])
def test_half_of_the_files_are_spare(limit: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.resource, "getrlimit", lambda _: (limit, limit))
    assert disk.spare_files() == spare


def test_scratch_that_stays_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk.scratch_directory(tmp_path) as home:
        (home / "a").write_bytes(b"1")
    assert not names(tmp_path)

    def stay(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            fail()

    monkeypatch.setattr(disk.shutil, "rmtree", stay)
    with pytest.raises(WriteError, match="scratch"), disk.scratch_directory(tmp_path):
        pass
    (tmp_path / ".scratch").rmdir()
    with pytest.raises(ZeroDivisionError), disk.scratch_directory(tmp_path):
        raise ZeroDivisionError
