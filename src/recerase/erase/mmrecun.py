"""MMRecUn: Bayesian personalised ranking turned round for what is to be forgotten, and kept as it is for the rest.

L = share * -log sigmoid(y_neg - y_pos) on D_F + (1 - share) * -log sigmoid(y_pos - y_neg) on D_R, with y = log p(T(i)|h): a concept
item is to rank below its neighbours outside the concept, a retained one above its own. It fades once that is so: nothing runs off.
Negatives are the K nearest retained items of the embeddings, of all K the mean, so that nothing is drawn and a batch may be split;
for a recommender of several modalities the embeddings are where they meet.
The trap: a public port has the sign of the first term wrong, and teaches the concept.
Source: arXiv 2405.15328, by way of METHODS 3 (a reconstruction: its text was not read, nor its regularisers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.examples import nearest_others, neighbours
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.erase.steps import Loss, StepConfig, descend, require
from recerase.erase.steps import check as one_length
from recerase.errors import UsageError
from recerase.model.recommender import Recommender
from recerase.sid.quantize import Codebooks
from recerase.sid.table import SidTable
from recerase.types import FloatArray


@dataclass(frozen=True)
class MmRecUnConfig(StepConfig):
    """Settings of `mmrecun`; untuned."""

    share: float = 0.5
    """What the forget term weighs; the rest is the retain term's."""
    negatives: int = 5
    """K."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"negatives": 1}, positive=("share",))
        if self.share > 1:
            raise UsageError("These settings cannot work: share must be at most 1.", "Change it with --set key=value.")


def check(table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None, config: Any) -> None:
    """Refuse, with UsageError, SIDs that differ in length and a checkpoint without item embeddings."""
    one_length(table, codebooks, embeddings, config)
    if embeddings is None:
        raise UsageError(
            "MMRecUn takes its negatives from the item embeddings, and this checkpoint does not carry them.",
            "Tokenize again with --keep-embeddings and train on that, or use --method npo.",
        )


def objective(request: EraseRequest, config: MmRecUnConfig) -> Loss:
    """The loss of a step. Raises: as `check`, and UsageError where too few items are retained to take negatives from."""
    check(request.table, request.codebooks, request.embeddings, config)
    assert request.embeddings is not None
    table, kept_items = request.table, request.table.present & ~request.out
    if int(kept_items.sum()) <= config.negatives:
        raise UsageError(
            f"{int(kept_items.sum())} retained items have a SID, too few for {config.negatives} negatives each.",
            "Set fewer negatives.",
        )
    inside = neighbours(request.embeddings, request.concept, config.negatives, kept_items)
    near = np.where(request.concept[:, None], inside, nearest_others(request.embeddings, kept_items, config.negatives))

    def scored(model: Recommender, histories: Histories) -> tuple[Tensor, Tensor]:
        """[B, K] y of the target, repeated, and of its negatives."""
        items = np.concatenate([histories.targets[:, None], near[histories.targets]], 1)  # [B, 1 + K]
        y = sid_log_probs(model, start(model, table, histories), item_rows(model, table, items)).sum(2)
        return y[:, :1].expand(-1, config.negatives), y[:, 1:]

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        target, negative = scored(model, forget)
        lost = objectives.ranked(negative, target)
        target, negative = scored(model, retain)
        kept = objectives.ranked(target, negative)
        return config.share * lost + (1 - config.share) * kept, {"retain": kept, "forget": lost}

    return loss


def erase(request: EraseRequest, config: MmRecUnConfig) -> Erased:
    """A copy of the model after `steps` steps of MMRecUn; the table stays as it is. Raises: as `steps.descend` and `objective`."""
    return descend("mmrecun", request, config, objective)
