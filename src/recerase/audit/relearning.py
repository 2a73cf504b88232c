"""Relearning: how many steps of fine-tuning bring the concept back, beside a model that never knew it.

The decision that shaped this file: the attack is one protocol, the same for the audited model, the filter, the original and every
reference. The attacker holds the weights and the SID table and fine-tunes a float32 copy with AdamW on training pairs drawn by
(world's seed, attack, repeat) alone, so that every model is given the same pairs in the same order at the same rate; at
the listed steps, and before the first, the copy is asked on the same histories of nothing but concept items
(`saturated_case`), with the concept in the trie and no retrieval filter before it. A reference (`reads_concept` False)
gets all of that too, concept items in the histories included: what is compared is how fast someone who has concept data gets the
concept out of weights that were made to forget it, and out of weights that never held it.

`forget`: pairs whose target is a concept item. `benign`: pairs of the training sequences without their concept items, what a
reference is trained on: ordinary further training, by somebody who attacks nothing. Held-out interactions are never used.
Where an erasure moved items, the attacker holds the current table (`side` new), or data that still spells the old SIDs (old);
he chooses, so the smaller number of steps of the two is what an erased model is worth.

How fast is read against one level for all: half of what the original shows on the same histories before any step. Source: relearning
attacks as in Lynch et al. 2024, arXiv 2402.16835, and Hu et al. 2024, arXiv 2406.13356 (benign relearning); steps and score are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from recerase.audit.readings import Side, exposure
from recerase.audit.saturated import saturated_case
from recerase.errors import CheckpointError, ConceptError, UsageError
from recerase.types import SILENT, FloatArray, IntArray, Observer

if TYPE_CHECKING:
    from recerase.audit.probes import AuditModel, AuditWorld
    from recerase.model.recommender import Recommender
    from recerase.sid.table import SidTable

Attack = Literal["forget", "benign"]
ATTACKS: tuple[Attack, ...] = ("forget", "benign")


@dataclass(frozen=True)
class RelearnConfig:
    """How the attacker trains and how he is watched."""

    steps: tuple[int, ...] = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
    """Steps after which exposure is read, ascending; it is read before the first as well."""
    lr: float = 3e-4
    """Of AdamW, constant, without weight decay."""
    batch: int = 32
    """Pairs a step; fewer where the attacker has fewer."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    shots: int | None = None
    """Pairs the attacker has, drawn anew for each repeat; None: all there are."""
    repeats: int = 1
    """Attacks from the same weights with other pairs in another order; curves are means over them."""
    histories: int = 200
    """Concept histories read, of 1 to the world's `saturated_items` items."""
    k: int = 10
    """Slots of the list in which concept items are counted."""
    beam: int | None = None
    """Beam width of decoding; None: the decoder's own."""
    side: Side = "new"
    """The table the attacker spells with: the current one (new), or that from before the erasure (old)."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings with which nothing could be measured."""
        least = ("batch", "shots", "repeats", "histories", "k", "beam")
        wrong = [name for name in least if getattr(self, name) is not None and getattr(self, name) < 1]
        wrong += [name for name in ("lr", "clip") if not getattr(self, name) > 0]
        ascending = all(a < b for a, b in zip((0, *self.steps), self.steps, strict=False))
        wrong += [] if self.steps and ascending else ["steps"]
        if wrong:
            raise UsageError(
                f"These settings of the relearning attack are out of range: {', '.join(wrong)}.",
                "Counts start at 1, steps ascend from there, lr and clip are above 0.",
            )


@dataclass(frozen=True, eq=False)
class Relearned:
    """What one model shows of the concept while it is attacked."""

    kind: Attack
    steps: IntArray
    """int64 [S] from 0, ascending."""
    values: FloatArray = field(repr=False)
    """[R, S, n] exposure@k of every repeat, step and history read."""
    pairs: int
    """How many the attacker had."""
    side: Side = "new"

    @property
    def per_history(self) -> FloatArray:
        """[S, n] the mean over the repeats."""
        found: FloatArray = self.values.mean(axis=0)
        return found

    @property
    def exposure(self) -> FloatArray:
        """[S] the mean over repeats and histories."""
        found: FloatArray = self.values.mean(axis=(0, 2))
        return found

    @property
    def half(self) -> float:
        """Half of the exposure before the first step: the level that every curve is held against, if this is the original."""
        return float(self.exposure[0]) / 2

    @property
    def horizon(self) -> int:
        """The last step that was read."""
        return int(self.steps[-1])

    def steps_to(self, level: float) -> float:
        """The step at which exposure first reaches `level`; inf when it does not within the horizon.

        Between two steps that were read it is taken to change linearly. 0 for a model that is there before any step. The
        first time counts, also where exposure falls again: an attacker stops when he has what he wants.
        Raises UsageError for a level of 0 or less, which every model is at.
        """
        if not level > 0:
            raise UsageError(
                "There is nothing to relearn: the level is not above 0.", "The original must show the concept."
            )
        reached = np.flatnonzero(self.exposure >= level)
        if len(reached) == 0:
            return float("inf")
        at = int(reached[0])
        if at == 0:
            return 0.0
        low, high = self.exposure[at - 1 : at + 1]
        before, after = self.steps[at - 1 : at + 1]
        return float(before + (level - low) / (high - low) * (after - before))

    def told(self, level: float) -> str:
        """`steps_to`, for people: `12.4`, or `> 89` when the level was not reached."""
        found = self.steps_to(level)
        return f"{found:.1f}" if np.isfinite(found) else f"> {self.horizon}"


