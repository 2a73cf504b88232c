"""Shown nothing but the concept: does the model still know which of its items goes with whom, and which are the popular ones?

The decision that shaped this probe: how likely the concept is plays no part in it. An erasure makes all concept items unlikely, but
whoever holds the checkpoint can put nothing but concept items in the trie, or add a constant to their scores, and then their order
alone counts. So the concept's items are ranked among themselves by their exact log-probability, after histories without any concept
item, the same for every role, a reference too. A model that never saw them has an order as well, by what their SIDs share with
those of others: of fifteen references of five concepts four had an `advantage` above .2. Read it beside a reference's.

A pair's figure is the share of the concept items its user never took that are ranked below the one he took: .5 tells nothing.
`trained` asks about interactions that the original was trained on, `heldout` about those after them; `top` is the share of trained
pairs whose item is in the first tenth (.1 tells nothing). `popular` asks of two concept items whether the one with more training
interactions is the likelier, in the mean over all these histories. Popularity is a part of the other figures too: what is known
beyond it, membership asks. An erasure that pushes down most what was known best turns the order round, and that tells as much:
`advantage` is |2 x - 1| of `trained` under the table where it is larger, about 0 for a model that knows nothing. Its items are in
some order all the same, and where a few of them take most of the pairs, chance alone puts these high or low, for every user at once:
intervals hold that over users and that over the items taken (`over_items`); that of `popular` is over items.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from recerase.audit.cases import held_out
from recerase.audit.equivalence import _t
from recerase.audit.membership import _advantage, _one_a_user_first, taken
from recerase.audit.policy import ITEMS
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, Arrays, Side, _spelling
from recerase.audit.roc import mean_by_user
from recerase.audit.shared import Key, shared, weights_of
from recerase.errors import CheckpointError, DataError
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings
    from recerase.catalog.interactions import Histories
    from recerase.sid.table import SidTable

Kind = Literal["trained", "heldout"]
KINDS: tuple[Kind, ...] = ("trained", "heldout")
PAIRS = 1000
"""Pairs at most of each kind."""
SCORES = 1 << 22
"""Scores (pairs x concept items) of each kind at the most: of a large concept fewer pairs are read, LEAST of them at the least."""
LEAST = 10
"""Pairs, or concept items, without which nothing is measured."""
MOST = 1000
"""Concept items at most whose popularity is compared, drawn."""
TOP = 0.1
"""Which share of a list is its top."""
TIE = 1e-4
"""Nats within which two items are equally likely: more than batches of another size change."""


def within(readings: Readings) -> list[Measurement | Skipped]:
    """Order among the concept's items under both tables: of pairs trained on and held out, and by popularity."""
    found: list[Measurement | Skipped] = []
    trained: list[Measurement | Skipped] = []
    for side in SIDES:
        made = shared(readings, {_key(readings, kind, side): partial(_read, readings, kind, side) for kind in KINDS})
        told = dict(zip(KINDS, made, strict=True))
        trained.append(_mean(readings, f"within.trained.{side}", told["trained"], "share"))
        found.append(trained[-1])
        found.append(_mean(readings, f"within.heldout.{side}", told["heldout"], "share"))
        found.append(_mean(readings, f"within.top.{side}", told["trained"], "top"))
        found.append(_popular(readings, f"within.popular.{side}", made, side))
    return [*found, _furthest(readings, trained)]


