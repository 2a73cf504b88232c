"""Which tool made this directory: every layout is asked, by content; none and two are both refused, saying what was looked for.

A layout is a module with `LAYOUTS`, a tuple of `protocol.Layout`. Modules are named here and imported when somebody asks; a new
layout is a new file and a name in `_MODULES`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.errors import CheckpointError, UsageError
from recerase.layouts.protocol import Layout, LoadRequest

if TYPE_CHECKING:
    import torch

    from recerase.layouts.native import Checkpoint, ItemIds

_MODULES = (
    "native",
    "letter",
    "tiger_cf",
    "minionerec",
    "lc_rec",
    "openonerec",
    "onerec_think",
    "genrec",
    "grid",
    "rqvae_recommender",
    "rpg",
    "torcheasyrec",
)
_SHOWN = 8
"""Names of files that an error lists of what it found."""


@functools.cache
def layouts() -> tuple[Layout, ...]:
    """All known layouts, in the order in which they are told."""
    return tuple(layout for name in _MODULES for layout in import_module(f"recerase.layouts.{name}").LAYOUTS)


def named_layout(name: str) -> Layout:
    """The layout of that name. Raises UsageError, offering the nearest, when there is none."""
    known = {layout.name: layout for layout in layouts()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"There is no layout {name!r:.40}.", f"{hint}There are: {', '.join(known)}.")
    return known[name]


def recognised(path: Path) -> tuple[tuple[Layout, str], ...]:
    """Every layout that a directory could be of, or a file that is a SID table, each with the reason."""
    if not path.exists():
        return ()
    asked = [layout for layout in layouts() if layout.table is not None or path.is_dir()]
    reasons = ((layout, layout.detect(path)) for layout in asked)
    return tuple((layout, reason) for layout, reason in reasons if reason is not None)


def detect_layout(path: str | Path, name: str | None = None) -> Layout:
    """The layout of a directory; `name` decides where content does not.

    A name is given once for all checkpoints of a command, so one that only another layout recognises is of that one.
    Raises CheckpointError, saying what was looked for and found, when no layout recognises it or several do.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", "Check the path.")
    found = recognised(path)
    wanted_layout = named_layout(name) if name is not None else None
    if wanted_layout is not None and (not found or wanted_layout in [layout for layout, _ in found]):
        return wanted_layout
    if len(found) == 1:
        return found[0][0]
    if found:
        both = " and ".join(f"{layout.name} ({reason})" for layout, reason in found)
        raise CheckpointError(
            f"{path} could be {both}.", f"Say which with --layout {' or --layout '.join(x.name for x, _ in found)}."
        )
    raise CheckpointError(
        f"{path} is no checkpoint recerase knows: it holds {_content(path)}, and what was looked for is "
        f"{', '.join(layout.name for layout in layouts())}.",
        "Give the directory that holds its files, or name its layout with --layout; `recerase list layouts` says what files each has.",
    )


def _content(path: Path) -> str:
    """What a path holds, in a few words."""
    if not path.is_dir():
        return "one file" if path.is_file() else "no files"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(f"{name:.60}" for name in names[:_SHOWN]) + more) or "nothing"


def open_checkpoint(
    path: str | Path,
    *,
    item_ids: ItemIds | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_pickle: bool = False,
    layout: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Detect the layout (or take the one named) and load the checkpoint with it; see `LoadRequest`."""
    known = detect_layout(path, layout)
    check_options(options or {})
    return known.load(Path(path), LoadRequest(item_ids, device, dtype, trust_pickle, known.mine(options or {})))


def check_options(options: Mapping[str, str]) -> None:
    """Raises UsageError for an option that no layout has."""
    offered = {key: (layout.name, what) for layout in layouts() for key, what in layout.options.items()}
    for key in options:
        if key not in offered:
            listed = "; ".join(f"{key} ({what})" for key, (_, what) in offered.items())
            raise UsageError(f"No layout has an option {key!r:.40}.", f"Options are: {listed}.")
