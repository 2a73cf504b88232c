"""Each check, on this machine and where something is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from recerase.doctor import Check, checks, diagnose
from recerase.errors import WriteError
from recerase.settings import FILE_NAME


def test_this_machine_can_work(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('concepts = "brand=Acme"\n')
    found = {check.name: check for check in diagnose(tmp_path, settings=tmp_path / FILE_NAME)}
    assert found.keys() >= {"python", "torch", "faiss-cpu", "torch cpu", "faiss search", "cores", "outputs", "settings"}
    assert {name for name, check in found.items() if check.status == "fail"} <= {"memory", "disk"}
    assert all((check.remedy == "") == (check.status == "ok") for check in found.values())
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_a_check_that_breaks_has_failed_and_the_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Check]:
        raise OSError("libgomp.so.1: cannot open")

    monkeypatch.setattr(checks, "_faiss", broken)
    monkeypatch.setattr(checks, "_packages", list)
    found = {check.name: check for check in diagnose()}
    assert (found["faiss"].status, found["faiss"].exit_code) == ("fail", 3)
    assert "libgomp" in found["faiss"].found
    assert found["settings"].status == "ok"


@pytest.mark.parametrize(
    ("wanted", "status", "said"),
    [
        ("numpy>=1.26", "ok", np.__version__),
        ("numpy>=99", "fail", f"{np.__version__}, and >=99 is needed"),
        ("recerase-needs-this>=1", "fail", "not installed"),
    ],
)
def test_a_package_is_held_against_what_is_asked_for(wanted: str, status: str, said: str) -> None:
    found = checks._package(Requirement(wanted))
    assert found.status == status
    assert said in found.found
    assert found.remedy == ("" if status == "ok" else f"pip install '{wanted}'")


def test_a_package_that_cannot_be_imported_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        assert name == "faiss"
        raise ImportError("undefined symbol: cblas_sgemm")

    monkeypatch.setattr(checks, "import_module", broken)
    found = checks._package(Requirement("faiss-cpu>=1.9"))
    assert found.status == "fail"
    assert "undefined symbol" in found.found
    assert "--force-reinstall" in found.remedy


def test_a_python_that_is_too_old_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.9.1")
    assert checks._python()[0].status == "fail"


def test_torch_and_faiss_are_asked_for_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    assert checks._torch(1)[0].status == "ok"
    assert checks._faiss()[0].status == "ok"
    monkeypatch.setattr(checks, "_off", lambda *_: 0.5)
    assert checks._torch(1)[0].status == "fail"
    wrong = SimpleNamespace(add=lambda points: None, search=lambda asked, k: (None, np.zeros((len(asked), k), int)))
    monkeypatch.setattr(faiss, "IndexFlatL2", lambda width: wrong)
    assert checks._faiss()[0].status == "fail"


@pytest.mark.parametrize(
    ("quota", "threads", "status", "remedy"),
    [
        ("100000 100000", 2, "warn", "Pass --threads 1."),
        ("50000 100000", 2, "warn", "Pass --threads 1."),
        ("max 100000", 2, "ok", ""),
        ("200000 100000", 2, "ok", ""),
        ("max 100000", 9, "warn", "Pass --threads 4."),
    ],
)
def test_threads_are_held_against_the_share_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, threads: int, status: str, remedy: str
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(checks, "_CGROUP", tmp_path)
    monkeypatch.setattr(checks, "available_threads", lambda: 4)
    found = checks._cores(threads)
    assert (found.status, found.remedy) == (status, remedy)


@pytest.mark.parametrize(("free", "status"), [(0.5, "fail"), (1.5, "warn"), (0, "fail")])
def test_memory_is_the_least_of_machine_and_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, status: str
) -> None:
    monkeypatch.setattr(checks, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(str(int((1 + free) * checks.GIB)))
    (tmp_path / "memory.current").write_text(str(checks.GIB))
    assert checks._memory().status == status
    (tmp_path / "memory.max").write_text("max")
    monkeypatch.setattr(checks, "LOW_MEMORY", 0)
    monkeypatch.setattr(checks, "LEAST_MEMORY", 0)
    assert checks._memory().status == "ok"


@pytest.mark.parametrize(("free", "status"), [(0.1, "fail"), (1, "warn"), (3, "ok")])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free * checks.GIB))
    assert checks._disk(tmp_path).status == status


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that was named must be writable; that this one is not is a warning, for outputs may go elsewhere."""
    assert checks._writable("outputs", tmp_path / "nowhere", "fail").status == "fail"

    def refuse(*_: object, **__: object) -> None:
        raise WriteError("Cannot write: read-only file system.")

    monkeypatch.setattr(checks, "publish", refuse)
    monkeypatch.setattr(checks, "_packages", list)
    monkeypatch.chdir(tmp_path)
    told = {check.name: check for check in diagnose()}
    assert told["outputs"].status == "warn"
    assert told["temporary files"].status == "fail"
    assert "TMPDIR" in told["temporary files"].remedy
    assert {check.name: check for check in diagnose(tmp_path)}["outputs"].status == "fail"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "status", "code", "said"),
    [
        ("dato = 'x'\n", "fail", 2, "dato"),
        ("data = 'nowhere'\n", "warn", 3, "data = "),
        ("data = '.'\nconcepts = 'brand=Acme'\n", "ok", 3, "they name data, concepts"),
        ("profile = 'quick'\nreference = '.'\n", "ok", 3, "they name profile, reference"),
        ("reference = ['.', 'nowhere']\n", "warn", 3, "reference = "),
    ],
)
def test_settings(tmp_path: Path, text: str, status: str, code: int, said: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    found = checks._settings(tmp_path / FILE_NAME)
    assert (found.status, found.exit_code) == (status, code)
    assert said in found.found


def test_what_runs_from_its_source_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from source, there is nothing to compare with: a warning, no crash and no pass."""

    def absent(name: str) -> Callable[[], None]:
        raise checks.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "requires", absent)
    monkeypatch.setattr(checks.metadata, "metadata", absent)
    assert [check.status for check in checks._packages()] == ["warn"]
    assert [check.status for check in checks._python()] == ["ok"]
