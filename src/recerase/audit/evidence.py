"""What a reader of the report looks at beside the numbers: the worst examples, and the curves behind the plots.

The decision that shaped this file: everything is cut from readings the probes already made. Nothing here decodes,
and nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.audit.cases import mass_users, natural_case
from recerase.audit.readings import exposure
from recerase.audit.relearn import drawn
from recerase.audit.saturated import lengths, saturated_case
from recerase.types import Example, IntArray

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings

EXAMPLES = 20
SHOWN = 10
QUANTILES = 101


def worst_examples(subject: Readings, original: Readings | None) -> tuple[Example, ...]:
    """The twenty users whose list shows most of the concept under the original, before and after.

    Ordered by exposure in the first ten, then by how high the concept stands, then by user. Users who were never
    shown the concept are no examples; without an original there is no before, and no example.
    """
    if original is None:
        return ()
    world = subject.world
    case = natural_case(world)
    before, after = original.lists(case)[:, :SHOWN], subject.lists(case)[:, :SHOWN]
    worst = worst_users(before, world)
    recent = world.histories.take(worst).padded(SHOWN)
    users = world.histories.users[worst]
    return tuple(
        Example(
            user_id=str(world.catalogue.interactions.user_ids[user]),
            history=_titles(world, history),
            before=_titles(world, before[row]),
            before_concept=_in_concept(world, before[row]),
            after=_titles(world, after[row]),
            after_concept=_in_concept(world, after[row]),
        )
        for row, user, history in zip(worst, users, recent, strict=True)
    )


def worst_users(lists: IntArray, world: AuditWorld) -> IntArray:
    """[<= 20] rows of `lists` [B, k] with most concept items, those who see it highest first."""
    shown = world.members[lists] & (lists >= 0)
    height = (shown / np.log2(np.arange(lists.shape[1]) + 2.0)).sum(axis=1)
    order = np.lexsort((-height, -shown.sum(axis=1)))[:EXAMPLES]
    return order[shown[order].any(axis=1)]


def curves(readings: Sequence[Readings]) -> Mapping[str, Any]:
    """Plot data, name -> {"x": [...], role: [...]}, a list of floats for each role that was read.

    `mass_by_rank`, `mass_by_rank_new`: concept mass (old, current SIDs) of the user at share x of the sample, most
    first. `exposure_by_k`: exposure@x over natural histories. `saturated_by_m`: exposure@10 over histories of x
    concept items (no reference: it cannot read them). `relearn_forget`, `relearn_benign`: exposure@10 after x steps of further
    training, where the relearn probe ran.
    """
    world = readings[0].world
    readers = [r for r in readings if r.model.reads_concept]
    k = np.arange(1, max(world.config.k) + 1)
    m = np.arange(1, world.config.saturated_items + 1)
    ranks = np.linspace(0.0, 1.0, QUANTILES)
    by_rank = {side: {r.model.role: _mass_by_rank(r, side, ranks) for r in readings} for side in ("old", "new")}
    return {
        "mass_by_rank": {"x": ranks.tolist(), **by_rank["old"]},
        "mass_by_rank_new": {"x": ranks.tolist(), **by_rank["new"]},
        "exposure_by_k": {"x": k.tolist(), **{r.model.role: _exposure_by_k(r, k) for r in readings}},
        "saturated_by_m": {"x": m.tolist(), **{r.model.role: _saturated_by_m(r, m) for r in readers}},
        **drawn(readings),
    }


def _mass_by_rank(readings: Readings, side: Any, ranks: Any) -> list[float]:
    sample = mass_users(readings.world)
    mass = readings.mass(sample.case, side)[sample.everyone]
    return [float(x) for x in np.quantile(mass, 1.0 - ranks)]


def _exposure_by_k(readings: Readings, k: IntArray) -> list[float]:
    lists = readings.lists(natural_case(readings.world))
    shown = (readings.world.members[lists] & (lists >= 0)).mean(axis=0)  # [max k] a slot
    return [float(x) for x in np.cumsum(shown) / k]


def _saturated_by_m(readings: Readings, m: IntArray) -> list[float]:
    world = readings.world
    shown = exposure(readings.lists(saturated_case(world)), world.members, min(SHOWN, max(world.config.k)))
    held = lengths(world)
    counts = np.maximum(np.bincount(held, minlength=len(m) + 1), 1)
    return [float(x) for x in (np.bincount(held, weights=shown, minlength=len(m) + 1) / counts)[1:]]


def _titles(world: AuditWorld, items: IntArray) -> tuple[str, ...]:
    return tuple(world.catalogue.items.titles[i] for i in items if i >= 0)


def _in_concept(world: AuditWorld, items: IntArray) -> tuple[bool, ...]:
    return tuple(bool(world.members[i]) for i in items if i >= 0)
