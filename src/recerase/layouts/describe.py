"""What is at a path, for a person who was handed it: its kind, its figures, and what is wrong with it.

Problems are collected, not raised, so that one look shows all of them; only a path nobody recognises is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recerase.errors import ArtefactError, RecEraseError
from recerase.layouts.native import SIDS, is_native, load_checkpoint, load_sids
from recerase.sid.table import SidTable
from recerase.store import MANIFEST, read_bytes, read_manifest


@dataclass(frozen=True)
class Description:
    """One path, described."""

    path: Path
    kind: str
    facts: Mapping[str, Any]
    """Name -> JSON value, in the order to be shown."""
    problems: tuple[str, ...] = ()
    """One sentence each; empty when nothing is wrong."""
    broken: bool = False
    """Whether some file is missing, unreadable, or not what the manifest says."""


def describe(path: Path, *, trust_pickle: bool = False) -> Description:
    """Recognise and describe `path`. Raises ArtefactError when it is nothing recerase reads."""
    if not path.exists():
        raise ArtefactError(f"{path} does not exist.", "Check the path.")
    kind, look = _recognise(path, trust_pickle)
    facts: dict[str, Any] = {}
    problems: list[str] = []
    broken = _manifest(path, facts, problems)
    try:
        look(path, facts, problems)
    except RecEraseError as error:
        broken = True
        problems.append(error.message)
    return Description(path, kind, facts, tuple(dict.fromkeys(problems)), broken)


Look = Callable[[Path, dict[str, Any], list[str]], None]


def _recognise(path: Path, trust_pickle: bool) -> tuple[str, Look]:
    def checkpoint(where: Path, facts: dict[str, Any], problems: list[str]) -> None:
        _checkpoint(where, facts, problems, trust_pickle)

    if path.is_dir():
        if is_native(path):
            return "native checkpoint", checkpoint
        if (path / SIDS).is_file():
            return "SID directory", _sids
        if (path / "items.parquet").is_file():
            return "data directory", _data
    elif path.suffix == ".json":
        return ("audit report", _report) if b"recerase.audit/" in read_bytes(path) else ("SID table", _json_table)
    raise ArtefactError(
        f"{path} is nothing recerase reads.",
        "It reads native checkpoints, SID directories, data directories, SID tables (.json) and audit reports (.json).",
    )


def _manifest(path: Path, facts: dict[str, Any], problems: list[str]) -> bool:
    """Whether the manifest cannot be read; the files are held against it as they are loaded.

    A directory without one is remarked upon here, and refused by the loader of what only recerase makes.
    """
    if not path.is_dir():
        return False
    if not (path / MANIFEST).is_file():
        problems.append(f"It has no {MANIFEST}: nothing vouches for its files.")
        return False
    try:
        facts["made by"] = f"recerase {read_manifest(path)['provenance'].get('command', '?')}"
    except ArtefactError as error:
        problems.append(error.message)
        return True
    return False


def _checkpoint(path: Path, facts: dict[str, Any], problems: list[str], trust_pickle: bool) -> None:
    checkpoint = load_checkpoint(path, trust_pickle=trust_pickle)
    module: Any = checkpoint.recommender.module
    inputs, outputs = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    facts |= {
        "digest": checkpoint.digest,
        "architecture": f"{type(module).__name__} ({checkpoint.recommender.kind})",
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "dtype": str(inputs.dtype).removeprefix("torch."),
        "window (history items)": checkpoint.recommender.window,
        "vocabulary rows": int(inputs.shape[0]),
        "embedding and head": "tied" if inputs is outputs else "untied",
        "codebooks": "stored" if checkpoint.codebooks is not None else "absent",
        "item embeddings": "absent" if checkpoint.embeddings is None else f"D = {checkpoint.embeddings.shape[1]}",
    }
    if checkpoint.codebooks is None:
        problems.append("It has no codebooks: probes in embedding space are skipped, and TRACER must fit its own.")
    elif checkpoint.codebooks.fitted:
        agreement = ", ".join(f"{share:.2f}" for share in checkpoint.codebooks.agreement)
        facts["codebooks"] = f"fitted to a table made elsewhere; agreement a level {agreement}"
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        problems.append("Some weights are not finite.")
    _table(checkpoint.table, facts, problems)


def _sids(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    table, codebooks, embeddings = load_sids(path)
    facts["codebooks"] = "stored" if codebooks is not None else "absent"
    facts["item embeddings"] = "absent" if embeddings is None else f"D = {embeddings.shape[1]}"
    _table(table, facts, problems)


def _json_table(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    from recerase.sid.table import read_json_table

    _table(read_json_table(path), facts, problems)


def _table(table: SidTable, facts: dict[str, Any], problems: list[str]) -> None:
    used = [int((table.usage(level) > 0).sum()) for level in range(table.levels)]
    without = int((~table.present).sum())
    colliding = round(table.collision_rate * int(table.present.sum()))
    facts |= {
        "items": len(table.item_ids),
        "listed": int(np.asarray(table.listed).sum()),
        "levels": table.levels,
        "codes a level": list(table.schema.codes),
        "codes in use": used,
        "items sharing their SID": colliding,
    }
    if table.ragged:
        facts["codes an item"] = f"{table.lengths[table.present].min()} to {table.lengths.max()}"
    if without:
        problems.append(f"{without} items have no SID.")
    if colliding and table.schema.collisions == "unique":
        problems.append(f"{colliding} items share their SID, though the schema says SIDs are unique.")


def _data(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    from recerase.catalog import load_catalogue

    catalogue = load_catalogue(path)
    lengths = catalogue.interactions.lengths
    facts |= {
        "items": len(catalogue.items),
        "interactions": len(catalogue.interactions),
        "users": catalogue.interactions.n_users,
        "history length (median)": float(np.median(lengths)),
        "brands": len({brand for brand in catalogue.items.brands if brand}),
        "categories": len({category for row in catalogue.items.categories for category in row}),
    }
    short = int((lengths < 3).sum())
    if short:
        problems.append(f"{short} users have fewer than three interactions and are only trained on.")


def _report(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    from recerase.report.schema import read_report

    report = read_report(path)
    facts |= {
        "verdict": report.decision.verdict.value,
        "reason": report.decision.reason,
        "concept": report.concept.get("name"),
        "measurements": len(report.measurements),
        "skipped": len(report.skipped),
    }
