"""The seven figures that U-CAN reports, from what a model says of pairs of D_F and D_R before and after erasing.

KL and prediction shift on D_F; perplexity on D_F; Recall, MRR and NDCG at 5 and 10 on both; trade-off = fall on D_F - fall on D_R.
The decision that shaped this file: a model is a matrix of log p(item | history), so the figures are arithmetic, and any two models can
be held against each other. They reward forgetting below a model that never knew, which the audit calls a failure; that is why they
decide nothing here and stand beside the audit's own figures in a table.
Ours, where summaries of the paper are silent: KL is KL(before || after) over the items, each row renormalised; a prediction is the
likeliest item; perplexity is per code of a SID, and of the probability as the model gives it. The trade-off is of Recall. Those
published do not follow from the published recalls with one original (METHODS 3: two rows determine it, a third contradicts), so their
figure may be a mean over several measures; it is not reproduced.
Source: arXiv 2602.23400 by way of METHODS 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recerase.audit.utility import ndcg, ranks, recall
from recerase.errors import UsageError
from recerase.types import FloatArray, IntArray

CUTS = (5, 10)


@dataclass(frozen=True, eq=False)
class Said:
    """What a model says of some pairs."""

    log_probs: FloatArray
    """[B, N] log p(item | history); -inf for an item without a SID."""
    targets: IntArray
    """[B] the item that followed; it has a SID."""
    codes: int
    """L, codes of a SID."""

    def __post_init__(self) -> None:
        """Raises UsageError for no pairs, or a target that has no probability."""
        if len(self.targets) == 0 or self.log_probs.shape[0] != len(self.targets) or self.codes < 1:
            raise UsageError("There are no pairs to measure, or not one row a pair.", "Give pairs of D_F and of D_R.")
        if not np.isfinite(self.own).all():
            raise UsageError("The model gives a target no probability.", "Leave out targets without a SID.")

    @property
    def own(self) -> FloatArray:
        """[B] log p of each history's target."""
        found: FloatArray = self.log_probs[np.arange(len(self.targets)), self.targets]
        return found

    @property
    def rank(self) -> IntArray:
        """[B] place of the target, from 0; the largest of CUTS where it is further down. Equal items stand in their order."""
        most = max(CUTS)
        return ranks(np.argsort(-self.log_probs, axis=1, kind="stable")[:, :most].astype(np.int32), self.targets)


def mrr(rank: IntArray, k: int) -> FloatArray:
    """[B] 1 / (rank + 1) where the target is among the first k, else 0."""
    return np.where(rank < k, 1.0 / (rank + 1.0), 0.0)


def divergence(before: Said, after: Said) -> float:
    """Mean over pairs of KL(before || after), in nats, over the items that both give a probability."""
    both = np.isfinite(before.log_probs) & np.isfinite(after.log_probs)
    p, q = (_normalised(np.where(both, said.log_probs, -np.inf)) for said in (before, after))
    gap = np.where(both, p - np.where(both, q, 0.0), 0.0)
    return float((np.exp(p) * gap).sum(1).mean())


def shift(before: Said, after: Said) -> float:
    """Percent of pairs whose likeliest item is another."""
    return float((before.log_probs.argmax(1) != after.log_probs.argmax(1)).mean() * 100)


def perplexity(said: Said) -> float:
    """exp of the mean negative log-probability of a code of the targets."""
    return float(np.exp(-said.own.mean() / said.codes))


def fall(before: float, after: float) -> float | None:
    """Percent of `before` that is lost; None where there was nothing to lose."""
    return None if before == 0 else 100 * (before - after) / before


def ucan_metrics(
    forget_before: Said, forget_after: Said, retain_before: Said, retain_after: Said
) -> dict[str, float | None]:
    """All figures by name: `kl`, `prediction_shift`, `perplexity.*`, `forget.recall@5` ... and `trade_off@10`.

    Raises UsageError where before and after are not of the same pairs.
    """
    for one, other in ((forget_before, forget_after), (retain_before, retain_after)):
        if one.log_probs.shape != other.log_probs.shape or (one.targets != other.targets).any():
            raise UsageError("Before and after are not of the same pairs.", "Read both models on the same histories.")
    found: dict[str, float | None] = {
        "kl": divergence(forget_before, forget_after),
        "prediction_shift": shift(forget_before, forget_after),
        "perplexity.before": perplexity(forget_before),
        "perplexity.after": perplexity(forget_after),
    }
    recalls: dict[str, float] = {}
    for name, said in (("forget", forget_after), ("retain", retain_after)):
        for k in CUTS:
            rank = said.rank
            for measure, values in (("recall", recall(rank, k)), ("mrr", mrr(rank, k)), ("ndcg", ndcg(rank, k))):
                found[f"{name}.{measure}@{k}"] = float(values.mean())
    for name, said in (("forget", forget_before), ("retain", retain_before)):
        recalls[name] = float(recall(said.rank, 10).mean())
    falls = [fall(recalls[name], float(found[f"{name}.recall@10"] or 0.0)) for name in ("forget", "retain")]
    found["trade_off@10"] = None if falls[0] is None or falls[1] is None else falls[0] - falls[1]
    return found


def _normalised(log_probs: FloatArray) -> FloatArray:
    """Rows [B, N] of log-probabilities that sum to 1."""
    most = log_probs.max(1, keepdims=True)
    whole: FloatArray = log_probs - most - np.log(np.exp(log_probs - most).sum(1, keepdims=True))
    return whole
