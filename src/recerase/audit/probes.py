"""What an audit is made of: the models it reads, and the world it reads them in.

The decision that shaped this file: a probe is `Readings -> list[Measurement | Skipped]` and nothing else. It measures,
and never decides, prints or writes. Which probes there are is in cards.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from recerase.audit.card import CUTS
from recerase.audit.cards import metrics
from recerase.errors import DataError, UsageError
from recerase.types import BoolArray, FloatArray, IntArray, Interval, Measurement, Profile, Role, Scope, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings
    from recerase.catalog.concept import Concept
    from recerase.catalog.interactions import Catalogue, Histories
    from recerase.model.recommender import Recommender
    from recerase.sid.quantize import Codebooks
    from recerase.sid.table import SidTable


@dataclass(frozen=True, eq=False)
class AuditModel:
    """One model of an audit: the audited checkpoint, or one it is held against."""

    role: Role
    recommender: Recommender
    table: SidTable
    """The current table, all SIDs: it encodes histories, and is what the model may generate."""
    old_table: SidTable
    """The table before erasure; the same as `table` for an original, a filter and a reference."""
    listed: BoolArray
    """[N] items that may be recommended (in the trie)."""
    reads_concept: bool = True
    """False for a reference: it never saw a concept item, so its histories are given without them."""
    digest: str = ""
    """Digest of the checkpoint; two models with the same digest share their readings. Empty: known by object only."""


@dataclass(frozen=True)
class AuditConfig:
    """How much is measured; counts are upper bounds, and what there is less of is measured whole."""

    k: tuple[int, ...] = CUTS
    """Cut-offs of exposure, recall and ndcg; the exposure rules of the shipped policy need 10."""
    beam: int | None = None
    """Beam width of constrained decoding; None: the decoder's own, at least twice the largest k."""
    max_users: int | None = None
    """Users whose lists are read; None: all of them."""
    mass_users: int = 1000
    """Users whose exact concept mass is read; and as many again among the users of the concept."""
    saturated_histories: int = 1000
    """Synthetic histories of the saturated and of the neighbours probe (each)."""
    saturated_items: int = 20
    """Longest saturated history: m runs through 1..saturated_items."""
    neighbours: int = 20
    """Nearest outside items a concept item from which a neighbours history is drawn."""
    target_neighbours: int = 5
    """Nearest outside items a concept item whose users make up the `utility_neighbours` segment."""
    free_beam: int = 20
    """Generations a user without a trie."""
    depth_users: int = 200
    """Users for whom the depth probe scores every listed item."""
    worst_items: int = 10
    """Most items of a history that the worst_case and soft_prompt probes search for; at most the model's window."""
    worst_starts: int = 12
    """Histories that a search begins from."""
    worst_rounds: int = 24
    """Rounds of a search; in each of them every history exchanges one item at most."""
    profile: Profile = "quick"
    """Which probes are run."""
    seed: int = 0
    confidence: float = 0.95
    batch: int = 64
    mass_batch: int = 16


@dataclass(frozen=True, eq=False)
class Earlier:
    """Items that were erased with concepts before the audited one: neither in it nor retained."""

    members: BoolArray
    """[N] none of them a concept item."""
    sids: IntArray
    """[N, L] the SIDs they had before, where they have others now; else -1."""


