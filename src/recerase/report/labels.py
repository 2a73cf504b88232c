"""What every metric is called: built from whom or what it was read on and what was counted, so that a family is worded once.

The decision that shaped this file: a label says its unit. Exposure, hit and coverage are shares of a list and a mass is a probability,
which `UNITS` says once a page; whatever is none of these (steps, AUC, a share of something else) says it itself.
"""

from __future__ import annotations

import re

UNITS = (
    "Exposure, hit and coverage are shares of recommended slots; mass is a probability; an AUC of .5 tells nothing, "
    "1 tells everything."
)

POPULATIONS = {
    "natural": "all users",
    "natural_concept_users": "users of the concept",
    "saturated": "concept-only histories",
    "neighbours": "histories of its nearest items",
    "replay": "stale client, old SIDs",
    "earlier": "what was erased before, all users",
    "utility": "all users",
    "utility_concept_users": "users of the concept",
    "utility_neighbours": "buyers of its nearest items",
    "co_consumed": "histories of what is taken with it",
    "depth": "no beam",
    "worst_case": "worst histories found",
    "soft_prompt": "worst vectors found in place of a history",
    "spill": "nearest retained items",
    "spill.lost": "nearest retained items, share lost",
    "spill.gained": "nearest retained items, share gained",
    "spill.held_out": "its kind outside the request",
    "hidden.next": "state tells that the concept is next",
    "hidden.history": "state tells that the concept was in the history",
    "membership.loss": "training pairs told by likelihood",
    "membership.min_k": "training pairs told by Min-K%",
    "membership.min_k_plus": "training pairs told by Min-K%++",
    "membership.ratio": "training pairs told by ratio to the reference",
    "membership.new": "training pairs told by likelihood of current SIDs",
    "membership.heldout": "training pairs told from held-out ones",
    "membership.retained": "control, training pairs of retained items",
    "relearn.forget": "further training on the concept",
    "relearn.benign": "further training on anything else",
    "relearn_few.shots8": "further training on 8 concept pairs",
    "relearn_few.shots64": "further training on 64 concept pairs",
    "precision": "worst of the stored and coarser copies",
    "precision.stored": "as stored, concept listed again",
    "precision.bf16": "copy in bf16",
    "precision.fp16": "copy in fp16",
    "precision.int8": "copy in int8",
    "precision.int4": "copy in int4",
    "precision.pruned": "copy without its smallest 30 % of weights",
    "precision.noise": "copy with .5 % noise",
    "forensics.rows": "concept items told by how far their codes' rows moved",
    "forensics.logprob": "concept items told by how much less likely they became",
    "forensics.norm": "concept items told by the length of their codes' rows alone",
    "forensics.alone": "concept items told by how unlikely they are alone",
    "forensics.table": "concept items told by whether their SID changed",
}
"""By the first parts of a metric's name: after which histories, or off what it was read."""

QUANTITIES = {
    "exposure": "exposure",
    "hit": "hit",
    "mass": "mass",
    "mass.old": "mass of old SIDs",
    "mass.new": "mass of current SIDs",
    "mean.old": "mean mass of old SIDs",
    "mean.new": "mean mass of current SIDs",
    "any.old": "mass of old SIDs, concept items allowed",
    "any.new": "mass of current SIDs, concept items allowed",
    "recall": "recall",
    "ndcg": "ndcg",
    "coverage": "coverage",
    "first_rank.old": "rank of the first concept item by old SID (0 first, 1 last)",
    "first_rank.new": "rank of the first concept item by current SID (0 first, 1 last)",
    "auc": "AUC",
    "tpr": "share found at 1 % false alarms",
    "mlp": "AUC of an MLP",
    "control": "AUC for control items",
    "selectivity": "AUC above control",
    "mlp_selectivity": "AUC of an MLP above control",
    "steps": "steps to half of the original's exposure",
    "reached": "half of it reached (1 yes, 0 no)",
}
"""By the last parts of a metric's name: what was counted."""

WHOLE = {
    "nearest.leak": "free generations that mean the concept",
    "nearest.random": "random SIDs that mean the concept",
    "free.invalid": "free generations that are no item",
    "free.old_concept": "free generations of old concept SIDs",
    "aliasing.shared_sid": "concept items sharing a retained SID",
    "aliasing.shared_prefix": "concept items sharing a retained prefix",
    "forced_prefix.strength.old": "share of an old SID the model completes",
    "forced_prefix.strength.new": "share of a current SID the model completes",
    "forced_prefix.trie.old": "share of an old SID completed within the catalogue",
    "forced_prefix.trie.new": "share of a current SID completed within the catalogue",
    "forced_prefix.empty.old": "share of an old SID completed after no history",
    "forced_prefix.empty.new": "share of a current SID completed after no history",
    "forced_prefix.over.old": "chance that an old SID is completed sooner than a retained item's",
    "forced_prefix.over.new": "chance that a current SID is completed sooner than a retained item's",
    "forced_prefix.retained": "share of a retained item's SID the model completes",
    "membership.advantage": "advantage of the best membership attack (0 none, 1 full)",
    "forensics.moved": "share of the codes' rows that moved",
    "forensics.identical": "share of tensors identical to the original's, bit for bit",
    "within.trained.old": "AUC of the item trained on among the concept's others, old SIDs",
    "within.trained.new": "AUC of the item trained on among the concept's others, current SIDs",
    "within.heldout.old": "AUC of the item taken later among the concept's others, old SIDs",
    "within.heldout.new": "AUC of the item taken later among the concept's others, current SIDs",
    "within.top.old": "items trained on in the first tenth of the concept's own list, old SIDs",
    "within.top.new": "items trained on in the first tenth of the concept's own list, current SIDs",
    "within.popular.old": "AUC of the more popular of two concept items, old SIDs",
    "within.popular.new": "AUC of the more popular of two concept items, current SIDs",
    "within.advantage": "advantage of the concept's own order over pairs trained on (0 none, 1 full)",
    "influence.history": "share of the list that concept items in the history change",
    "influence.history.rbo": "share of the list that concept items in the history change, by rank",
    "influence.matched.concept": "share of the list that dropping concept items changes, matched users",
    "influence.matched.other": "share of the list that dropping as many others changes, matched users",
}
"""Names that are no population and quantity."""

_STEP = re.compile(r"s(\d+)")
"""The cut of a metric that was read after so many steps of further training: exposure in the first ten slots."""


def metric_label(metric: str) -> str:
    """A metric in words, `exposure@10, all users`; the name itself when it is not known."""
    stem, at, cut = metric.partition("@")
    if stem in WHOLE:
        return f"{WHOLE[stem]} ({cut})" if at else WHOLE[stem]
    parts = stem.split(".")
    for i in range(len(parts) - 1, 0, -1):  # the longest population there is
        population, quantity = POPULATIONS.get(".".join(parts[:i])), QUANTITIES.get(".".join(parts[i:]))
        if population is not None and quantity is not None:
            return f"{quantity}{_at(at, cut)}, {population}"
    return metric


def _at(at: str, cut: str) -> str:
    steps = _STEP.fullmatch(cut)
    if steps is None:
        return at + cut
    return f"@10 after {steps[1]} step{'' if steps[1] == '1' else 's'}"
