"""What an installation needs to work: each part tried, not looked up, with a remedy where it does not.

The one decision: a check that cannot be carried out has failed, and says why; none of them stops the next one.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recerase.errors import RecEraseError
from recerase.runtime import available_threads, pinned
from recerase.settings import KEYS, load_settings
from recerase.store import publish, write_bytes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "warn", "fail"]
PACKAGE = "recerase"
MODULES = {"scikit-learn": "sklearn", "faiss-cpu": "faiss"}
"""Distributions whose module has another name."""
GIB = 1 << 30
LOW_DISK, LEAST_DISK = 2 * GIB, GIB // 5
"""Bytes free below which a run is warned, or refused: an output stands beside what it replaces until it is whole. A rule of thumb."""
LOW_MEMORY, LEAST_MEMORY = 2 * GIB, GIB
"""Bytes available below which a run is warned, or refused: torch and transformers take half a GiB before a model is loaded."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Check:
    """One part of an installation, and what to do about it."""

    name: str
    status: Status
    found: str
    """One plain phrase: what there is."""
    remedy: str = ""
    """What to do; empty when there is nothing to do."""
    exit_code: int = 3
    """Of a run that ends because of this check, where it failed."""


def diagnose(
    place: str | Path | None = None, *, settings: str | Path | None = None, threads: int | None = None
) -> tuple[Check, ...]:
    """Try everything a run needs. `place` is where outputs will go; None: this directory, and then that it cannot be
    written is only a warning. `settings` as in `load_settings`; `threads` is the torch threads that runs will ask for.
    """
    out = Path(place or ".")
    tried: list[tuple[str, Callable[[], Sequence[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torch", lambda: _torch(threads)),
        ("faiss", _faiss),
        ("cores", lambda: [_cores(threads)]),
        ("memory", lambda: [_memory()]),
        ("temporary files", lambda: [_writable("temporary files", Path(tempfile.gettempdir()), "fail")]),
        ("outputs", lambda: [_writable("outputs", out, "warn" if place is None else "fail")]),
        ("disk", lambda: [_disk(out)]),
        ("settings", lambda: [_settings(settings)]),
    ]
    return tuple(check for name, attempt in tried for check in _carried_out(name, attempt))


def _carried_out(name: str, attempt: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    try:
        return attempt()
    except Exception as error:  # whatever it is, the others are still to be tried
        told = " ".join(str(error).split()) or "it said no more"
        return [Check(name, "fail", f"{type(error).__name__}: {told:.300}", "Mend this, and run doctor again.")]


def _python() -> list[Check]:
    """The interpreter's version against the one that the installed package asks for."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        told = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        return [Check("python", "ok", version)]  # that it is not installed is said of the packages
    wanted = told["Requires-Python"] or ""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return [Check("python", "ok", version)]
    return [Check("python", "fail", f"{version}, and {wanted} is needed", "Make an environment with such a Python.")]


def _packages() -> list[Check]:
    """Every package that recerase needs: imported, and its version against the one that is asked for."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        missing = "recerase runs from its source, so what it needs cannot be compared"
        return [Check("packages", "warn", missing, "Install it: pip install .")]
    needed = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [_package(one) for one in needed]


def _package(wanted: Requirement) -> Check:
    name, limits = wanted.name, str(wanted.specifier)
    install = f"pip install '{wanted.name}{limits}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    try:
        import_module(MODULES.get(name, name.replace("-", "_")))
    except ImportError as error:
        if not version:
            return Check(name, "fail", f"not installed, and {limits} is needed", f"{install}")
        return Check(name, "fail", f"{version} cannot be imported: {error!s:.200}", f"{install} --force-reinstall")
    if not version:
        return Check(name, "warn", f"imported, version not told; {limits} is needed", "Check its version yourself.")
    if not wanted.specifier.contains(version, prereleases=True):
        return Check(name, "fail", f"{version}, and {limits} is needed", install)
    return Check(name, "ok", version)


def _torch(threads: int | None) -> list[Check]:
    """A product on every device beside numpy's own."""
    import torch

    from recerase.runtime import choose_device

    one = np.random.default_rng(0).normal(size=(64, 64))
    answers = {"cpu": _off(torch, one, "cpu", threads)}
    found = [
        Check("torch cpu", "ok", f"computes, {threads or available_threads()} threads")
        if answers["cpu"] < 1e-3
        else Check("torch cpu", "fail", f"a product is off by {answers['cpu']:.2g}", "Install torch again.")
    ]
    for number in range(torch.cuda.device_count()):
        name = f"cuda:{number}"
        try:
            off = _off(torch, one, choose_device(name), threads)
            told = f"{torch.cuda.get_device_name(number)}, {torch.cuda.get_device_properties(number).total_memory / GIB:.0f} GiB"
            sound = off < 1e-2  # products may be made in tf32
            why = told if sound else f"{told}: a product is off by {off:.2g}"
        except (RuntimeError, RecEraseError) as error:
            sound, why = False, f"{error!s:.200}"
        found.append(Check(f"torch {name}", "ok" if sound else "warn", why, "" if sound else "Pass --device cpu."))
    if not torch.cuda.is_available():
        found.append(Check("torch cuda", "ok", "none; everything runs on the cpu"))
    return found


def _off(torch: Any, one: Any, device: str, threads: int | None) -> float:
    """The largest difference between torch's product of [64, 64] and numpy's, relative to the largest entry."""
    with pinned(threads):
        mine = torch.tensor(one, dtype=torch.float32, device=device)
        made = (mine @ mine).cpu().numpy()
    right = one @ one
    return float(np.abs(made - right).max() / np.abs(right).max())


def _faiss() -> list[Check]:
    """The nearest of 256 points, beside numpy's own search."""
    import faiss

    points = np.random.default_rng(1).normal(size=(256, 16)).astype(np.float32)
    asked = points[:8] + 0.01
    index = faiss.IndexFlatL2(16)
    index.add(points)
    _, near = index.search(asked, 3)
    right = np.argsort(((asked[:, None] - points[None]) ** 2).sum(-1), axis=1)[:, :3]
    if np.array_equal(near, right):
        return [Check("faiss search", "ok", "finds the nearest points")]
    return [
        Check("faiss search", "fail", "does not find the nearest points", "pip install --force-reinstall faiss-cpu")
    ]


def _cores(threads: int | None) -> Check:
    """Cores this process may use; of a container that has a share of time, that share."""
    cores, asked = available_threads(), threads or available_threads()
    share = _share_of_time()
    if share is not None and asked > max(1.0, share) * 1.25:
        told = f"{cores} cores, but a share of time of {share:g}: {asked} threads would wait for each other"
        return Check("cores", "warn", told, f"Pass --threads {max(1, int(share))}.")
    if asked > cores:
        return Check("cores", "warn", f"{cores} cores for {asked} threads", f"Pass --threads {cores}.")
    return Check("cores", "ok", f"{cores}, {asked} used")


def _share_of_time() -> float | None:
    """Cores' worth of time that the control group grants; None where it grants all, or there is none."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        return None


def _memory() -> Check:
    """Bytes that a new process may take: of the machine, and of the control group."""
    known = list(_available())
    if not known:
        return Check("memory", "ok", "not told by this system")
    free = min(known)
    told = f"{free / GIB:.1f} GiB available"
    if free < LEAST_MEMORY:
        return Check("memory", "fail", told, "Free memory, or use a larger machine: no model could be loaded.")
    if free < LOW_MEMORY:
        return Check("memory", "warn", told, "Small models only; --max-users and fewer threads take less.")
    return Check("memory", "ok", told)


def _available() -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        yield int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text())


def _writable(name: str, place: Path, otherwise: Status) -> Check:
    """Whether a directory can be published in `place`, as every command publishes; it is removed again."""
    remedy = "Make it writable, or name another: recerase doctor DIR, and --out DIR of the commands."
    if name == "temporary files":
        remedy = "Set TMPDIR to a directory that can be written."
    if not place.is_dir():
        return Check(name, otherwise, f"{place} is no directory", remedy)
    try:
        with tempfile.TemporaryDirectory(prefix=".recerase-doctor-", dir=place) as room:
            with publish(Path(room) / "made") as made:
                write_bytes(made.directory / "some", os.urandom(4096))
            with publish(Path(room) / "made", force=True) as made:
                write_bytes(made.directory / "some", os.urandom(4096))
    except (OSError, RecEraseError) as error:
        return Check(name, otherwise, f"{place} cannot be written: {error!s:.200}", remedy)
    return Check(name, "ok", f"{place} can be published in")


def _disk(place: Path) -> Check:
    here = place if place.is_dir() else Path(".")
    free = shutil.disk_usage(here).free
    told = f"{free / GIB:.1f} GiB free"
    if free < LEAST_DISK:
        return Check("disk", "fail", told, "Free some: an output stands beside what it replaces until it is whole.")
    if free < LOW_DISK:
        return Check("disk", "warn", told, "Large checkpoints will not fit twice, which replacing one needs.")
    return Check("disk", "ok", told)


def _settings(path: str | Path | None) -> Check:
    """Whether the settings file here can be read, and names what is there."""
    try:
        known = load_settings(path)
    except RecEraseError as error:
        return Check("settings", "fail", error.message, error.remedy, error.exit_code)
    if not known.sources:
        return Check("settings", "ok", "no recerase.toml here")
    given = {key: getattr(known, key) for key in KEYS if key not in ("concepts", "profile")}
    named = [(key, where) for key, said in given.items() for where in (said if isinstance(said, tuple) else (said,))]
    gone = [f"{key} = {where}" for key, where in named if where is not None and not where.exists()]
    if gone:
        return Check("settings", "warn", f"they name what is not there: {', '.join(gone)}", "Correct the paths.")
    return Check("settings", "ok", f"they name {', '.join(known.sources)}")
