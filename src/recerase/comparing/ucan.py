"""U-CAN's seven figures for every model of a comparison (audit/ucan_metrics), on pairs of the training interactions.

The deciding choice is the protocol: D_F are training pairs whose target is a concept item, D_R as many retained ones, both drawn
with the seed; every item with a SID is scored exactly and nothing is filtered, for these figures ask what the weights say. A model
is read a block of pairs at a time, and of the original alone the whole of D_F is kept, for divergence is against it.
Source: arXiv 2602.23400 by way of METHODS 3, which splits off 25 % of the interactions; here it is the concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recerase.comparing.cells import Bench
from recerase.comparing.reading import Reading
from recerase.comparing.relearned import Opened
from recerase.errors import CheckpointError
from recerase.report.compared import Figure
from recerase.types import BoolArray, FloatArray, Role

if TYPE_CHECKING:
    from recerase.audit.probes import AuditModel
    from recerase.catalog.interactions import Histories

CHUNK = 128
"""Pairs whose items are all held at once."""
STEM = "ucan."
PARAGRAPH = (
    "U-CAN's figures are of {n} training pairs that lead to the concept and as many that do not, all items scored. KL, prediction "
    "shift and perplexity on D_F rise, and its recall falls and Trade-off@10 improves, the further the concept is pressed down.",
    "U-CAN's figures have no point at which a model is like one that never saw the concept: a model pressed far below the references "
    "is better by each of them than the references are, and can be told by the concept's absence. They decide nothing here.",
)


@dataclass(frozen=True, eq=False)
class Pairs:
    """What all models are asked."""

    forget: Histories
    retain: Histories


def pairs_of(bench: Bench, most: int) -> Pairs:
    """At most `most` pairs of D_F and as many of D_R, drawn with the seed; D_R leads to no item that was erased before.

    Raises: as `erase.examples`.
    """
    from recerase.erase.examples import examples

    before = bench.before
    members, window = bench.concept.members, before.recommender.window
    found = examples(bench.catalogue.interactions, before.table, members, window, bench.gone.besides(members))
    rng = np.random.default_rng([bench.run.seed, *b"ucan"])
    forget = found.forget.take(np.sort(rng.permutation(len(found.forget))[:most]))
    return Pairs(forget, found.retain.take(np.sort(rng.permutation(len(found.retain))[: len(forget)])))


def said_of(bench: Bench, of: str, role: Role, opened: Opened, pairs: Pairs, original: Reading | None) -> Reading:
    """What a model says of the pairs, from its cell when it is there; `original` None: it is the original itself."""
    drawn = [x.tolist() for x in (pairs.forget.users, pairs.forget.targets, pairs.retain.users, pairs.retain.targets)]
    key = bench.kept_key({"of": of, "role": role, "ucan": drawn})

    def make(state: object) -> Reading:
        try:
            return read(opened(), bench.concept.members | bench.gone.members, pairs, original)
        except CheckpointError as error:
            return Reading({}, str(error))

    return bench.kept(key, make)


def read(model: AuditModel, members: BoolArray, pairs: Pairs, original: Reading | None) -> Reading:
    """`own` and `rank` of the pairs' targets [B], and for a model that is not the original `kl` and `shift` [1] on D_F.

    A reference is given histories without the items `members` [N]. Raises CheckpointError where a target has no finite probability.
    """
    from recerase.audit.ucan_metrics import Said, divergence, shift
    from recerase.model.mass import catalogue_log_probs

    found: dict[str, list[FloatArray]] = {}
    kept, sums = [], np.zeros(2)
    for name, given in (("forget", pairs.forget), ("retain", pairs.retain)):
        histories = given if model.reads_concept else given.without(members)
        for first in range(0, len(given), CHUNK):
            rows = np.arange(first, min(first + CHUNK, len(given)))
            scores = catalogue_log_probs(model.recommender, model.table, histories.take(rows))
            targets = given.targets[rows]
            if not np.isfinite(scores[np.arange(len(rows)), targets]).all():
                raise CheckpointError(
                    f"The {model.role} model gives a target of U-CAN's pairs no finite probability.",
                    "Check its weights.",
                )
            said = Said(scores, targets, model.table.levels)
            found.setdefault(f"{name}.own", []).append(said.own.astype(np.float64))
            found.setdefault(f"{name}.rank", []).append(said.rank.astype(np.float64))
            if name == "forget" and original is None:
                kept.append(scores)
            elif name == "forget" and original is not None:
                before = Said(original.values["log_probs"][rows], targets, model.table.levels)
                sums += len(rows) * np.array([divergence(before, said), shift(before, said)])
    values = {name: np.concatenate(parts) for name, parts in found.items()}
    values["codes"] = np.array([float(model.table.levels)])
    if original is None:
        return Reading({**values, "log_probs": np.concatenate(kept)})
    return Reading({**values, "kl": sums[:1] / len(pairs.forget), "shift": sums[1:] / len(pairs.forget)})


def metrics(said: Reading, original: Reading) -> dict[str, float]:
    """The figures of one model by name; a trade-off that is not defined is left out."""
    from recerase.audit.ucan_metrics import CUTS, fall, mrr
    from recerase.audit.utility import ndcg, recall

    found = {"perplexity": float(np.exp(-said.values["forget.own"].mean() / said.values["codes"][0]))}
    if "kl" in said.values:
        found |= {"kl": float(said.values["kl"][0]), "prediction_shift": float(said.values["shift"][0])}
    falls = []
    for name in ("forget", "retain"):
        rank, before = (x.values[f"{name}.rank"].astype(np.int64) for x in (said, original))
        for k in CUTS:
            for measure, of in (("recall", recall), ("mrr", mrr), ("ndcg", ndcg)):
                found[f"{name}.{measure}@{k}"] = float(of(rank, k).mean())
        falls.append(fall(float(recall(before, 10).mean()), found[f"{name}.recall@10"]))
    if falls[0] is not None and falls[1] is not None and said is not original:
        found["trade_off@10"] = falls[0] - falls[1]
    return found


def ucan_figures(said: Sequence[Reading], original: Reading) -> Mapping[str, Figure]:
    """Figures of a row's models, a value a seed; those that some seed lacks are left out."""
    alive = [metrics(x, original) for x in said if not x.failure]
    n = len(original.values["forget.own"]) if original.values else 0
    names = [name for name in (alive[0] if alive else {}) if all(name in x for x in alive)]
    points = {name: [x[name] for x in alive] for name in names}
    return {
        f"{STEM}{name}": Figure(
            float(np.mean(values)), n, len(values), float(np.std(values, ddof=1)) if len(values) > 1 else None
        )
        for name, values in points.items()
    }
