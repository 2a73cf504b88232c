"""The patch file: one safetensors file, a document in its metadata, and steps and new bytes of every changed file as tensors.

    metadata "recerase"         the document, in JSON: schema, tool, kind, note, files, moves, listing, provenance, digests
    forward.steps/NAME          int64 [n, 2] how NAME is made from what it was (`delta.Delta`)
    forward.new/NAME            uint8 the bytes that are new in it, compressed with zlib where the document says so
    backward.steps/, .new/      the same, the other way round; a one-way patch has none

The one decision: nothing in it is believed. It is compared with its own digest, every step with the sizes it speaks of, every name
with what a name may be, and the files it makes with the digests it promises; nothing it claims is made room for before it is checked.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from recerase.catalog.files import Verified
from recerase.disk import plain_name
from recerase.errors import ArtefactError
from recerase.layouts.tensors import numpy_memory, read_safetensors
from recerase.patches.delta import MOST_COPIED, Delta
from recerase.store import MANIFEST, canonical_json, sha256_bytes, write_bytes

SCHEMA = "recerase.patch/1"
NOTES = {
    "reversible": "This patch holds the old bytes too, so that it can be reverted: it carries what was erased, and must be kept and "
    "deleted like the original checkpoint.",
    "one-way": "This patch holds nothing of what was there before but sizes, digests and what the new files themselves say of it, and "
    "cannot be reverted.",
}
_FREE, _A_BYTE = 64 << 20, 64
"""Bytes that all compressed bytes of a patch may unfold to whatever their number, and further ones each."""
_LARGEST = 1 << 50
_SAMPLE = 1 << 20
_SHOWN = 8
"""Tensors that people are shown by name."""
_AGAIN = "Get the patch again, or make it again with `recerase patch make`."

Way = Literal["forward", "backward"]
_WAYS: tuple[Way, ...] = ("forward", "backward")


@dataclass(frozen=True)
class Seal:
    """Size and sha256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Change:
    """One file on both sides; None where it is not there."""

    before: Seal | None
    after: Seal | None
    forward: Delta | None = None
    """How it is made from what it was; None where it stays, or goes."""
    backward: Delta | None = None

    def sides(self, way: Way) -> tuple[Seal | None, Seal | None, Delta | None]:
        """What is there, what is to be made of it, and how."""
        if way == "forward":
            return self.before, self.after, self.forward
        return self.after, self.before, self.backward


@dataclass(frozen=True)
class Patch:
    """A patch as it is used."""

    files: Mapping[str, Change]
    document: Mapping[str, Any]
    """What the file says about itself; see `write_patch`."""

    @property
    def one_way(self) -> bool:
        return bool(self.document["kind"] == "one-way")

    @property
    def digest(self) -> str:
        """What the patch is called: over everything in it."""
        return str(self.document["digest"])

    @property
    def left(self) -> tuple[str, ...]:
        """Files that have no part in it, on either side."""
        return tuple(self.document["left"])

    def facts(self) -> dict[str, Any]:
        """What is in it, for people: name -> value, in the order to be shown."""
        changes = self.files.values()
        changed = [change for change in changes if change.before and change.after and change.before != change.after]
        added, gone = (sum(getattr(change, side) is None for change in changes) for side in ("before", "after"))
        same = len(self.files) - len(changed) - added - gone
        rows = [
            f"{_shown(tensor)}: {count} of {whole}"
            for change in changes
            if change.forward is not None
            for tensor, (count, whole) in change.forward.rows.items()
        ]
        return {
            "kind": self.document["kind"],
            "made by": _shown(self.document["tool"]),
            "digest": self.digest,
            "files": f"{len(changed)} files changed, {added} added, {gone} removed, {same} unchanged",
            "changed bytes": sum(change.after.bytes for change in changed if change.after),
            "changed rows": rows[:_SHOWN]
            + ([f"and in {len(rows) - _SHOWN} more tensors"] if len(rows) > _SHOWN else []),
            "moves": "not told" if self.document.get("unread") else len(self.document["moves"]),
            "unlisted": "not told" if self.document.get("unread") else len(self.document["listing"]["unlisted"]),
            "left out": list(self.left),
            "old SIDs named in": [_shown(name) for name in self.document.get("telling", ())],
            "note": NOTES[self.document["kind"]],
        }

    def provenance(self, way: Way) -> Mapping[str, Any] | None:
        """What recerase.json says of the directory that is made; None where there was none."""
        found: Mapping[str, Any] | None = self.document["provenance"]["after" if way == "forward" else "before"]
        return found

    def run(self, way: Way) -> Mapping[str, Any]:
        """What recerase.json says of the run that made that directory; {} where it says nothing."""
        found: Mapping[str, Any] = self.document.get("runs", {}).get("after" if way == "forward" else "before", {})
        return found


