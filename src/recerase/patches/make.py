"""`make_patch`: two directories compared file by file, and the patch proved before it is written.

The one decision: a patch that was written works. What it makes of one directory is compared with the digests of the other, in both
directions where it has two, while both are at hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from recerase.assembly import RUN, given_paths
from recerase.disk import listing
from recerase.errors import ArtefactError, UsageError
from recerase.patches.delta import Blob, Delta, find_delta, made_from
from recerase.patches.file import Change, Patch, Seal, usable_name, write_patch
from recerase.patches.moves import told_moves
from recerase.runtime import RunConfig, environment
from recerase.store import MANIFEST, check_file_output, read_bytes, read_manifest, read_run, verify_manifest
from recerase.types import SILENT, Observer

_MIB = 1 << 20
_LARGEST_REPORT = 256 << 20
_CHANGED = "Run again when nobody writes there."

Seen = Callable[[int], None]


class Meter:
    """Bytes read, told to an observer as MiB of a task."""

    def __init__(self, observer: Observer, task: str, total: int) -> None:
        self._observer, self._task, self._rest = observer, f"{task} (MiB)", 0
        observer.start(self._task, max(1, total // _MIB))

    def __call__(self, count: int) -> None:
        whole, self._rest = divmod(self._rest + count, _MIB)
        if whole:
            self._observer.advance(self._task, whole)

    def finish(self) -> None:
        self._observer.finish(self._task)


def make_patch(
    before: str | Path,
    after: str | Path,
    out: str | Path,
    *,
    one_way: bool = False,
    leave: Sequence[str] = (),
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Patch:
    """Write to `out` what makes `after` from `before`, two checkpoint directories, and the other way round unless `one_way`.

    `leave` are names (or patterns: `optimizer*`) of files, or of folders, that have no part in it. What recerase.json says travels
    along and the file itself is made anew, the same where it names just the files there are. Names and content are what travels:
    not permissions, nor folders without a file. Raises ArtefactError when a directory is not what its recerase.json says, or holds
    links, UsageError when nothing differs.
    """
    before, after, out = Path(before), Path(after), Path(out)
    check_file_output(out, inputs=given_paths(before, after), force=force)
    left: set[str] = set()
    provenance = [_provenance(path) for path in (before, after)]
    sides = [_seals(path, leave, left, observer, f"reading {path.name}") for path in (before, after)]
    _check_left(leave, left)
    names = sorted({*sides[0], *sides[1]})
    pairs = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
    differing = [name for name, (old, new) in pairs.items() if old != new]
    if not differing:
        raise UsageError(f"{before} and {after} hold the same files.", "There is nothing to patch.")
    _tell_large(pairs, one_way, observer)
    telling = [name for name in differing if name in sides[1] and _tells(after / name)]
    if telling and one_way:
        observer.note(
            f"{' and '.join(f'{name} names' for name in telling)} the SIDs that items had before, and goes with the patch as it is: "
            "--leave it out, if they must not"
        )
    total = sum(seal.bytes for name in differing for seal in pairs[name] if seal) * (1 if one_way else 2)
    meter = Meter(observer, "comparing and proving", 2 * total)
    changes = {name: Change(*pairs[name]) for name in names}
    for name in differing:
        old, new = pairs[name]
        forward = _proved(before / name, after / name, old, new, meter)
        backward = None if one_way else _proved(after / name, before / name, new, old, meter)
        changes[name] = Change(old, new, forward, backward)
    meter.finish()
    facts: dict[str, Any] = {
        "kind": "one-way" if one_way else "reversible",
        "tool": f"recerase {environment().recerase}",
        "left": sorted(left),
        "telling": telling,
        "provenance": {"before": None if one_way else provenance[0], "after": provenance[1]},
        "runs": {"before": {} if one_way else _run(before), "after": _run(after)},
        **told_moves(before, after, run, observer, one_way),
    }
    return write_patch(out, changes, facts)


def _provenance(directory: Path) -> Any:
    """What recerase.json says, once it has been held against the files it names; None where there is none."""
    if not directory.is_dir():
        raise ArtefactError(f"{directory} is not a directory.", "Give two checkpoint directories.")
    if not os.path.lexists(directory / MANIFEST):
        return None
    verify_manifest(directory)
    return read_manifest(directory)["provenance"]


def _run(directory: Path) -> Any:
    """What recerase.json says of the run that made it, such as seconds; {} where there is nothing."""
    return read_run(directory) if os.path.lexists(directory / MANIFEST) else {}


def _check_left(leave: Sequence[str], left: set[str]) -> None:
    """Raises UsageError for a name to be left out that no file has."""
    for pattern in leave:
        if not any(_matches(name, pattern) for name in left):
            raise UsageError(
                f"No file or folder of either directory is called {pattern!r:.80}.",
                "Name it by its path in the directory, or by a pattern in quotes: --leave 'checkpoint-*'.",
            )


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a file, or a folder that it is in."""
    place = PurePosixPath(name)
    return any(fnmatchcase(part.as_posix(), pattern.rstrip("/")) for part in (place, *place.parents[:-1]))


