"""Where the tensors lie in a file of weights: safetensors, and the zip archives that torch writes.

The one decision: this only says where to look. A file that cannot be understood has no segments and is compared as bytes, and
whatever is found is proved afterwards by making the file and comparing digests, so nothing here need be believed.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recerase.patches.delta import Blob

_LONGEST_HEADER = 100_000_000
_MOST_MEMBERS = 1 << 20
_LOCAL_HEADER = 30
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Segment:
    """A range of bytes in a file."""

    name: str
    begin: int
    end: int
    unit: int = 1
    """Bytes that change together: a row of a tensor."""

    @property
    def size(self) -> int:
        return self.end - self.begin

    def until(self, size: int) -> Segment:
        """Its first `size` bytes."""
        return replace(self, end=self.begin + size)


def segments(file: Blob) -> list[Segment]:
    """The file as segments one behind another, each with a name of its own; none where its format is not known."""
    try:
        found = _zip(file) if file.read(0, min(4, file.size)) == _ZIP else _safetensors(file)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile, NotImplementedError):
        return []
    return _filled(found, file.size) if found else []


def _safetensors(file: Blob) -> list[Segment]:
    if file.size < 8:
        return []
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(file.size - 8, _LONGEST_HEADER) or file.read(8, min(1, length)) != b"{":
        return []
    found = []
    for name, entry in json.loads(file.read(8, length)).items():
        if name != "__metadata__":
            begin, end = (8 + length + int(at) for at in entry["data_offsets"])
            rows = entry["shape"][0] if len(entry["shape"]) > 1 and math.prod(entry["shape"]) else 1
            if begin < end:
                found.append(Segment(name, begin, end, (end - begin) // rows if (end - begin) % rows == 0 else 1))
    return found


def _zip(file: Blob) -> list[Segment]:
    """The members that are stored as they are; what stands before the first slash is the archive's own name."""
    found = []
    with zipfile.ZipFile(file.path) as archive:
        members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        return []
    for member in members:
        if member.compress_type == zipfile.ZIP_STORED and member.file_size:
            local = file.read(member.header_offset, _LOCAL_HEADER)
            begin = (
                member.header_offset
                + _LOCAL_HEADER
                + sum(int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
            )
            found.append(Segment(member.filename.partition("/")[2], begin, begin + member.file_size))
    return found


def _filled(found: list[Segment], size: int) -> list[Segment]:
    """Segments and what lies between them; none when they overlap, lie outside, or share a name."""
    whole: list[Segment] = []
    at = 0
    for part in sorted(found, key=lambda part: part.begin):
        if part.begin < at or part.end > size:
            return []
        if part.begin > at:
            whole.append(Segment(f"\0before {part.name}", at, part.begin))
        whole.append(part)
        at = part.end
    if at < size:
        whole.append(Segment("\0end", at, size))
    return whole if len({part.name for part in whole}) == len(whole) else []
