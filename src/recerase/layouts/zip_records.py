"""Where the records of a zip lie, for files of torch.save, which stores them as they are.

The one decision: a zip that two readers could read differently is refused. Python and torch look for the directory in different
places, and torch takes a record that is called a folder for an empty one: what is audited must be what is loaded.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """Where a file in the zip lies."""

    begin: int
    end: int
    crc: int
    sums: tuple[int, ...]
    """Where its checksum is written."""


def records(data: bytes) -> dict[str, Record]:
    """Every record of a zip. Raises ValueError, or what zipfile raises, for what torch never writes."""
    found: dict[str, Record] = {}
    names: set[str] = set()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries, at = archive.infolist(), archive.start_dir
    if _directory(data) != (at, len(entries)):
        raise ValueError(
            "its zip does not end as torch ends one, so that two readers could find different records in it"
        )
    headers = sorted({entry.header_offset for entry in entries})
    following = dict(zip(headers, [*headers[1:], at], strict=True))
    for entry in entries:
        header, spelled = entry.header_offset, repr(entry.filename)[:60]
        if entry.compress_type or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise ValueError(f"its record {spelled} is compressed or encrypted")
        if entry.external_attr & 0x10 or entry.filename.endswith("/"):
            raise ValueError(f"its record {spelled} is a folder")
        if entry.filename.lower() in names:
            raise ValueError(f"it has the record {spelled} twice")
        names.add(entry.filename.lower())
        named = _number(data, header + 26, 2)
        begin = header + 30 + named + _number(data, header + 28, 2)
        end = begin + entry.file_size
        same = data[header + 30 : header + 30 + named] == data[at + 46 : at + 46 + _number(data, at + 28, 2)]
        if data[header : header + 4] != b"PK\x03\x04" or not same or end > following[header]:
            raise ValueError(f"its record {spelled} lies where another does, or beyond the end")
        sums = [at + 16]
        if entry.flag_bits & 8:  # the checksum stands behind the bytes, after a signature
            sums.append(end + 4 if data[end : end + 4] == b"PK\x07\x08" else end)
        if not entry.flag_bits & 8 or _number(data, header + 14, 4):
            sums.append(header + 14)
        if any(_number(data, place, 4) != entry.CRC for place in sums):
            raise ValueError(f"its record {spelled} has two checksums")
        found[entry.filename] = Record(begin, end, entry.CRC, tuple(sums))
        at += 46 + sum(_number(data, at + place, 2) for place in (28, 30, 32))
    return found


def _directory(data: bytes) -> tuple[int, int]:
    """Where the end of a zip says that its directory begins, and its entries; -1 for each where another reader could see another.

    Python looks for the directory right before the end, torch at the place written there; either takes the last end in a comment.
    """
    end = len(data) - 22
    begin, size, count = (_number(data, end + at, width) for at, width in ((16, 4), (12, 4), (10, 2)))
    if data[end - 20 : end - 16] == b"PK\x06\x07":
        end, place = end - 76, _number(data, end - 12, 8)
        begin, size, count = (_number(data, end + at, 8) for at in (48, 40, 32))
        if place != end or data[end : end + 4] != b"PK\x06\x06":
            return -1, -1
    whole = data[-22:-18] == b"PK\x05\x06" and data[-2:] == b"\0\0" and begin + size == end
    return (begin, count) if whole else (-1, -1)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