def asked(world: AuditWorld, kind: Kind, window: int) -> Histories:
    """At most PAIRS histories without items of any concept, whose target is a concept item; every user once before anybody twice.

    Drawn with the world's seed, whatever the order of its users.
    """
    from recerase.model.batches import pairs

    if kind == "trained":
        found = pairs(world.catalogue.interactions.split().train, 2 * window)
    else:
        found = held_out(world)
    clean = found.take(np.flatnonzero(world.members[found.targets])).without(world.out)
    clean = clean.take(np.flatnonzero(clean.lengths > 0))
    drawn = world.random(f"within {kind}").permutation(len(clean))
    most = max(LEAST, min(PAIRS, SCORES // max(1, int(world.members.sum()))))
    return clean.take(np.sort(_one_a_user_first(drawn, clean.users)[:most]))


def places(log_probs: FloatArray, own: IntArray, free: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Where each row's own item stands among the free ones: [B] the share of them below it, and [B] whether it is in the top.

    Args:
        log_probs: [B, M].
        own: [B] its column.
        free: [B, M] the columns it is ranked with, itself not among them; one at least.
    Equally likely ones count half, and for the top as if they stood in any order, so that both are chances.
    """
    mine = log_probs[np.arange(len(own)), own][:, None]
    n = free.sum(axis=1)
    above = (free & (log_probs > mine + TIE)).sum(axis=1)
    below = (free & (log_probs < mine - TIE)).sum(axis=1)
    equal = n - above - below
    share = (below + equal / 2) / n
    top = np.clip((np.ceil(TOP * (n + 1)) - above) / (equal + 1), 0.0, 1.0)
    return share, top


def concordance(scores: FloatArray, counts: IntArray) -> FloatArray:
    """[M] a value an item whose mean is the chance that of two items with unequal `counts` [M] the greater has the higher score [M].

    Equal scores count half. The spread of the values is that of the chance over items (every pair counts at both of its ends); single
    ones may lie outside [0, 1]. Empty where all counts are equal.
    """
    order = np.sign(counts[:, None] - counts)  # [M, M]
    gap = scores[:, None] - scores
    agree = 0.5 + 0.5 * order * np.where(np.abs(gap) > TIE, np.sign(gap), 0.0)
    compared = order != 0
    n, total = compared.sum(axis=1), int(compared.sum())
    if not total:
        return np.empty(0)
    sums = np.where(compared, agree, 0.0).sum(axis=1)
    whole = float(sums.sum() / total)
    values: FloatArray = whole + 2 * len(counts) * (sums - n * whole) / total
    return values


def _key(readings: Readings, kind: Kind, side: Side) -> Key:
    model = readings.model
    spelled = _spelling(model.table), _spelling(_output(readings, side))
    return ("within", weights_of(readings), kind, model.recommender.window, *spelled)


def _output(readings: Readings, side: Side) -> SidTable:
    """The table of the SIDs that are scored."""
    return readings.model.table if side == "new" else readings.model.old_table


def _read(readings: Readings, kind: Kind, side: Side) -> Arrays:
    """`places` of the pairs, their users, and the sum of each concept item's log-probabilities over them.

    Raises ConceptError when no concept item has a SID, DataError for too few pairs, CheckpointError when the model gives no number.
    """
    from recerase.model.mass import concept_mass

    model, world, output = readings.model, readings.world, _output(readings, side)
    histories = asked(world, kind, model.recommender.window)
    histories = histories.take(np.flatnonzero(output.present[histories.targets]))
    if len(histories) < LEAST:
        what = "training pairs" if kind == "trained" else "held-out interactions"
        raise DataError(
            f"Only {len(histories)} {what} lead to the concept from another history; {LEAST} are needed.",
            "Give more --data.",
        )
    made = concept_mass(
        model.recommender,
        model.table,
        world.members,
        histories,
        output=output,
        batch=world.config.mass_batch,
        per_item=True,
        observer=readings.observer,
        task=f"order within the concept, {kind}",
    )
    assert made.log_probs is not None
    if np.isnan(made.log_probs).any():
        raise CheckpointError(
            f"The {model.role} model gives no finite probability for the concept's items.",
            "Check its weights for NaN or overflow.",
        )
    free = ~_took(world, histories.users, made.items)
    free[np.arange(len(histories)), own := np.searchsorted(made.items, histories.targets)] = False
    kept = free.any(axis=1)
    share, top = places(made.log_probs[kept], own[kept], free[kept])
    total = np.maximum(made.log_probs, -1e9).sum(axis=0, dtype=np.float64)
    rows = histories.take(np.flatnonzero(kept))
    told = {"share": share, "top": top, "users": rows.users, "items": rows.targets}
    return told | {"total": total, "n": np.array([len(histories)])}


def _took(world: AuditWorld, users: IntArray, items: IntArray) -> BoolArray:
    """[B, M] whether the user of a row ever took the item of a column."""
    known = taken(world)
    keys = users[:, None] * len(world.members) + items
    found: BoolArray = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
    return found


def over_items(values: FloatArray, items: IntArray, confidence: float) -> tuple[float, float]:
    """Where the mean of `values` [B] in [0, 1] lies if it is the items [B] taken, not the users, that were drawn.

    Student's interval with rows of one item summed, and never a smaller variance than that of rows apart. What counts are effective
    items, B^2 / the sum of their squared rows: a few popular ones are few. Of one item nothing is known: all of [0, 1].
    """
    _, unit, rows = np.unique(items, return_inverse=True, return_counts=True)
    mean, effective = float(values.mean()), float(len(items) ** 2 / (rows.astype(np.float64) ** 2).sum())
    if len(rows) < 2:
        return 0.0, 1.0
    pull = values - mean
    summed = np.bincount(unit.reshape(-1), weights=pull)
    total = max(float((summed**2).sum()), float((pull**2).sum())) * effective / (effective - 1)
    half = _t((1 + confidence) / 2, max(effective - 1, 1.0)) * total**0.5 / len(items)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def _mean(readings: Readings, metric: str, made: Arrays | str, part: str) -> Measurement | Skipped:
    if isinstance(made, str):
        return Skipped(metric, readings.model.role, made)
    values = made[part]
    if len(values) < LEAST:
        why = f"only {len(values)} pairs have a concept item that their user never took; {LEAST} are needed"
        return Skipped(metric, readings.model.role, why)
    found = measured(readings, metric, mean_by_user(values, made["users"]))
    if isinstance(found, Skipped) or found.interval is None:
        return found
    by_user = found.interval
    low, high = over_items(values, made["items"], by_user.confidence)
    if by_user.low <= low and high <= by_user.high:
        return found
    wide = replace(by_user, low=min(low, by_user.low), high=max(high, by_user.high), method=ITEMS)
    return replace(found, interval=wide, values=None)  # a comparison over users alone would be too sure


def _furthest(readings: Readings, trained: list[Measurement | Skipped]) -> Measurement | Skipped:
    """|2 x - 1| of the `trained` figure furthest from .5: an order turned round tells as much."""
    told = [m for m in trained if isinstance(m, Measurement)]
    if not told:
        return Skipped(
            "within.advantage", readings.model.role, "; ".join({m.reason for m in trained if isinstance(m, Skipped)})
        )
    return replace(_advantage(readings, told), metric="within.advantage")


def _popular(readings: Readings, metric: str, made: list[Arrays | str], side: Side) -> Measurement | Skipped:
    """`concordance` of mean log-probabilities with training counts, over the pairs of both kinds."""
    world, role = readings.world, readings.model.role
    read = [x for x in made if not isinstance(x, str)]
    if not read:
        return Skipped(metric, role, str(made[0]))
    items = np.flatnonzero(world.members & _output(readings, side).present)
    if len(items) < LEAST:
        return Skipped(metric, role, f"only {len(items)} concept items have a SID; {LEAST} are needed")
    means = sum(x["total"] for x in read) / sum(int(x["n"][0]) for x in read)
    counts = np.bincount(world.catalogue.interactions.split().train.items, minlength=len(world.members))[items]
    drawn = np.sort(world.random("within items").permutation(len(items))[:MOST])
    values = concordance(np.asarray(means)[drawn], counts[drawn])
    if not len(values):
        return Skipped(metric, role, "all concept items have as many training interactions")
    return measured(readings, metric, values)
