"""Were these interactions trained on? What the model says of training pairs that lead to the concept, beside pairs that are none.

The decision that shaped this file: a member and its non-member share everything but membership. Members are training pairs
whose target is a concept item. A non-member is the same history of the same user with another concept item in its place, one
that he never took and that is about as popular: neither taste for the concept nor popularity nor length tells them apart.
What does is which concept item goes with which history: learned by heart, or from other users, and either way from interactions
with the concept. Against held-out interactions with the concept (`heldout`) only what was learned by heart helps.

Scores, higher for members, over the codes of the SID that the item had before the erasure (`new`: has now): its log-probability
(loss), that of the least likely third of its codes (Min-K%, Shi et al. 2024, arXiv 2310.16789), the same of the codes' standings
among all codes (Min-K%++, Zhang et al. 2025, arXiv 2404.02936), and the log-probability less that of a model that never saw the
pair (the offline likelihood ratio of Carlini et al. 2022, arXiv 2112.03570, with the one reference there is). The reference
reads histories without concept items, as everywhere. Intervals are over users, with the threshold of `tpr` as it was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import held_out
from recerase.audit.probes import counted, measured
from recerase.audit.roc import FALSE_ALARMS, auc_by_user, hits_at, mean_by_user
from recerase.errors import CheckpointError
from recerase.store import sha256_bytes
from recerase.types import BoolArray, FloatArray, IntArray, Interval, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings, Side
    from recerase.catalog.interactions import Histories
    from recerase.model.codes import Codes

ATTACKS = ("loss", "min_k", "min_k_plus")
"""What needs no other model; `ratio` needs a reference."""
MEMBERS = 1000
"""Training pairs at most that are asked about, of the concept and of retained items each."""
LEAST = 10
"""Pairs without which nothing is measured."""
SHARE = 1 / 3
"""K of Min-K%: of three or four codes one, of six two."""
_TRIED = 64
"""Items nearest in popularity among which a pair's other item is looked for."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Members with a non-member each, by history."""

    histories: Histories
    """[B] of the training sequences; the target is the member's item."""
    others: IntArray
    """[B] the non-member's item."""


def membership(readings: Readings) -> list[Measurement | Skipped]:
    """AUC and hits at FALSE_ALARMS of every attack, the best of them, and the controls."""
    world, role = readings.world, readings.model.role
    window = readings.model.recommender.window
    pairs = matched_pairs(world, world.members, window)
    scores = _scored(readings, "concept", pairs, "old")
    names = [f"membership.{a}.{what}" for a in (*ATTACKS, "ratio") for what in ("auc", "tpr")]
    names += ["membership.advantage", "membership.new.auc", "membership.heldout.auc"]
    found: list[Measurement | Skipped] = []
    if (n := int(scores.known.sum())) < LEAST:
        reason = f"only {n} training pairs lead to the concept and have a counterpart; {LEAST} are needed"
        found += [Skipped(name, role, reason) for name in names]
    else:
        found += _attacked(readings, pairs, scores)
        new, lacking = _scored(readings, "concept", pairs, "new"), "the concept has no SIDs in the current table"
        found.append(_plain(readings, "membership.new.auc", pairs, new, lacking))
        found += _heldout(readings, pairs, scores)
    retained = matched_pairs(world, world.retained, window, "retained")
    control, lacking = _scored(readings, "retained", retained, "old"), "too few training pairs lead to retained items"
    return [*found, _plain(readings, "membership.retained.auc", retained, control, lacking)]


def taken(world: AuditWorld) -> IntArray:
    """int64 [R] user * N + item of every interaction, ascending: what looks up whether a user ever took an item."""
    made = world.catalogue.interactions
    owner = np.repeat(np.arange(made.n_users), made.lengths)
    keys: IntArray = np.unique(owner * len(world.members) + made.items)
    return keys


def matched_pairs(world: AuditWorld, among: BoolArray, window: int, purpose: str = "concept") -> Pairs:
    """At most MEMBERS training pairs whose target is in `among` [N], with another item of it for each.

    The other item is the nearest in log popularity that the user never took, of _TRIED that are nearest (all, where there are
    no more), ties and near-ties by lot; a pair without one is left out, and so is one whose item is in its history, to be copied.
    Drawn with the world's seed, a second pair of a user only where every user has one.
    """
    from recerase.model.batches import pairs

    found = pairs(world.catalogue.interactions.split().train, 2 * window)
    rng = world.random(f"membership {purpose}")
    owner = np.repeat(np.arange(len(found)), found.lengths)
    again = np.bincount(owner, weights=found.items == found.targets[owner], minlength=len(found)) > 0
    drawn = rng.permutation(np.flatnonzero(among[found.targets] & ~again))
    rows = np.sort(_one_a_user_first(drawn, found.users)[:MEMBERS])
    members = found.take(rows)
    counts = np.log1p(np.bincount(world.catalogue.interactions.items, minlength=len(among)))
    items = np.flatnonzero(among)
    items = items[np.argsort(counts[items] + rng.uniform(0, 1e-6, len(items)))]
    near = _nearest(counts[items], counts[members.targets])  # [B, tried] places in `items`
    far = np.abs(counts[items[near]] - counts[members.targets][:, None]) + rng.uniform(0, 0.1, near.shape)
    known = taken(world)
    keys = members.users[:, None] * len(among) + items[near]
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    far[known[place] == keys] = np.inf
    best = far.argmin(axis=1) if near.shape[1] else np.empty(0, np.int64)
    kept = np.flatnonzero(np.isfinite(far[np.arange(len(best)), best]))
    return Pairs(members.take(kept), items[near[kept, best[kept]]])


