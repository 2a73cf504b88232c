"""What an erasure would do, said before anything is done: every refusal that needs no training comes here.

The one decision: planning and erasing ask the same questions by the same functions, so that a plan which passes is not refused later
for what could be known now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.assembly import (
    RUN,
    ConceptSpec,
    choose_concept,
    concept_facts,
    data_digest,
    open_checkpoint_for,
    with_codebooks,
)
from recerase.catalog import Preview, load_catalogue, preview
from recerase.earlier import gone_from
from recerase.errors import EraseError, UsageError
from recerase.growing import check_grow, offer
from recerase.preparing import prepared_for
from recerase.runtime import RunConfig
from recerase.types import SILENT, Scope

if TYPE_CHECKING:
    from recerase.erase.method import Method
    from recerase.layouts.native import Checkpoint


def check_alone(before: Checkpoint) -> None:
    """Refuse a file that holds other weights beside the model's: what is written back would bring the concept along."""
    further = before.extra.get("further", ())
    if further:
        raise EraseError(
            f"{before.path} holds {len(further)} more tensors with shapes of the model's weights ({', '.join(further[:2])}), and they "
            "may remember the concept.",
            "Save the checkpoint again without them (averages of weights, say), and erase from that.",
        )


@dataclass(frozen=True)
class Plan:
    """What `erase` would do."""

    method: Method
    settings: Mapping[str, Any]
    concept: Mapping[str, Any]
    preview: Preview
    scope: Scope
    vocabulary: Mapping[str, Any]
    """What --grow-vocabulary would offer; empty without it."""
    earlier: tuple[Mapping[str, Any], ...] = ()
    """Concepts that were erased before: name, digest, number of items."""


def plan_erase(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    *,
    method: str = "tracer",
    overrides: Sequence[str] = (),
    scope: Scope = "output",
    grow: str | None = None,
    earlier: Sequence[ConceptSpec] = (),
    run: RunConfig = RUN,
) -> Plan:
    """Check everything `erase` needs and say what it would do, without writing anything.

    Of a native checkpoint the SIDs alone are read; that of another tool, or one that is to grow, is opened whole.
    """
    from recerase.erase.methods import get_method, make_config
    from recerase.layouts.native import checkpoint_digest, is_native, load_sids
    from recerase.store import read_manifest

    eraser, preset = get_method(method)
    settings = make_config(eraser, preset, key_values(overrides))
    check_grow(eraser, grow)
    catalogue = load_catalogue(data)
    opened = None
    if is_native(Path(checkpoint)) and grow is None and run.embeddings is None:
        table, codebooks, embeddings = load_sids(checkpoint, item_ids=catalogue.items.item_ids)
        home = (Path(checkpoint), read_manifest(checkpoint)["provenance"])
    else:
        read = open_checkpoint_for(checkpoint, catalogue, run)
        check_alone(read)
        opened = with_codebooks(read, catalogue.items, SILENT, run.embeddings)
        table, codebooks, embeddings = opened.table, opened.codebooks, opened.embeddings
        home = (opened.path, opened.manifest.get("provenance", {}))
    eraser.check(table, codebooks, embeddings, settings)
    digest = (lambda: checkpoint_digest(Path(checkpoint))) if opened is None else (lambda: opened.digest)
    gone = gone_from([home], earlier, catalogue, table, embeddings)
    prepared_for(eraser, settings, digest, table, gone, data_digest(catalogue))
    chosen = choose_concept(concept, catalogue, embeddings)
    seen = preview(chosen, catalogue, table, embeddings)
    offered = None if opened is None else offer(opened, chosen.members, eraser, settings, grow, run.seed, gone)
    vocabulary = {} if offered is None else offered.facts
    told = tuple(concept.facts for concept in gone.concepts)
    return Plan(eraser, asdict(settings), concept_facts(chosen, catalogue), seen, scope, vocabulary, told)


def key_values(pairs: Sequence[str]) -> dict[str, str]:
    """`["steps=10"]` as a mapping. Raises UsageError for what is no key=value, or a key given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{pair!r} is not key=value.", "For example: --set steps=300.")
        if key.strip() in found:
            raise UsageError(f"{key.strip()} is set twice.", "Give each setting once.")
        found[key.strip()] = value.strip()
    return found
