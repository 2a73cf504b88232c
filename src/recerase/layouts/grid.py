"""GRID (snap-research): a Lightning .ckpt of SemanticIDEncoderDecoder, and the SID table as a LongTensor [L, N] in a .pt.

The one decision: both files are one checkpoint. GRID spells histories from the .pt (map_sparse_id_to_semantic_id, pre_processing.py)
and takes the number of codes from its largest (tiger_generation_model.py: `codebooks.max() + 1`), and Lightning keeps copies of it
among the hyperparameters of model and datamodule. All are written, and the model's is held against the .pt. Without an item that
has the largest code GRID could not load the weights any more, so a method is told to leave it to one, or refuses.

The last digit of its SIDs is 0, or 1 to n for items that would share one (deduplicate_rows_in_tensor, tensor_utils.py). Beams are
scored by one softmax a level (_beam_search_one_step). NVIDIA's sid_gr takes the same .pt (sid_sequence_dataset.py); its checkpoints
(commons/checkpoint/checkpoint.py) are of a Megatron model, and refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import CheckpointError, TableError
from recerase.layouts import levels
from recerase.layouts.foreign import index_option, require_trust, says
from recerase.layouts.level_stacks import Keys, Names, Stacks
from recerase.layouts.levels import Codes
from recerase.layouts.native import Checkpoint
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.torch_zip import Contents, read_torch_zip
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import read_bytes
from recerase.types import IntArray

if TYPE_CHECKING:
    from recerase.model.recommender import Recommender

NAME = "grid"
_TABLE = "item_sid_embedding_table_encoder.weight"
_NAMES = Names(
    model="state_dict",
    moments="optimizer_states",
    encoder=("encoder.encoder.encoder.", "model.encoder."),
    decoder="decoder.decoder.",
    table=_TABLE,
    heads="decoder.decoder_mlp.",
    bos="decoder.bos_token",
)
_HYPER: Keys = ("hyper_parameters", "codebooks")
_TOKENS = 120
"""Its configs' sequence_length: codes of a history, the last ones."""


def _checkpoints(path: Path) -> list[str]:
    return levels.holding(path, "*.ckpt", _TABLE, _NAMES.bos)


def _detect(path: Path) -> str | None:
    return f"a .ckpt with {_TABLE}" if _checkpoints(path) else None


def _tables(path: Path) -> list[Path]:
    """Files of torch.save that hold one storage, of whole numbers."""
    return [
        file
        for file in sorted(path.glob("*.pt"))
        if (says(file, "LongStorage") or says(file, "IntStorage")) and _storages(file) == 1
    ]


