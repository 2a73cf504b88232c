"""What a layout is: one tool's way of keeping a recommender in files, and four things we can do with it.

The one decision: detection answers with the reason it found, by content, and never loads a model; what cannot be told apart is
refused by the registry, not guessed. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from recerase.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from recerase.layouts.growth import Room
    from recerase.layouts.native import Checkpoint, ItemIds
    from recerase.model.recommender import Recommender
    from recerase.sid.table import SidTable


@dataclass(frozen=True)
class LoadRequest:
    """How a checkpoint is to be read."""

    item_ids: ItemIds | None = None
    """The order in which table and embeddings are wanted; None: as the files have it."""
    device: str = "cpu"
    dtype: torch.dtype | None = None
    """None keeps the stored one."""
    trust_pickle: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    """What the files do not say, from --layout-set KEY=VALUE (say, where the SID table is)."""


NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class Digest(Protocol):
    """How a layout tells a checkpoint's digest from its files."""

    def __call__(self, path: Path, options: Mapping[str, str] = ..., /) -> str: ...


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint directory."""

    name: str
    users: str
    """Whose files these are, in one line."""
    marks: tuple[str, ...]
    """What is looked for."""
    detect: Callable[[Path], str | None]
    """By content: why a path is of this layout, or None. Never raises on a broken directory."""
    load: Callable[[Path, LoadRequest], Checkpoint]
    write_back: Callable[[Checkpoint, Recommender, SidTable, Path], None]
    """The source, the new model and table (items in the source's order), and the staging directory to be filled."""
    remarks: Callable[[Checkpoint], tuple[tuple[str, str], ...]] = lambda checkpoint: ()
    """For inspect: the traps that apply to a loaded checkpoint, each with its remedy."""
    digest: Digest | None = None
    """What `Checkpoint.digest` will be, from the files alone, read as `LoadRequest.options` say; None: it cannot be told."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What --layout-set may say: name -> what it is."""
    room: Callable[[Checkpoint], Room] | None = None
    """Where new vocabulary rows would go; raises EraseError where they cannot. None: this layout's vocabulary cannot grow."""
    table: Callable[[Path], tuple[SidTable, Mapping[str, Any]]] | None = None
    """Of files without a model: reads the SID table, and for inspect what else they say. See `table_layout`."""

    def mine(self, options: Mapping[str, str]) -> dict[str, str]:
        """Those of the options, given for all checkpoints of a command, that are this layout's."""
        return {key: value for key, value in options.items() if key in self.options}

    @property
    def summary(self) -> str:
        """One line for a list of layouts: whose files, and by which they are told."""
        return f"{self.users} (told by {'; '.join(self.marks)})"


def table_layout(
    name: str,
    users: str,
    marks: tuple[str, ...],
    detect: Callable[[Path], str | None],
    table: Callable[[Path], tuple[SidTable, Mapping[str, Any]]],
) -> Layout:
    """A layout of SID tables alone, each a file or a directory: it is inspected, trained on and exported, never loaded."""

    def refuse(path: Path) -> NoReturn:
        raise CheckpointError(
            f"{path} is a SID table ({name}), and there is no model in it to audit or to erase from.",
            f"Train one on it with `recerase train DATA --sids {path}`, or give the directory of a checkpoint.",
        )

    return Layout(
        name=name,
        users=users,
        marks=marks,
        detect=detect,
        load=lambda path, request: refuse(path),
        write_back=lambda source, recommender, new, staging: refuse(source.path),
        table=table,
    )