def write_patch(path: Path, files: Mapping[str, Change], facts: Mapping[str, Any]) -> Patch:
    """Write the patch; `facts` are its kind, tool, left, telling, provenance, moves and listing. Equal patches are equal bytes."""
    from safetensors.numpy import save

    free = _FREE
    tensors: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for name, change in files.items():
        told[name] = {
            side: vars(seal) if seal else None
            for side, seal in zip(("before", "after"), change.sides("forward"), strict=False)
        }
        for way, delta in (("forward", change.forward), ("backward", change.backward)):
            if delta is not None:
                packed = _folded(delta.new, free)
                small = packed is not None
                free -= _unpaid(len(delta.new), len(packed)) if packed is not None else 0
                tensors[f"{way}.steps/{name}"] = delta.steps
                tensors[f"{way}.new/{name}"] = np.frombuffer(delta.new if packed is None else packed, np.uint8)
                told[name][way] = {"bytes": len(delta.new), "zlib": small}
        if change.forward is not None and change.forward.rows:
            told[name]["rows"] = {tensor: list(rows) for tensor, rows in change.forward.rows.items()}
    document = {"schema": SCHEMA, "note": NOTES[facts["kind"]], **facts, "files": told, "data": _data_digest(tensors)}
    document["digest"] = _document_digest(document)
    write_bytes(path, save(tensors, metadata={"recerase": canonical_json(document).decode()}))
    return Patch(files, document)


def read_patch(path: str | Path) -> Patch:
    """Read a patch. Raises ArtefactError, in one sentence, for anything but a whole and unchanged one."""
    path = Path(path)
    try:
        with open(path, "rb", buffering=0) as file:
            tensors, metadata = read_safetensors(Verified(path, file), numpy_memory)
        if "recerase" not in metadata:
            raise ValueError("its metadata does not say so")
        document = json.loads(metadata["recerase"])
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']!r:.40}, not {SCHEMA!r}")
        if document["digest"] != _document_digest(document) or document["data"] != _data_digest(tensors):
            raise ValueError("its digest differs from its content: it was changed after it was written")
        return Patch(_changes(document, tensors), _whole(document))
    except OSError as error:
        raise ArtefactError(
            f"Cannot read {path}: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
        MemoryError,
        zlib.error,
    ) as error:
        reason = (
            " ".join(str(error).split())[:200]
            if isinstance(error, ValueError)
            else "it does not say all that a patch must say"
        )
        raise ArtefactError(f"{path} is not a patch that can be used: {reason}.", _AGAIN) from error


def usable_name(name: str) -> bool:
    """Whether a patch may speak of a file of that name."""
    return plain_name(name) and name != MANIFEST and ".recerase-" not in name and name.isprintable()


def _shown(text: str) -> str:
    """A text of a patch that may be printed: whoever made it might speak to the terminal."""
    return text if text.isprintable() else ascii(text)


def _whole(document: Any) -> Mapping[str, Any]:
    """The document, if the parts that are used later are of their kinds."""
    sides, runs = document["provenance"], document.get("runs", {"before": {}, "after": {}})
    kinds = (
        (document["kind"], str), (document["tool"], str), (document["left"], list), (document["moves"], list),
        (sides["before"] or {}, dict), (sides["after"] or {}, dict), (document["listing"]["unlisted"], list),
        (runs["before"], dict), (runs["after"], dict),
    )  # fmt: skip
    if not all(isinstance(value, kind) for value, kind in kinds) or document["kind"] not in NOTES:
        raise ValueError("a part of it is of another kind")
    named = [*document["left"], *document.get("telling", ())]
    if not all(isinstance(name, str) and usable_name(name) for name in named):
        raise ValueError("a file that it speaks of has no name")
    return dict(document)


