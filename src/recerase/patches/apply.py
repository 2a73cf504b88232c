"""`apply_patch` and `revert_patch`: a directory made from another and a patch, whole and as promised, or not at all.

The one decision: both ends are held against digests. Every file of the directory must be what the patch was made from, none missing
and none more, and every file that is written must be what the patch promises; recerase.json is made anew from what the patch brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recerase.assembly import given_paths
from recerase.disk import listing, write_error
from recerase.errors import ArtefactError, UsageError
from recerase.patches.delta import Blob, Delta, made_from
from recerase.patches.file import Patch, Seal, Way, read_patch
from recerase.patches.make import Meter, plain_listing, seals
from recerase.store import MANIFEST, publish, write_parts
from recerase.types import SILENT, Observer

_OTHER = {"forward": "before", "backward": "after"}


def apply_patch(
    directory: str | Path, patch: str | Path, out: str | Path, *, force: bool = False, observer: Observer = SILENT
) -> Patch:
    """Publish at `out` what the patch makes of the directory it was made from.

    Raises ArtefactError, and publishes nothing, when the directory is any other, or the patch is not as it was written.
    """
    return _made(Path(directory), Path(patch), Path(out), "forward", force, observer)


def revert_patch(
    directory: str | Path, patch: str | Path, out: str | Path, *, force: bool = False, observer: Observer = SILENT
) -> Patch:
    """Publish at `out` what was there before: the files of the original, byte for byte. Raises as `apply_patch`.

    Raises UsageError for a one-way patch. Where the original had no recerase.json, the result has one beside its files.
    """
    return _made(Path(directory), Path(patch), Path(out), "backward", force, observer)


def _made(directory: Path, path: Path, out: Path, way: Way, force: bool, observer: Observer) -> Patch:
    with publish(out, inputs=given_paths(directory, path), force=force) as result:
        patch = read_patch(path)
        if way == "backward" and patch.one_way:
            raise UsageError(
                f"{path} is a one-way patch: it holds nothing of what was there before.", "Restore the original itself."
            )
        _check_source(directory, patch, way, observer)
        wanted = {name: change.sides(way) for name, change in patch.files.items()}
        meter = Meter(observer, "writing", sum(new.bytes for _, new, _ in wanted.values() if new))
        for name, (_, new, delta) in wanted.items():
            if new is not None:
                place = result.directory / name
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise write_error(place, error) from error
                digest = write_parts(place, _told(_parts(directory / name, delta, new), meter))
                if digest != new.sha256:
                    raise ArtefactError(
                        f"{name} did not become what {path} promises: one of the two changed, or the patch is false.",
                        "Get both again; nothing was published.",
                    )
        meter.finish()
        made_names = [name for name, _ in listing(result.directory)]
        if made_names != sorted(name for name, (_, new, _) in wanted.items() if new is not None):
            raise ArtefactError(
                f"{path} names files that the file system of {out} takes for one: their names differ in case or accents alone.",
                "Publish on a file system that keeps them apart.",
            )
        command = "patch apply" if way == "forward" else "patch revert"
        made = patch.provenance(way)
        result.run = dict(patch.run(way))
        result.provenance = dict(made) if made is not None else {"command": command, "patch": patch.digest}
    return patch


def _parts(place: Path, delta: Delta | None, new: Seal) -> Iterator[bytes]:
    """The bytes of a file that is made, or stays."""
    if delta is not None and (len(delta.steps) == 0 or bool((delta.steps[:, 0] < 0).all())):
        yield delta.new
        return
    with Blob(place) as source:
        yield from source.blocks() if delta is None else made_from(delta, source)


def _told(parts: Iterator[bytes], meter: Meter) -> Iterator[bytes]:
    for part in parts:
        meter(len(part))
        yield part


def _check_source(directory: Path, patch: Patch, way: Way, observer: Observer) -> None:
    """Raises ArtefactError unless the directory holds just the files that the patch was made from."""
    if not directory.is_dir():
        raise ArtefactError(f"{directory} is not a directory.", "Give a checkpoint directory.")
    meant = f"Give the directory as it was {_OTHER[way]} the change."
    sides = {name: change.sides(way)[:2] for name, change in patch.files.items()}
    wanted = {name: old for name, (old, _) in sides.items() if old is not None}
    there = {name: size for name, size in plain_listing(directory) if name != MANIFEST and name not in patch.left}
    for name in wanted:
        if name not in there:
            raise ArtefactError(f"{directory} is not what the patch was made from: it has no {name}.", meant)
    for name in there:
        if name not in wanted:
            known = "which is only there on the other side" if name in sides else "which the patch does not know"
            raise ArtefactError(f"{directory} is not what the patch was made from: it holds {name}, {known}.", meant)
    found = seals(directory, sorted(there.items()), observer, f"checking {directory.name}")
    for name, seal in found.items():
        if seal != wanted[name]:
            turned = (
                " is as it should become: the patch seems to be in already" if seal == sides[name][1] else " differs"
            )
            raise ArtefactError(f"{directory} is not what the patch was made from: {name}{turned}.", meant)