def _storages(path: Path) -> int:
    """How many storages are in a file; 0 where it cannot be told."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum("/data/" in name for name in archive.namelist())
    except Exception:  # what a hostile file makes a parser raise has no common class, and looking never raises
        return 0


def _read_table(path: Path, trusted: bool) -> tuple[IntArray, Contents]:
    """int32 [N, L] the codes in a tensor [L, N] of whole numbers. Raises TableError when it is none."""
    require_trust(path, trusted)
    contents = read_torch_zip(read_bytes(path), str(path))
    codes = levels.whole_numbers(contents.tensors.get(()))
    if codes is None or codes.min() < 0 or codes.max() >= 1 << 22:
        raise TableError(
            f"{path} is no SID table: one tensor [levels, items] of codes from 0 up was looked for.",
            "Give the .pt that the model was trained with.",
        )
    return np.ascontiguousarray(codes.T, np.int32), contents


def read_tensor_table(path: Path, trusted: bool) -> SidTable:
    """The table in a .pt of GRID or sid_gr, as many codes a level as its largest says. Raises TableError, PickleError."""
    codes, _ = _read_table(path, trusted)
    if codes.shape[1] > 64:
        raise TableError(f"{path} has {codes.shape[1]} rows, and a SID has few codes.", "Give it as [levels, items].")
    unique = len(np.unique(codes, axis=0)) == len(codes)
    schema = SidSchema.native([int(codes.max()) + 1] * codes.shape[1], "unique" if unique else "allowed")
    return SidTable.build(np.arange(len(codes)).astype(str), codes, schema)


def _derived(checkpoint: Checkpoint) -> bool:
    """Whether the model's shapes may follow from the table's largest code.

    They cannot where the model has more codes; hyperparameters hold the number in either case, as Lightning found it when it looked.
    """
    return int(checkpoint.table.codes.max()) + 1 == checkpoint.table.schema.codes[0]


def _codes(path: Path, weights: str, beside: Path, codes: IntArray, contents: Contents, found: Stacks) -> Codes:
    if codes.shape[1] != found.levels or codes.max() >= found.size:
        raise TableError(
            f"{beside} holds {codes.shape[1]} codes up to {codes.max()} an item; the model has {found.levels} levels of "
            f"{found.size}.",
            "Give the table that the model was trained with, with --layout-set sids=FILE.",
        )
    kept = _HYPER in contents.tensors
    said = levels.whole_numbers(contents.tensors.get(_HYPER))
    if kept and (said is None or not np.array_equal(said.T, codes)):
        raise TableError(
            f"{beside} is not the table among the hyperparameters of {path / weights}.",
            "Give the table that the model was trained with, with --layout-set sids=FILE.",
        )
    hyper = ((path / weights, _HYPER),) if kept else ()
    return Codes(codes, ((beside, ()), *hyper), across=True)


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a directory with a GRID checkpoint; see `Layout.load`."""
    weights = levels.chosen(path, _checkpoints(path), request)
    beside = index_option(path, request, _tables(path), ".pt with a SID table, a tensor [levels, items]")
    codes, _ = _read_table(beside, request.trust_pickle)

    def table_of(contents: Contents, found: Stacks) -> Codes:
        return _codes(path, weights, beside, codes, contents, found)

    found = levels.load(path, request, NAME, _NAMES, weights, lambda n: max(1, _TOKENS // n), table_of, beside)
    return replace(found, extra={**found.extra, "needed": int(found.table.codes.max())}) if _derived(found) else found


def write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """See `levels.write_back`. Raises EraseError when the table's largest code would be another."""
    if _derived(source):
        levels.require_largest(source, table)
    levels.write_back(source, recommender, table, staging)


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    request = LoadRequest(options=options, trust_pickle=True)
    weights = levels.chosen(path, _checkpoints(path), request)
    return levels.digest(path, [weights], index_option(path, request, _tables(path), ".pt with a SID table"))


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    told = [*levels.user_remark(checkpoint), *levels.moment_remark(checkpoint)]
    told.append(
        (
            "The file does not say its T5 config; activation, distance and epsilon are taken as T5's (relu, 128, 1e-6), and a "
            f"history as its last {checkpoint.recommender.window} items.",
            "If the training config says otherwise, only the window can be given, with --layout-set window=N.",
        )
    )
    if _derived(checkpoint):
        told.append(
            (
                f"GRID takes its shapes from the largest code in the table, {checkpoint.table.codes.max()}; where all items with it "
                "are to be erased, one of them gets another SID with that code, or nothing is done.",
                "Use --method renormalise or npo in that case.",
            )
        )
    return tuple(told)


def _detect_sid_gr(path: Path) -> str | None:
    ranks = (path / "torch_module").is_dir() and any((path / "torch_module").glob("model.*.pth"))
    return (
        "torch_module/model.*.pth beside dynamicemb_module" if ranks and (path / "dynamicemb_module").is_dir() else None
    )


def _refuse(path: Path, *_: Any) -> Any:
    raise CheckpointError(
        f"{path} is a checkpoint of NVIDIA's sid_gr, a Megatron model in parts, which recerase does not read.",
        "Its item-to-SID mapping (.pt) can be looked at with recerase inspect.",
    )


LAYOUTS = (
    Layout(
        name=NAME,
        users="GRID: a Lightning .ckpt of its encoder and decoder, and the SID table as a tensor [levels, items] in a .pt",
        marks=(f"*.ckpt with {_TABLE}", "*.pt with the SID table"),
        detect=_detect,
        load=load,
        write_back=write_back,
        digest=digest,
        remarks=remarks,
        options={"sids": "the SID table, where the directory holds none or several", **levels.OPTIONS},
    ),
    Layout(
        name="sid-gr",
        users="NVIDIA sid_gr: its SID mapping (.pt) alone is read, by inspect; its Megatron checkpoints are refused",
        marks=("torch_module", "dynamicemb_module"),
        detect=_detect_sid_gr,
        load=_refuse,
        write_back=lambda source, *_: _refuse(source.path),
    ),
)