@dataclass(frozen=True, eq=False)
class AuditWorld:
    """What every model of one audit is read on. Probes never draw users: they read `histories`, in this order."""

    catalogue: Catalogue
    concept: Concept
    embeddings: FloatArray | None
    """[N, D] text embeddings the SIDs were made from; None: probes that need them are skipped."""
    codebooks: Codebooks | None
    histories: Histories
    """Test histories (all but the last item) and targets, the same users in the same order for every role."""
    scope: Scope = "output"
    config: AuditConfig = field(default_factory=AuditConfig)
    earlier: Earlier | None = None
    """Items that were erased with concepts before this one; None: there are none."""
    held_out: BoolArray | None = None
    """[N] items of the concept's kind that were not in the request, and count as retained; None: none are known."""

    @property
    def members(self) -> BoolArray:
        """[N] true for concept items."""
        return self.concept.members

    @property
    def out(self) -> BoolArray:
        """[N] true for items of this concept and of earlier ones: what a reference never saw."""
        return self.members if self.earlier is None else self.members | self.earlier.members

    @property
    def retained(self) -> BoolArray:
        """[N] true for items of no concept."""
        return ~self.out

    def random(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the seed and on what it is for, and on nothing that ran before."""
        return np.random.default_rng([self.config.seed, *purpose.encode()])


def build_world(
    catalogue: Catalogue,
    concept: Concept,
    *,
    embeddings: FloatArray | None = None,
    codebooks: Codebooks | None = None,
    scope: Scope = "output",
    config: AuditConfig | None = None,
    part: Literal["test", "valid"] = "test",
    earlier: Earlier | None = None,
) -> AuditWorld:
    """Take the test users of a catalogue, at most `config.max_users` of them drawn with its seed, in their own order.

    `part` valid takes every user one interaction earlier: what settings are chosen on, so that the test stays unseen.

    Raises UsageError when the config asks for nothing, DataError when no user has a test interaction or the concept
    or the embeddings have another number of items than the catalogue.
    """
    config = config or AuditConfig()
    _check_config(config)
    n = len(catalogue.items)
    if concept.members.shape != (n,):
        raise DataError(f"The concept marks {concept.members.size} items, the catalogue has {n}.", "Parse it again.")
    if embeddings is not None and embeddings.shape[0] != n:
        raise DataError(
            f"There are {embeddings.shape[0]} embeddings for {n} items.", "Give one embedding an item, in its order."
        )
    split = catalogue.interactions.split()
    histories = split.test if part == "test" else split.valid
    if len(histories) == 0:
        raise DataError("No user has a test interaction.", "Each user needs three interactions to be tested on.")
    if config.max_users is not None and config.max_users < len(histories):
        rng = np.random.default_rng([config.seed, *b"users"])
        histories = histories.take(np.sort(rng.permutation(len(histories))[: config.max_users]))
    return AuditWorld(catalogue, concept, embeddings, codebooks, histories, scope, config, earlier)


def _check_config(config: AuditConfig) -> None:
    counts = ("mass_users", "saturated_histories", "saturated_items", "neighbours", "target_neighbours", "free_beam")
    searched = ("depth_users", "worst_items", "worst_starts", "worst_rounds")
    wrong = [name for name in (*counts, *searched, "batch", "mass_batch") if getattr(config, name) < 1]
    wrong += ["max_users"] if config.max_users is not None and config.max_users < 1 else []
    wrong += ["k"] if not config.k or min(config.k) < 1 else []
    wrong += ["confidence"] if not 0 < config.confidence < 1 else []
    if wrong:
        raise UsageError(f"These audit settings are out of range: {', '.join(wrong)}.", "Counts start at 1.")


def measured(readings: Readings, metric: str, values: FloatArray | IntArray | BoolArray) -> Measurement | Skipped:
    """The mean of `values` [n], one a unit, as a Measurement, with `interval_of`; Skipped when there is no unit."""
    role = readings.model.role
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return Skipped(metric, role, "there is no user or history to measure it on")
    interval = interval_of(values, readings.world.config)
    return _measurement(readings, metric, float(values.mean()), values.size, interval, values)


def interval_of(values: FloatArray, config: AuditConfig) -> Interval:
    """Where the mean of `values` [n], one a unit, lies: Wilson's interval where every value is 0 or 1, else the bootstrap's.

    With nothing but zeros both give the upper bound -ln(1 - confidence) / n.
    """
    from recerase.stats import bootstrap_mean, wilson

    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), values.size, config.confidence)
    return bootstrap_mean(values, config.confidence, seed=config.seed)


def counted(readings: Readings, metric: str, value: float, n: int, *, exact: bool = False) -> Measurement:
    """A number that is no mean over units: without interval, or (`exact`) read off everything there is."""
    interval = Interval(value, value, readings.world.config.confidence, "exact") if exact else None
    return _measurement(readings, metric, value, n, interval, None)


def _measurement(
    readings: Readings, metric: str, value: float, n: int, interval: Interval | None, values: FloatArray | None
) -> Measurement:
    spec = metrics(readings.world.config.k)[metric]
    return Measurement(metric, readings.model.role, value, n, spec.layer, interval, better=spec.better, values=values)
