"""Which tool made this directory: one row a layout, asked in order, by content and not by file name.

A layout is a module with `detect(path) -> bool` and `load(path, ...) -> Checkpoint`. Modules are named, not imported,
so that asking costs nothing; a new layout is a new file and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import CheckpointError

if TYPE_CHECKING:
    from recerase.layouts.native import Checkpoint, ItemIds


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint directory."""

    name: str
    summary: str
    module: str
    detect: str
    """Function of the module: path -> bool."""
    load: str
    """Function of the module: path, item_ids, device, dtype, trust_pickle -> Checkpoint."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="native",
        summary="transformers directory with sids.parquet, sid_schema.json and recerase.json",
        module="recerase.layouts.native",
        detect="is_native",
        load="load_checkpoint",
    ),
)


def detect_layout(path: str | Path) -> Layout:
    """The layout of a directory. Raises CheckpointError, naming what is supported, when none recognises it."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", "Check the path.")
    for layout in LAYOUTS:
        if path.is_dir() and getattr(import_module(layout.module), layout.detect)(path):
            return layout
    known = "; ".join(f"{layout.name} ({layout.summary})" for layout in LAYOUTS)
    raise CheckpointError(f"{path} is no checkpoint recerase knows.", f"Known layouts: {known}.")


def open_checkpoint(path: str | Path, *, item_ids: ItemIds | None = None, **options: Any) -> Checkpoint:
    """Detect the layout and load the checkpoint with it; options as in `layouts.native.load_checkpoint`."""
    layout = detect_layout(path)
    checkpoint: Checkpoint = getattr(import_module(layout.module), layout.load)(
        Path(path), item_ids=item_ids, **options
    )
    return checkpoint
