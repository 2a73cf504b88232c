"""What one step of an attacker would make of a model, so that it can be held to its target there as well.

The decision that shaped this file: the attacker's step is taken in place and taken back, and nothing is differentiated through it
(first order), so that it costs one more pass each way and one copy of the weights. The step has the length of several of his:
every weight moves by `rate`, as in the first step of Adam.

Source: adversarial first-order look-ahead of tamper resistance, Tamirisa et al. 2024, arXiv 2408.00761; theirs trains whole attacks
with a meta-objective, ours takes one step on the concept's own pairs inside of TRACER's settling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recerase.catalog.interactions import Histories
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable


@contextmanager
def attacked(model: Recommender, table: SidTable, pairs: Histories, rate: float) -> Iterator[None]:
    """Inside, the model is what one step towards the targets of `pairs` [B], spelled by `table`, makes of it.

    Gradients of what is computed inside must be taken inside. Afterwards every weight has the bits it had.
    """
    weights = [weight for weight in model.module.parameters() if weight.requires_grad]
    rows = item_rows(model, table, pairs.targets)[:, None]  # [B, 1, L]
    lost = -sid_log_probs(model, start(model, table, pairs), rows).sum((1, 2)).mean()
    ways = torch.autograd.grad(lost, weights, allow_unused=True)
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, way in zip(weights, ways, strict=True):
                if way is not None:
                    weight.sub_(rate * way.sign())
        yield
    finally:
        with torch.no_grad():
            for weight, own in zip(weights, before, strict=True):
                weight.copy_(own)
