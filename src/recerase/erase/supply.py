"""What TRACER and renormalise learn from in each step: batches with their targets, and whole retained sequences.

The one decision: histories are drawn many batches at a time and cut by length, so that a batch is of about one length and little
of it is padding; targets are computed once and used in turn, in both phases.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase.examples import Examples, alike, concept_histories, draw, examples, joined
from recerase.erase.method import EraseRequest
from recerase.erase.target import FEW, Target, Teacher
from recerase.erase.tracer_config import TracerConfig

_AHEAD = 8
"""Batches of retained sequences that are drawn together."""
_LOOKED_AT = 8
"""Histories after which what follows the concept's codes is read."""


class Supply:
    """The teacher, the examples, and what is drawn from them with one generator."""

    def __init__(self, request: EraseRequest, config: TracerConfig) -> None:
        self.config = config
        self.rng = np.random.default_rng([request.seed, 11])
        self.examples: Examples = examples(
            request.interactions, request.table, request.concept, request.model.window, request.gone
        )
        counts = np.bincount(request.interactions.split().train.items, minlength=len(request.table))
        self._popularity = counts.astype(np.float64)  # of what is trained on: held-out interactions are never touched
        self._natural = joined(self.examples.retain, self.examples.earlier)  # all but what leads to the concept
        self._members = request.concept & request.table.present
        self._deleted = request.out & request.table.present
        self.teacher = Teacher(request.model, request.table, self._deleted, request.scope, request.seed)
        self._batches: list[Histories] = []
        self._pool: list[Target] = []
        self._pieces: list[Histories] = []

    def precision(self) -> torch.autocast:
        """What forward passes run in."""
        kind = self.teacher.model.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.config.bf16)

    def batches(self) -> Iterator[Target]:
        """The pool's batches with their targets, computed when first needed and then used in turn, for ever."""
        while True:
            for index in range(self.config.pool):
                yield self.batch(index)

    def batch(self, index: int) -> Target:
        """Batch `index` of the pool."""
        if not self._batches:
            self.teacher.meet(draw(self.examples.retain, FEW, self.rng))
            self._batches = alike(joined(*(self._drawn() for _ in range(self.config.pool))), self.config.pool, self.rng)
        while len(self._pool) <= index:
            batch = self._batches[len(self._pool)]
            free = (batch.targets < 0) | self._deleted[np.maximum(batch.targets, 0)]
            with self.precision():
                self._pool.append(self.teacher.target(batch, np.where(free, -1, batch.targets)))
        return self._pool[index]

    def few(self) -> Histories:
        """A few histories without concept items, the same for a whole run."""
        return self.batch(0).histories.without(self._deleted).take(np.arange(min(_LOOKED_AT, self.config.batch)))

    def sequences(self) -> tuple[dict[str, Tensor], Tensor]:
        """Fresh retained sequences with their target, as `Teacher.sequences` gives them."""
        if not self._pieces:
            some = draw(self.examples.sequences, _AHEAD * self.config.sequences, self.rng)
            self._pieces = alike(some, _AHEAD, self.rng)
        return self.teacher.sequences(self._pieces.pop())

    def pairs(self) -> Target:
        """Fresh retained pairs with their target, where a model is not asked inside of a sequence."""
        natural = draw(self.examples.retain, self.config.sequences, self.rng)
        return self.teacher.target(natural, natural.targets)

    def _drawn(self) -> Histories:
        """One batch: `natural` of it as users are; of the rest three fifths before a concept item, one after one, one of it alone.

        In scope influence, where what such an item says of others is to go, two fifths each are before and after one.
        """
        rng, found = self.rng, self.examples
        special = round(self.config.batch * (1 - self.config.natural))
        before, after = (2, 2) if self.teacher.scope == "influence" else (3, 1)
        forget = draw(found.forget, special * before // 5, rng)
        touched = draw(found.touched, special * after // 5, rng)
        rest = special - special * before // 5 - special * after // 5
        alone = concept_histories(self._popularity, self._members, rest, self.teacher.model.window, rng)
        natural = draw(self._natural, self.config.batch - len(forget) - len(touched) - len(alone), rng)
        return joined(natural, touched, forget, alone)