def _tell_large(pairs: Mapping[str, tuple[Seal | None, Seal | None]], one_way: bool, observer: Observer) -> None:
    """A note on every large file that goes: its bytes are in the patch for nothing but to come back."""
    for name, (old, new) in pairs.items():
        if old is not None and new is None and old.bytes >= _MIB and not one_way:
            observer.note(
                f"{name} is only there before, and the patch holds its {old.bytes:,} bytes: --leave it out, if you can"
            )


def _seals(directory: Path, leave: Sequence[str], left: set[str], observer: Observer, task: str) -> dict[str, Seal]:
    """Every file's size and digest; names that match `leave` go to `left`."""
    named = [(name, size) for name, size in plain_listing(directory) if name != MANIFEST]
    strange = [name for name, _ in named if not usable_name(name)]
    if strange:
        raise UsageError(
            f"{directory} holds {strange[0]!r:.100}, a name that no patch can hold.", "Rename or remove it."
        )
    left |= {name for name, _ in named if any(_matches(name, pattern) for pattern in leave)}
    return seals(directory, [(name, size) for name, size in named if name not in left], observer, task)


def plain_listing(directory: Path) -> list[tuple[str, int]]:
    """`listing` of a directory that holds files and folders alone: a patch cannot make links again, and must not drop them."""
    for root, folders, files in os.walk(directory):
        for name in (*folders, *files):
            place = Path(root, name)
            kind = place.lstat().st_mode
            if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
                what = "a link" if stat.S_ISLNK(kind) else "neither a file nor a folder"
                raise ArtefactError(
                    f"{str(place)!r:.300} is {what}, which a patch cannot hold.",
                    "Give a copy that has files in the place of links: `cp -rL`.",
                )
    return listing(directory)


def _tells(path: Path) -> bool:
    """Whether a file names SIDs as they were before: an audit report that does, or what an erased checkpoint remembers."""
    if path.suffix != ".json" or path.stat().st_size > _LARGEST_REPORT:
        return False
    data = read_bytes(path)
    if b'"recerase.audit/' not in data and b'"recerase.erased/' not in data:
        return False
    try:
        said = json.loads(data)
        return bool(said.get("moves") or said.get("concepts"))
    except (ValueError, RecursionError, AttributeError):
        return False


def seals(directory: Path, named: Sequence[tuple[str, int]], observer: Observer, task: str) -> dict[str, Seal]:
    """Size and digest of the files of a listing."""
    meter = Meter(observer, task, sum(size for _, size in named))
    found = {}
    for name, _ in named:
        with Blob(directory / name, meter) as file:
            found[name] = Seal(file.size, file.sha256())
    meter.finish()
    return found


def _proved(source: Path, target: Path, old: Seal | None, new: Seal | None, seen: Seen) -> Delta | None:
    """How a file is made from another; None where it goes. Raises ArtefactError when it is not what its digest was."""
    if new is None:
        return None
    with Blob(target, seen) as wanted:
        if old is None:
            delta = Delta.whole(wanted.read(0, wanted.size))
            made = hashlib.sha256(delta.new).hexdigest()
        else:
            with Blob(source, seen) as given:
                delta = find_delta(given, wanted)
                whole = hashlib.sha256()
                for part in made_from(delta, given):
                    whole.update(part)
                made = whole.hexdigest()
    if made != new.sha256:
        raise ArtefactError(f"{target} or {source} was changed while they were compared.", _CHANGED)
    return delta