def _changes(document: Any, tensors: dict[str, Any]) -> dict[str, Change]:
    files = document["files"]
    if not isinstance(files, dict) or not files:
        raise ValueError("it names no files")
    folders = {side: _folders(name for name, said in files.items() if said[side]) for side in ("before", "after")}
    changes: dict[str, Change] = {}
    free = _FREE
    for name, said in files.items():
        if not usable_name(name) or any(said[side] and name in folders[side] for side in folders):
            raise ValueError(f"it names {name!r:.80}, which is no file of a checkpoint")
        before, after = (None if said[side] is None else _seal(said[side]) for side in ("before", "after"))
        for way in _WAYS:
            if way in said and (packed := tensors.get(f"{way}.new/{name}")) is not None:
                free -= _claimed(said[way], packed.nbytes)
                if free < 0:
                    raise ValueError(
                        f"{name!r:.80} claims {said[way]['bytes']:,} bytes in {packed.nbytes:,}, far too many with the others"
                    )
        forward = _delta(name, "forward", said, tensors, before, after)
        backward = None if document["kind"] == "one-way" else _delta(name, "backward", said, tensors, after, before)
        changes[name] = Change(before, after, forward, backward)
    if tensors:
        raise ValueError(f"it holds {next(iter(tensors))!r:.80}, which belongs to no file")
    return changes


def _folders(names: Iterable[str]) -> set[str]:
    """The folders that files of these names lie in."""
    return {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}


def _claimed(said: Any, packed: int) -> int:
    """Bytes that `packed` bytes claim to hold beyond what their number allows."""
    if type(said["bytes"]) is not int:
        raise ValueError("what it holds has no size")
    return 0 if said["zlib"] is False else _unpaid(said["bytes"], packed)


def _unpaid(whole: int, packed: int) -> int:
    """Bytes beyond those that `packed` compressed ones may unfold to anyway."""
    return max(0, whole - _A_BYTE * packed)


def _seal(said: Any) -> Seal:
    size, digest = said["bytes"], said["sha256"]
    if type(size) is not int or not 0 <= size <= _LARGEST or not isinstance(digest, str) or len(digest) != 64:
        raise ValueError("a file of it has no size and digest")
    return Seal(size, digest)


def _delta(
    name: str, way: Way, said: Any, tensors: dict[str, Any], source: Seal | None, target: Seal | None
) -> Delta | None:
    """How a side of a file is made from the other, every step inside what it is taken from."""
    if target is None or source == target:
        return None
    steps, packed = tensors.pop(f"{way}.steps/{name}"), tensors.pop(f"{way}.new/{name}")
    held = source.bytes if source else 0
    wrong = f"the steps to {name!r:.80} do not lie in the file they are taken from"
    if steps.dtype != np.int64 or steps.ndim != 2 or steps.shape[1] != 2 or packed.dtype != np.uint8:
        raise ValueError(f"what makes {name!r:.80} is of another shape")
    begins, counts = steps[:, 0], steps[:, 1]
    if len(steps) and (counts.min() < 1 or counts.max() > target.bytes or begins.min() < -1 or begins.max() > held):
        raise ValueError(wrong)
    copies = begins >= 0
    if (begins[copies] + counts[copies] > held).any() or counts.sum(dtype=np.float64) > _LARGEST:
        raise ValueError(wrong)
    fresh, copied = int(counts[~copies].sum()), int(counts[copies].sum())
    if fresh + copied != target.bytes or fresh != said[way]["bytes"] or copied > MOST_COPIED * held:
        raise ValueError(f"the steps to {name!r:.80} do not make a file of {target.bytes:,} bytes")
    rows = {str(tensor): (int(count), int(of)) for tensor, (count, of) in said.get("rows", {}).items()}
    return Delta(steps, _unfolded(name, packed.tobytes(), said[way]["zlib"], fresh), rows)


def _folded(data: bytes, free: int) -> bytes | None:
    """Compressed bytes, where that pays (texts, and not weights) and they are not so few that they would be refused."""
    sample = data[:_SAMPLE]
    if len(zlib.compress(sample)) > 0.7 * len(sample):
        return None
    packed = zlib.compress(data, 9)
    return packed if _unpaid(len(data), len(packed)) <= free else None


def _unfolded(name: str, data: bytes, packed: Any, size: int) -> bytes:
    if packed is not False:
        data = zlib.decompressobj().decompress(data, size + 1)
    if len(data) != size:
        raise ValueError(f"the new bytes of {name!r:.80} are not {size:,}")
    return data


def _data_digest(tensors: Mapping[str, Any]) -> str:
    """sha256 over every tensor with its name and shape."""
    told = {
        name: [list(a.shape), str(a.dtype), sha256_bytes(np.ascontiguousarray(a).tobytes())]
        for name, a in tensors.items()
    }
    return sha256_bytes(canonical_json(told))


def _document_digest(document: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json({key: value for key, value in document.items() if key != "digest"}))
