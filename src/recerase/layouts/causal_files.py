"""Which files make up a causal checkpoint, wherever they lie, what its digest is made of, and how all are written into one directory.

The one decision: where a file lies does not matter, its name does. SID table and the files that carry SIDs may lie in a directory
of their own; they keep their names, sub-folders included, and are written beside the weights, so that what is published is whole
and has the digest that the two directories had together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.errors import CheckpointError
from recerase.layouts.adapters import base_of, described_in, is_adapter
from recerase.layouts.foreign import copied_files, digest_over, own_codebooks, write_copies, write_weights
from recerase.layouts.grown_files import prove_tokens, regrown, token_growth
from recerase.layouts.naming import TOKENIZER
from recerase.layouts.native import Checkpoint
from recerase.layouts.patching import reread
from recerase.layouts.prompts import Template, template_of
from recerase.layouts.protocol import LoadRequest
from recerase.layouts.token_files import weight_files
from recerase.sid.table import SidTable
from recerase.store import canonical_json, read_bytes, sha256_bytes, sha256_file, write_bytes

DATA = {
    "data": "the directory of the files that carry SIDs (index/, info/, train/ and so on, or prompts), where it is another"
}
"""The option of layouts that read such files."""

if TYPE_CHECKING:
    from recerase.model.recommender import Recommender


@dataclass(frozen=True)
class Side:
    """The files that carry SIDs beside weights and SID table."""

    home: Path
    """The directory by which names are given to what is not in the checkpoint's own."""
    places: Mapping[str, Path] = field(default_factory=dict)
    """Name, there and where it is going to be written -> where it lies."""

    def read(self) -> dict[str, bytes]:
        """The content of every file. Raises ArtefactError."""
        return {name: read_bytes(place) for name, place in self.places.items()}


def data_directory(path: Path, options: Mapping[str, str]) -> Path:
    """Where files that carry SIDs lie beside those of the checkpoint's directory. Raises CheckpointError when there is none."""
    home = Path(options["data"]) if "data" in options else path
    if not home.is_dir():
        raise CheckpointError(f"There is no directory {home!s:.200}.", "Check --layout-set data=DIR.")
    return home


def nearest(path: Path, home: Path, names: Iterable[str]) -> dict[str, Path]:
    """Name -> file in the checkpoint's directory, else in `home`: what was published with its files is read with them."""
    return {name: path / name if (path / name).is_file() else home / name for name in sorted(set(names))}


@dataclass(frozen=True)
class CausalFiles:
    """What makes up a causal checkpoint."""

    names: list[str]
    """All files of its directory that are read."""
    weights: list[str]
    table: str
    """The SID table's name, there or where it is going to be."""
    carrying: Mapping[str, Path]
    """Name of each file that carries SIDs -> where it lies now."""


def files_of(path: Path, table: Path, side: Side, trust_pickle: bool) -> CausalFiles:
    """Raises CheckpointError when a file from elsewhere would take the name of one that is there."""
    weights = weight_files(path, trust_pickle)
    tokens = [file for file in TOKENIZER if (path / file).is_file()]
    here, home, there = path.resolve(), side.home.resolve(), _at(table)
    nested = sorted((here, home), key=lambda folder: -len(folder.parts))
    folder = next((folder for folder in nested if there.is_relative_to(folder)), there.parent)
    name = there.relative_to(folder).as_posix()
    carrying = {**side.places, name: table}
    inside = [file for file, place in carrying.items() if _at(path / file) == _at(place)]
    if taken := [file for file in carrying if file not in inside and (path / file).exists()]:
        raise CheckpointError(
            f"{carrying[taken[0]]} would be written over {path / taken[0]}.", "Give one of them another name."
        )
    return CausalFiles([described_in(path), *weights, *tokens, *own_codebooks(path), *inside], weights, name, carrying)


def _at(file: Path) -> Path:
    """Where a file lies, whatever it is a link to."""
    return file.parent.resolve() / file.name


def elsewhere(
    held: CausalFiles, said: Mapping[str, str], template: Template, options: Mapping[str, str]
) -> dict[str, str]:
    """What belongs to a checkpoint's digest beside the files of its directory: those from elsewhere, and how it is asked."""
    asked = {"prompt": template.to_json()} | {key: options[key] for key in ("window",) if key in options}
    return {
        **{file: said[file] for file in held.carrying if file not in held.names},
        **{key: sha256_bytes(canonical_json(value)) for key, value in asked.items()},
    }


def digest_of_causal(path: Path, options: Mapping[str, str], shipped: Template, table: Path, side: Side) -> str:
    """What the digest of a causal checkpoint is, from the files alone: see `Layout.digest`."""
    held = files_of(path, table, side, trust_pickle=True)
    manifest = {"files": {name: {"sha256": sha256_file(path / name)} for name in held.names}}
    said = {name: sha256_file(place) for name, place in held.carrying.items()}
    request = LoadRequest(options=options, trust_pickle=True)
    base = base_of(path, request, weight_files).digests if is_adapter(path) else {}
    return digest_over(manifest, held.names, {**elsewhere(held, said, template_of(options, shipped), options), **base})


def copied_of(path: Path, rewritten: set[str]) -> tuple[list[str], list[str]]:
    """Names of the files that are copied, those beside a rewritten one in its folder too, and of all that is left behind."""
    copied, left = copied_files(path, rewritten)
    folders = sorted({Path(name).parent.as_posix() for name in rewritten} - {"."})
    for folder in folders:
        inner = {Path(name).name for name in rewritten if Path(name).parent.as_posix() == folder}
        kept, lost = copied_files(path / folder, inner)
        copied += [f"{folder}/{name}" for name in kept]
        left += [f"{folder}/{name}" for name in lost]
    return copied, [name for name in left if name not in folders]


def write_causal(
    source: Checkpoint,
    recommender: Recommender,
    table: SidTable,
    staging: Path,
    carried: Callable[[Checkpoint, SidTable], Mapping[str, bytes]],
) -> None:
    """Fill `staging`; see `Layout.write_back`. `carried` makes the new content of every file that carries SIDs.

    Raises ArtefactError when a file of the source has changed since it was read, and what `carried` raises.
    """
    growth = token_growth(source, table)
    write_weights(source, recommender, staging, growth)
    items = source.extra["index"].items
    write_copies(source, staging, items, lambda name, data: regrown(name, data, growth, source, recommender))
    prove_tokens(source.path, staging, growth)
    for name, data in carried(source, table).items():
        place = staging / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, data)


def held_content(source: Checkpoint, name: str) -> bytes:
    """A file that carries SIDs as it was read, wherever it lies. Raises ArtefactError when it has changed."""
    return reread(source.extra["places"][name], source.extra["files"][name])


def spelled_sids(table: SidTable, spell: Callable[[Sequence[int]], str]) -> dict[str, str]:
    """Item id -> its SID as text; items without one are left out."""
    there = table.present
    return {
        str(item): spell(codes) for item, codes in zip(table.item_ids[there], table.codes[there].tolist(), strict=True)
    }
