"""What is at a path, for a person who was handed it: its kind, its figures, and what is wrong with it.

Problems are collected, not raised, so that one look shows all of them; only a path nobody recognises is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recerase.errors import ArtefactError, PickleError, RecEraseError, UsageError
from recerase.layouts.foreign import require_trust
from recerase.layouts.index_json import IndexFile
from recerase.layouts.naming import unwritten
from recerase.layouts.native import SIDS, Checkpoint, is_native, load_sids
from recerase.layouts.protocol import Layout
from recerase.layouts.registry import detect_layout, layouts, open_checkpoint, recognised
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
    traps: tuple[tuple[str, str], ...] = ()
    """What is known to go wrong with checkpoints like this one, each with its remedy."""
    checkpoint: str | None = None
    """The layout, when it is a checkpoint of another tool."""


def describe(
    path: Path, *, trust_pickle: bool = False, layout: str | None = None, options: Mapping[str, str] | None = None
) -> Description:
    """Recognise and describe `path`. Raises ArtefactError when it is nothing recerase reads.

    A pickle that is not trusted, and options that cannot be used, are refused and not described.
    """
    if not path.exists():
        raise ArtefactError(f"{path} does not exist.", "Check the path.")

    opened: list[Checkpoint] = []

    def checkpoint(where: Path, facts: dict[str, Any], problems: list[str]) -> None:
        found = open_checkpoint(where, trust_pickle=trust_pickle, layout=layout, options=options)
        opened.append(found)
        _checkpoint(found, facts, problems)

    kind, look = _recognise(path, checkpoint, layout, trust_pickle)
    facts: dict[str, Any] = {}
    problems: list[str] = []
    broken = _manifest(path, facts, problems, made_by_us=layout is None and not kind.endswith((_OTHERS, _TABLE)))
    try:
        look(path, facts, problems)
    except RecEraseError as error:
        if isinstance(error, UsageError) or (kind.endswith(_OTHERS) and isinstance(error, PickleError)):
            raise
        broken = True
        problems.append(error.message)
    traps = tuple(
        trap for found in opened for trap in (*detect_layout(path, found.layout).remarks(found), *unwritten(found))
    )
    name = next((found.layout for found in opened if found.layout != "native"), None)
    return Description(path, kind, facts, tuple(dict.fromkeys(problems)), broken, traps, name)


Look = Callable[[Path, dict[str, Any], list[str]], None]
_OTHERS, _TABLE = " checkpoint of another tool", " SID table of another tool"


def _recognise(path: Path, checkpoint: Look, layout: str | None, trusted: bool) -> tuple[str, Look]:
    if path.is_dir():
        if is_native(path) and layout in (None, "native"):
            return "native checkpoint", checkpoint
        if layout is not None or recognised(path):
            return _foreign(detect_layout(path, layout), checkpoint)
        if (path / SIDS).is_file():
            return "SID directory", _sids
        if (path / "items.parquet").is_file():
            return "data directory", _data
    elif recognised(path):
        return _foreign(detect_layout(path, layout), checkpoint)
    elif path.suffix == ".parquet":
        return "SID table", _file_table
    elif path.suffix == ".json":
        return ("audit report", _report) if b"recerase.audit/" in read_bytes(path) else ("SID table", _file_table)
    elif path.suffix == ".pt":
        require_trust(path, trusted)
        return "SID table", _tensor_table
    raise ArtefactError(
        f"{path} is nothing recerase reads.",
        f"It reads checkpoints ({', '.join(layout.name for layout in layouts())}), SID directories, data directories, "
        "SID tables (.json, .parquet, .pt) and audit reports (.json).",
    )


def _foreign(layout: Layout, checkpoint: Look) -> tuple[str, Look]:
    """A checkpoint of another tool, or its SID table alone."""
    if layout.table is None:
        return layout.name + _OTHERS, checkpoint
    return layout.name + _TABLE, lambda path, facts, problems: _table_layout(layout, path, facts, problems)


def _manifest(path: Path, facts: dict[str, Any], problems: list[str], made_by_us: bool) -> bool:
    """Whether the manifest cannot be read; the files are held against it as they are loaded.

    A directory without one is remarked upon here, and refused by the loader of what only recerase makes.
    """
    if not path.is_dir():
        return False
    if not (path / MANIFEST).is_file():
        if made_by_us:
            problems.append(f"It has no {MANIFEST}: nothing vouches for its files.")
        return False
    try:
        provenance = read_manifest(path)["provenance"]
        facts["made by"] = f"recerase {provenance.get('command', '?')}"
        if provenance.get("erased"):
            facts["erased"] = ", ".join(
                f"{concept['name']} ({concept['items']} items)" for concept in provenance["erased"]
            )
    except ArtefactError as error:
        problems.append(error.message)
        return True
    return False


def _checkpoint(checkpoint: Checkpoint, facts: dict[str, Any], problems: list[str]) -> None:
    if checkpoint.layout != "native":
        facts["layout"] = checkpoint.layout
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
    if checkpoint.codebooks is None and checkpoint.layout != "native":
        facts["codebooks"] = "absent: fitted to the items' words when it is audited or erased"
    elif checkpoint.codebooks is None:
        problems.append("It has no codebooks: probes in embedding space are skipped, and TRACER must fit its own.")
    elif checkpoint.codebooks.fitted:
        agreement = ", ".join(f"{share:.2f}" for share in checkpoint.codebooks.agreement)
        facts["codebooks"] = f"fitted to a table made elsewhere; agreement a level {agreement}"
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        problems.append("Some weights are not finite.")
    _table(checkpoint.table, facts, problems)
    if checkpoint.layout != "native":
        _files(checkpoint, facts)


def _files(checkpoint: Checkpoint, facts: dict[str, Any]) -> None:
    """What becomes of another tool's files when they are written back."""
    schema, extra = checkpoint.table.schema, checkpoint.extra
    facts["codes with a vocabulary row"] = [int((rows >= 0).sum()) for rows in schema.rows]
    index = extra.get("index")
    if isinstance(index, IndexFile):
        facts["SID table"] = index.path.name
    if "table" in extra:
        facts["SID table"] = extra["table"]
    if extra.get("base") is not None:
        facts["adapter over"] = str(extra["base"])
    if "prompt" in extra:
        facts["prompt"] = "".join(extra["prompt"]["text"])
    if extra.get("padded"):
        facts["rows beyond the tokenizer"] = extra["padded"]
    facts["copied"] = list(extra.get("copied", ()))
    if extra.get("left"):
        facts["left behind"] = list(extra["left"])