def _one_a_user_first(rows: IntArray, users: IntArray) -> IntArray:
    """`rows` in their order, but with the first of every user before anybody's second: as many users as can be are asked."""
    owner = users[rows]
    order = np.argsort(owner, kind="stable")
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - np.searchsorted(owner[order], owner[order])
    found: IntArray = rows[np.argsort(turn, kind="stable")]
    return found


def _nearest(ordered: FloatArray, wanted: FloatArray) -> IntArray:
    """[B, w] w = min(_TRIED, n) neighbouring places of `ordered` [n], ascending, around each of `wanted` [B]."""
    width = min(_TRIED, len(ordered))
    middle = np.searchsorted(ordered, wanted) - width // 2
    first = np.clip(middle, 0, len(ordered) - width)
    places: IntArray = first[:, None] + np.arange(width)
    return places


@dataclass(frozen=True, eq=False)
class _Scores:
    """What a model says of members and of others; NaN where it has no SID for the item."""

    members: Codes
    others: Codes

    @property
    def known(self) -> BoolArray:
        """[B] pairs of which both items have a SID."""
        found: BoolArray = np.isfinite(loss(self.members)) & np.isfinite(loss(self.others))
        return found


def loss(codes: Codes) -> FloatArray:
    """[B] log p(SID | history); NaN for an item without a SID."""
    empty = np.isnan(codes.log_probs).all(axis=1)
    found: FloatArray = np.where(empty, np.nan, np.nansum(codes.log_probs, axis=1))
    return found


def lowest(values: FloatArray, share: float = SHARE) -> FloatArray:
    """[B] the mean of the smallest `share` (one at least) of the numbers in each row of `values` [B, L]; NaN where there is none."""
    ordered, n = np.sort(values, axis=1), np.isfinite(values).sum(axis=1)  # NaN last
    take = np.maximum(np.round(n * share).astype(np.int64), 1)
    counted = np.arange(values.shape[1]) < take[:, None]
    found: FloatArray = np.where(counted, ordered, 0.0).sum(axis=1) / take
    return found


def score(attack: str, codes: Codes) -> FloatArray:
    """[B] what an attack of ATTACKS makes of the codes; higher: rather a member."""
    if attack == "loss":
        return loss(codes)
    return lowest(codes.log_probs if attack == "min_k" else codes.standing)


def _scored(readings: Readings, name: str, pairs: Pairs, side: Side) -> _Scores:
    own = _codes(readings, f"{name} members", pairs.histories, pairs.histories.targets, side)
    return _Scores(own, _codes(readings, f"{name} others", pairs.histories, pairs.others, side))


def _codes(readings: Readings, name: str, histories: Histories, items: IntArray, side: Side) -> Codes:
    """What the model says of `items` [B] after histories as it is to read them; read once for models of the same weights.

    Raises CheckpointError when it says nothing of an item that has a SID.
    """
    from recerase.model.codes import forced_codes

    model, config = readings.model, readings.world.config
    table, output = model.table, model.table if side == "new" else model.old_table
    if not model.reads_concept:
        histories = histories.without(readings.world.out)
    spelled = sha256_bytes(table.codes.tobytes() + table.readable.tobytes() + output.codes.tobytes())
    key = ("membership", model.digest or id(model.recommender), name, model.reads_concept, spelled)
    if key not in readings.cache:
        made = forced_codes(
            model.recommender,
            table,
            histories,
            items,
            output=output,
            batch=config.batch,
            observer=readings.observer,
            task=f"membership of {name}",
        )
        if not np.isfinite(loss(made)[output.present[items]]).all():
            raise CheckpointError(
                f"The {model.role} model gives no finite probability for {name}.",
                "Check its weights for NaN or overflow.",
            )
        readings.cache[key] = made
    found: Codes = readings.cache[key]
    return found


