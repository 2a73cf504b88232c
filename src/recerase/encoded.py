"""Values as bytes: what `store` writes, and what digests are of.

The one decision: equal values give equal bytes, so that a digest stands for what it was made from.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256_bytes(data: bytes) -> str:
    """The hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises ValueError on NaN or infinity, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def pretty_json(value: Any) -> bytes:
    """`value` as indented JSON with sorted keys, for files that people open."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()