def _sids(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    table, codebooks, embeddings = load_sids(path)
    facts["codebooks"] = "stored" if codebooks is not None else "absent"
    facts["item embeddings"] = "absent" if embeddings is None else f"D = {embeddings.shape[1]}"
    _table(table, facts, problems)
    _quality(table, facts, problems)


def _file_table(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    from recerase.sid.table_files import read_table

    table = read_table(path)
    _table(table, facts, problems)
    _quality(table, facts, problems)


def _table_layout(layout: Layout, path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    assert layout.table is not None
    facts["layout"] = layout.name
    table, said = layout.table(path)
    _table(table, facts, problems)
    facts |= said
    _quality(table, facts, problems)


def _quality(table: SidTable, facts: dict[str, Any], problems: list[str]) -> None:
    """How good a table is before anybody trains on it; what codes mean is not asked."""
    from recerase.sid.quality import quality

    found = quality(table)
    facts["perplexity a level"] = [round(value, 1) for value in found.perplexity]
    facts["Gini a level"] = [round(value, 2) for value in found.gini]
    facts["collision rate"] = round(found.collision_after, 4)
    problems += found.warnings


def _tensor_table(path: Path, facts: dict[str, Any], problems: list[str]) -> None:
    from recerase.layouts.grid import read_tensor_table

    _table(read_tensor_table(path, trusted=True), facts, problems)


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
    if table.dropped is not None:
        facts["dropped from histories"] = int(table.dropped.sum())
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
