"""Whoever fine-tunes a model to get a concept back: what he learns from, in which order, and how he takes a step.

The one decision: a step is one of next-item training on (history, target) pairs, walked through the recommender's own tree of
codes, so that it is the same for a causal model, a T5 and one that is asked inside a prompt; the module stays in eval mode (no
dropout), and so an attack is a function of the weights, the pairs and their order. The arithmetic is float32 whatever the weights are
stored in: a step of AdamW is smaller than the distance between two numbers of half precision.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from recerase.errors import CheckpointError, DataError
from recerase.model.batches import pairs, with_sids
from recerase.model.mass import target_log_probs

if TYPE_CHECKING:
    from recerase.audit.probes import AuditModel, AuditWorld
    from recerase.audit.relearning import Attack, RelearnConfig
    from recerase.catalog.interactions import Histories
    from recerase.sid.table import SidTable
    from recerase.types import IntArray


class Attacker:
    """A copy of a model in float32, and the optimiser that moves it. `model` is the copy; the one given stays as it is."""

    def __init__(self, target: AuditModel, table: SidTable, config: RelearnConfig) -> None:
        module = copy.deepcopy(target.recommender.module).float()
        self.model = target.recommender.around(module)
        self._role, self._table, self._clip, self._taken = target.role, table, config.clip, 0
        parameters = list(module.parameters())
        if not any(weight.requires_grad for weight in parameters):  # nothing forbids an attacker to change them
            for weight in parameters:
                weight.requires_grad_(True)
        self._weights = [weight for weight in parameters if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=config.lr, weight_decay=0.0)

    def step(self, batch: Histories) -> float:
        """One step down the mean negative log-probability of a code of the batch's targets; what it was before the step.

        Raises CheckpointError when it is not finite.
        """
        self._taken += 1
        codes = int((self._table.rows()[batch.targets] >= 0).sum())
        with torch.enable_grad():
            loss = -target_log_probs(self.model, self._table, batch).sum() / codes
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, self._clip)
        self._optimizer.step()
        found = float(loss.detach())
        if not math.isfinite(found):
            raise CheckpointError(
                f"The {self._role} model gives no finite loss at step {self._taken} of the relearning attack.",
                "Check its weights for NaN or overflow, or lower lr.",
            )
        return found


def attack_pairs(world: AuditWorld, table: SidTable, kind: Attack, window: int) -> Histories:
    """The pairs an attacker learns from, in the order of the training sequences; items without a SID are not in them.

    `forget`: those whose target is a concept item. `benign`: those of the sequences with the concept dropped.

    Raises DataError when there is none.
    """
    train = world.catalogue.interactions.split().train
    if kind == "forget":
        found = pairs(with_sids(train, table), window)
        found = found.take(np.flatnonzero(world.members[found.targets]))
        problem = "No training interaction leads to the concept, so there is nothing to relearn it from."
    else:
        found = pairs(with_sids(train.without(world.members), table), window)
        problem = "No user has two training interactions without the concept, so there is no benign training."
    if len(found) == 0:
        raise DataError(problem, "Give the --data that the checkpoint was trained on.")
    return found


def plan(rng: np.random.Generator, n: int, config: RelearnConfig) -> IntArray:
    """int64 [last step, batch] rows of n pairs: `shots` of them, again and again in another random order."""
    size = n if config.shots is None else min(config.shots, n)
    known = rng.permutation(n)[:size]
    batch, steps = min(config.batch, size), config.steps[-1]
    rounds = -(-batch * steps // size)
    drawn: IntArray = np.concatenate([known[rng.permutation(size)] for _ in range(rounds)])[: batch * steps]
    return drawn.reshape(steps, batch)