def _attacked(readings: Readings, pairs: Pairs, scores: _Scores) -> list[Measurement | Skipped]:
    """Every attack against the pairs that never were, and the one that tells most."""
    keep, users = scores.known, pairs.histories.users
    told = {attack: (score(attack, scores.members), score(attack, scores.others)) for attack in ATTACKS}
    reason = _no_ratio(readings)
    reference = None if reason else _scored(readings.beside["reference"], "concept", pairs, "old")
    if reference is not None:
        keep = keep & reference.known
        own, other = told["loss"]
        told["ratio"] = own - loss(reference.members), other - loss(reference.others)
        reason = None if keep.sum() >= LEAST else f"the reference has SIDs for {int(keep.sum())} pairs"
    found: list[Measurement | Skipped] = []
    best: list[Measurement] = []
    for attack in (*ATTACKS, "ratio"):
        if attack == "ratio" and reason:
            found += [Skipped(f"membership.ratio.{what}", readings.model.role, reason) for what in ("auc", "tpr")]
            continue
        some = np.flatnonzero(keep if attack == "ratio" else scores.known)
        own, other = (x[some] for x in told[attack])
        auc = _auc(readings, f"membership.{attack}.auc", own, other, users[some], users[some])
        best += [auc] if isinstance(auc, Measurement) else []
        found += [auc, _hits(readings, f"membership.{attack}.tpr", own, other, users[some])]
    return [*found, _advantage(readings, best)]


def _no_ratio(readings: Readings) -> str | None:
    """Why there is no ratio to a reference; None: there is."""
    if not readings.model.reads_concept:
        return "it is itself a model that never saw the concept"
    return None if "reference" in readings.beside else "the ratio needs a reference, and none was given"


def _auc(
    readings: Readings, metric: str, own: FloatArray, other: FloatArray, users: IntArray, others: IntArray
) -> Measurement | Skipped:
    """AUC of scores `own` of `users` against scores `other` of `others`."""
    values = auc_by_user(*_joined(own, other), np.concatenate([users, others]))
    return measured(readings, metric, values)


def _hits(
    readings: Readings, metric: str, own: FloatArray, other: FloatArray, users: IntArray
) -> Measurement | Skipped:
    """Share of members above a threshold that FALSE_ALARMS of the others exceed."""
    needed = round(1 / FALSE_ALARMS)
    if len(other) < needed:
        reason = f"a rate of false alarms of {FALSE_ALARMS:.0%} needs {needed} non-members, and there are {len(other)}"
        return Skipped(metric, readings.model.role, reason)
    return measured(readings, metric, mean_by_user(hits_at(*_joined(own, other)), users))


def _joined(own: FloatArray, other: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Both scores, one behind the other, and which of them are members'."""
    return np.concatenate([own, other]), np.arange(len(own) + len(other)) < len(own)


def _advantage(readings: Readings, found: list[Measurement]) -> Measurement:
    """|2 AUC - 1| of the attack where it is largest: who finds members less likely than others has found them as well."""
    most = max(found, key=lambda m: abs(m.value - 0.5))
    assert most.interval is not None
    ends = [2 * end - 1 for end in (most.interval.low, most.interval.high)]
    high = min(max(abs(end) for end in ends), 1.0)
    low = 0.0 if ends[0] <= 0 <= ends[1] else min(abs(end) for end in ends)
    made = counted(readings, "membership.advantage", min(abs(2 * most.value - 1), 1.0), most.n)
    return replace(made, interval=Interval(min(low, made.value), high, most.interval.confidence, most.interval.method))


def _plain(readings: Readings, metric: str, pairs: Pairs, scores: _Scores, lacking: str) -> Measurement | Skipped:
    """AUC of the loss; Skipped with what is `lacking` where too few pairs have SIDs."""
    keep, users = np.flatnonzero(scores.known), pairs.histories.users
    if len(keep) < LEAST:
        return Skipped(metric, readings.model.role, lacking)
    return _auc(readings, metric, loss(scores.members)[keep], loss(scores.others)[keep], users[keep], users[keep])


def _heldout(readings: Readings, pairs: Pairs, scores: _Scores) -> list[Measurement | Skipped]:
    """The loss of members of `pairs` beside held-out interactions with the concept; members' histories are about as long."""
    world, metric = readings.world, "membership.heldout.auc"
    held = held_out(world)
    held = held.take(world.members[held.targets])
    codes = _codes(readings, "held-out", held, held.targets, "old")
    keep = np.isfinite(loss(codes))
    if keep.sum() < LEAST:
        reason = f"only {int(keep.sum())} held-out interactions lead to the concept; {LEAST} are needed"
        return [Skipped(metric, readings.model.role, reason)]
    window = readings.model.recommender.window
    shortest = np.quantile(np.minimum(held.lengths[keep], window), 0.1)
    some = np.flatnonzero(scores.known & (pairs.histories.lengths >= shortest))
    if len(some) < LEAST:
        return [Skipped(metric, readings.model.role, f"only {len(some)} training pairs have histories as long")]
    own, users = loss(scores.members)[some], pairs.histories.users[some]
    return [_auc(readings, metric, own, loss(codes)[keep], users, held.users[keep])]