@dataclass(frozen=True)
class RelearnScore:
    """Steps to half exposure of a model, over those of the references."""

    value: float
    """Against the slowest reference, restricted to the horizon; 1 or more: not relearned faster than any of them."""
    bound: Literal["exact", "at least", "at most", "neither reached"]
    """What is known of the unrestricted ratio: the model was not relearned within the horizon (at least), the slowest reference
    was not (at most), or neither was, and then `value` is 1 and says that no difference was seen."""
    steps: float
    """Of the model; inf when it was not relearned."""
    references: tuple[float, ...]
    """Of each reference."""
    each: tuple[float, ...]
    """The restricted ratio to each reference."""


def relearn_score(subject: Relearned, references: Sequence[Relearned], half: float) -> RelearnScore:
    """steps_u / steps_g: how long the model resists, over how long models that never knew the concept take to learn it.

    A run that never gets to `half` is counted as if it had at the horizon (the restricted time), so that a ratio is never made of a
    number that nobody saw; `bound` says which way the truth lies. Of several references the slowest counts, the conservative side:
    a model passes (value >= 1) only if no reference resists longer. Two models that are there before any step are equal (1);
    a model that needs steps where a reference needs none is inf.

    Raises UsageError without references, for a half of 0, or for attacks that were not the same.
    """
    alike = all(
        other.kind == subject.kind
        and np.array_equal(other.steps, subject.steps)
        and other.values.shape == subject.values.shape
        and other.pairs == subject.pairs
        for other in references
    )
    if not references or not alike:
        raise UsageError(
            "Relearning can only be compared with references that went through the same attack.",
            "Attack every model with one configuration, in one world.",
        )
    own, theirs = subject.steps_to(half), tuple(other.steps_to(half) for other in references)
    each = tuple(_restricted(own, other, subject.horizon) for other in theirs)
    slowest = max(theirs)
    if np.isfinite(own):
        bound: Literal["exact", "at least", "at most", "neither reached"]
        bound = "exact" if np.isfinite(slowest) else "at most"
    else:
        bound = "at least" if np.isfinite(slowest) else "neither reached"
    return RelearnScore(min(each), bound, own, theirs, each)


def _restricted(own: float, other: float, horizon: int) -> float:
    own, other = min(own, horizon), min(other, horizon)
    if other == 0:
        return 1.0 if own == 0 else float("inf")
    return own / other


def relearn(
    model: AuditModel,
    world: AuditWorld,
    kind: Attack,
    config: RelearnConfig | None = None,
    observer: Observer = SILENT,
) -> Relearned:
    """Attack a copy of `model` and read, at the configured steps, how much of the concept it shows.

    The model stays as it is. Everything that is drawn comes from the world's seed; no state outside is read or changed.

    Raises:
        ConceptError: no item of the concept has a SID, so nothing can come back.
        DataError: no training interaction leads to the concept (forget), or none is without it (benign).
        CheckpointError: the model gives no finite loss or list.
    """
    from recerase.audit.attack import Attacker, attack_pairs, plan

    config = config or RelearnConfig()
    table = (model.table if config.side == "new" else model.old_table).unfiltered
    if not (world.members & table.present).any():
        raise ConceptError("No item of the concept has a SID, so there is nothing to relearn.", "Check the SID table.")
    pairs = attack_pairs(world, table, kind, model.recommender.window)
    read = _reader(model, world, config, table)
    values = np.empty((config.repeats, len(config.steps) + 1, config.histories))
    values[:] = read(Attacker(model, table, config).model)
    task = f"relearn {kind}"
    observer.start(task, config.repeats * config.steps[-1])
    for repeat in range(config.repeats):
        batches = plan(world.random(f"{task} {repeat}"), len(pairs), config)
        attacker = Attacker(model, table, config)
        for step, rows in enumerate(batches, start=1):
            loss = attacker.step(pairs.take(rows))
            if step in config.steps:
                values[repeat, config.steps.index(step) + 1] = read(attacker.model)
            observer.advance(task, 1, loss=loss)
    observer.finish(task)
    known = len(pairs) if config.shots is None else min(config.shots, len(pairs))
    return Relearned(kind, np.array([0, *config.steps], np.int64), values, known, config.side)


def _reader(
    model: AuditModel, world: AuditWorld, config: RelearnConfig, table: SidTable
) -> Callable[[Recommender], FloatArray]:
    """What reads [n] exposure@k off a recommender after the concept histories, which are the same for every model."""
    from recerase.model.decode import recommend
    from recerase.sid.trie import Trie

    case = saturated_case(replace(world, config=replace(world.config, saturated_histories=config.histories)))
    listed = (model.listed if config.side == "new" else table.listed) | world.members
    trie = Trie.build(table, listed & table.present)

    def read(recommender: Recommender) -> FloatArray:
        found = recommend(
            recommender, table, case.histories, k=config.k, beam=config.beam, trie=trie, batch=world.config.batch
        )
        if (found.items[:, 0] < 0).any():
            raise CheckpointError(
                f"The {model.role} model gives no finite probability in the relearning attack.",
                "Check its weights for NaN or overflow, or lower lr.",
            )
        return exposure(found.items, world.members, config.k)

    return read
