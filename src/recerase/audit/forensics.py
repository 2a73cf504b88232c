"""What a checkpoint gives away to somebody who ranks all items by what he can read off it, alone or beside the one of before.

The decision that shaped this probe: each way of looking is one score an item, and its figure is how well the score ranks the concept's
items before the others: the chance that one of the first has more of it than one of the latter (AUC), .5 where it tells nothing. An
adversary may read a score from either end, so the end that tells counts, and no figure is below .5.

Beside the original: `rows`, how far the rows of an item's codes moved, in all tensors with a row a code; `logprob`, how much less
likely its SID is than it was; `table`, whether its SID changed or it is listed no more. Off the model alone: `norm`, how long
the rows of its codes are; `alone`, how unlikely its SID is. The histories are typical ones without the concept's items, the same
for every role. For a reference the same figures are what differently trained weights give away, and its `alone` is what never
having learned an item does: a clean model is not at .5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from recerase.audit.cases import Case
from recerase.audit.probes import counted, measured
from recerase.audit.readings import Arrays, _spelling
from recerase.audit.shared import shared, weights_of
from recerase.errors import DataError
from recerase.types import FloatArray, Measurement, Skipped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recerase.audit.probes import AuditModel, AuditWorld
    from recerase.audit.readings import Readings
    from recerase.sid.table import SidTable

HISTORIES = 64
"""Typical histories after which every item is scored."""
SCORES = 1 << 21
"""Scores (histories x items) at the most: large catalogues are read after fewer histories, eight at the least."""
BESIDE = tuple(f"forensics.{name}" for name in ("rows.auc", "logprob.auc", "table.auc", "moved", "identical"))
"""What the original is needed for."""


def forensics(readings: Readings) -> list[Measurement | Skipped]:
    """Each way's AUC, the share of tensors that are bit-identical, and the share of the codes' rows that moved."""
    model = readings.model
    own = typical_log_probs(readings, model.table)
    alone: Measurement | Skipped = Skipped("forensics.alone.auc", model.role, str(own))
    if not isinstance(own, str):
        alone = ranked(readings, "forensics.alone.auc", -own)
    tensors = code_tensors(model.recommender.module)
    norm = ranked(readings, "forensics.norm.auc", over_codes(model.table, lengths(tensors, tensors)))
    original = readings if model.role in ("original", "filter") else readings.beside.get("original")
    if original is None:
        why = "what a diff gives away is read beside the original: none was given"
        return [alone, norm, *(Skipped(name, model.role, why) for name in BESIDE)]
    return [alone, norm, *_beside(readings, original.model, typical_log_probs(original, original.model.table))]


def ranked(readings: Readings, metric: str, scores: FloatArray) -> Measurement | Skipped:
    """The AUC of `scores` [N] for the concept's items, a value an item: how many of the others have less. NaN: not ranked.

    Turned round where they have less than half of the others, so that it is never below .5.
    """
    world, known = readings.world, ~np.isnan(scores)
    concept, others = scores[world.members & known], np.sort(scores[world.retained & known])
    if len(concept) == 0 or len(others) == 0:
        return Skipped(metric, readings.model.role, "there are no items on both sides that could be ranked")
    below, upto = (np.searchsorted(others, concept, side) for side in ("left", "right"))
    share = (below + upto) / (2 * len(others))
    return measured(readings, metric, share if share.mean() >= 0.5 else 1.0 - share)


def typical_log_probs(readings: Readings, table: SidTable) -> FloatArray | str:
    """[N] mean log p(SID of `table` | history) over the typical histories, NaN for items without a SID; or why there is none."""
    from recerase.model.mass import concept_mass

    model, world = readings.model, readings.world

    def make() -> Arrays:
        case = typical(world)
        if len(case) == 0:
            raise DataError(
                "No test user has an item of no concept, so there is no typical history.", "Give more --data."
            )
        made = concept_mass(
            model.recommender,
            model.table,
            table.present,
            case.histories,
            output=table,
            batch=world.config.mass_batch,
            per_item=True,
            observer=readings.observer,
            task="every item",
        )
        assert made.log_probs is not None
        means = np.full(len(table), np.nan)
        means[made.items] = made.log_probs.mean(axis=0, dtype=np.float64)
        return {"means": means}

    key = ("every item", weights_of(readings), _spelling(model.table), _spelling(table))
    (found,) = shared(readings, {key: make})
    return found if isinstance(found, str) else found["means"]


def typical(world: AuditWorld) -> Case:
    """Test histories without the items of any concept, drawn with the world's seed among those that have others."""
    clean = world.histories.without(world.out)
    rows = np.flatnonzero(clean.lengths > 0)
    size = max(8, min(HISTORIES, SCORES // len(world.members)))
    chosen = np.sort(world.random("forensics").permutation(rows)[:size])
    return Case("typical histories", clean.take(chosen))


def code_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The weights with a row for each row of the vocabulary, by name: input embeddings, and the output head where it is its own."""
    rows = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return {name: w.detach() for name, w in module.named_parameters() if w.dim() == 2 and w.shape[0] == rows}


def lengths(tensors: Mapping[str, Tensor], unit: Mapping[str, Tensor]) -> FloatArray:
    """float64 [V] how long each row is over all of `tensors`, each measured by the rows of its namesake in `unit`."""
    total = sum(
        w.double().square().sum(1) / unit[name].double().square().sum(1).mean().clamp(min=1e-300)
        for name, w in tensors.items()
    )
    found: FloatArray = torch.as_tensor(total).sqrt().cpu().numpy()
    return found


def over_codes(table: SidTable, rows: FloatArray) -> FloatArray:
    """[N] the mean of `rows` [V] over the codes of each item's SID; NaN without one."""
    there = table.codes >= 0
    total = np.where(there, rows[table.rows()], 0.0).sum(axis=1)
    return np.divide(total, there.sum(axis=1), out=np.full(len(total), np.nan), where=table.present)


def identical(module: nn.Module, other: nn.Module) -> tuple[int, int]:
    """How many of a module's tensors are in the other with the same bits, and how many there are."""
    own, theirs = module.state_dict(), other.state_dict()
    same = [name in theirs and _same_bits(tensor, theirs[name]) for name, tensor in own.items()]
    return sum(same), len(same)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(first, second)


def _beside(readings: Readings, original: AuditModel, before: FloatArray | str) -> list[Measurement | Skipped]:
    """What is read off the model and the original, whose `before` is typical_log_probs."""
    model, role = readings.model, readings.model.role
    now = typical_log_probs(readings, original.table)
    if isinstance(now, str) or isinstance(before, str):
        less: Measurement | Skipped = Skipped(
            "forensics.logprob.auc", role, now if isinstance(now, str) else str(before)
        )
    else:
        less = ranked(readings, "forensics.logprob.auc", before - now)
    gone = original.table.moved(model.table) | (original.listed & ~model.listed)
    same, n = identical(model.recommender.module, original.recommender.module)
    found = [
        less,
        ranked(readings, "forensics.table.auc", np.where(original.table.present, gone, np.nan).astype(np.float64)),
        counted(readings, "forensics.identical", same / n, n, exact=True),
    ]
    own, theirs = (code_tensors(x.recommender.module) for x in (model, original))
    both = [name for name in own if name in theirs and own[name].shape == theirs[name].shape]
    if not both:
        why = "the two checkpoints have no tensor of rows of one shape in common"
        return [*found, *(Skipped(f"forensics.{name}", role, why) for name in ("rows.auc", "moved"))]
    distance = lengths({name: own[name].double() - theirs[name].double() for name in both}, theirs)
    used = np.unique(original.table.rows()[original.table.codes >= 0])
    moved = counted(readings, "forensics.moved", float((distance[used] > 0).mean()), len(used), exact=True)
    return [*found, ranked(readings, "forensics.rows.auc", over_codes(original.table, distance)), moved]
