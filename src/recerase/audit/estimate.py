"""About how long an audit will take on this model and this machine, probe by probe, before it starts.

The one decision: nothing is known of a model's speed but what a few readings of it show. A first small block of lists, of exact
masses and of free generations is timed on the audited model, and multiplied by how many of each a probe makes (`WORK`, what the
cards say in words). So it is about: the other models are taken to be as fast, training steps are counted in lists, intervals and
what an interrupted run had kept are left out. The readings are thrown away and nothing is drawn, so no number depends on them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from recerase.audit.cards import probes_of
from recerase.audit.cases import concept_users_case, mass_users
from recerase.audit.probes import AuditConfig
from recerase.audit.readings import Readings
from recerase.parallel import workers
from recerase.types import IntArray

_FIRST, _MOST = 4, 256
"""Histories of the first timed block, and of the largest; each is four times the one before."""
_LONG = 0.3
"""Seconds of a block that is long enough to be believed; and what is not worth timing better."""


@dataclass(frozen=True)
class Work:
    """What a probe asks of one model, beyond what probes before it have read already."""

    lists: float = 0
    masses: float = 0
    free: float = 0


@dataclass(frozen=True)
class Asked:
    """One model of an audit as the counts see it."""

    users: int
    """Test users whose lists are read."""
    sample: int
    """Users whose exact mass is read."""
    concept_users: int
    synthetic: int
    """Synthetic histories a probe."""
    reads_concept: bool
    """False for a reference, to which a history of nothing but the concept is empty."""
    moved: bool
    """Whether its SIDs are others than those before the erasure: everything old is then read apart."""
    listed_anew: bool
    """False for a model whose lists another role has been asked for."""
    weighed_anew: bool
    """False for a model whose weights another role has: its masses and generations are there."""
    has_embeddings: bool
    has_codebooks: bool
    has_earlier: bool
    config: AuditConfig
    breadth: float = 1.0
    """Items of the catalogue for each item of the concept: what reading all of them costs beside reading those."""

    @property
    def sides(self) -> int:
        """Tables that a mass is read under."""
        return 2 if self.moved else 1


def _natural(a: Asked) -> Work:
    return Work(lists=a.users, masses=a.sample * a.sides)


def _synthetic(a: Asked) -> Work:
    return Work(lists=a.synthetic, masses=a.synthetic * a.sides)


def _saturated(a: Asked) -> Work:
    return _synthetic(a) if a.reads_concept else Work()


def _neighbours(a: Asked) -> Work:
    return _synthetic(a) if a.has_embeddings else Work()


def _replay(a: Asked) -> Work:
    return Work(lists=a.users, masses=a.sample) if a.moved else Work()


def _nearest(a: Asked) -> Work:
    return Work(free=a.concept_users) if a.has_embeddings and a.has_codebooks else Work()


def _free(a: Asked) -> Work:
    return Work() if a.has_embeddings and a.has_codebooks else Work(free=a.concept_users)


def _earlier(a: Asked) -> Work:
    return Work(masses=2 * a.sample) if a.has_earlier else Work()


def _depth(a: Asked) -> Work:
    return Work(masses=min(a.users, a.config.depth_users) * a.breadth)


def _spill(a: Asked) -> Work:
    return Work(masses=a.config.target_neighbours * a.sample) if a.has_embeddings else Work()


def _worst_case(a: Asked) -> Work:
    return Work(masses=2 * 32 * a.config.worst_starts * a.config.worst_rounds * a.sides)


def _relearn(a: Asked, attacks: int = 2) -> Work:
    """89 steps of 32 pairs, a pair as a list, and the lists that are read on the way."""
    return Work(lists=attacks * a.sides * (89 * 32 + 11 * a.synthetic))


def _precision(a: Asked) -> Work:
    users = min(a.users, 1000)
    return Work(lists=7 * users, masses=7 * a.sides * users)


def _nothing(a: Asked) -> Work:
    return Work()


WORK: Mapping[str, Callable[[Asked], Work]] = MappingProxyType(
    {
        "natural": _natural,
        "saturated": _saturated,
        "neighbours": _neighbours,
        "replay": _replay,
        "nearest": _nearest,
        "free": _free,
        "aliasing": _nothing,
        "utility": _nothing,
        "earlier": _earlier,
        "co_consumed": _synthetic,
        "depth": _depth,
        "forced_prefix": lambda a: Work(masses=3000 * a.sides),
        "spill": _spill,
        "worst_case": _worst_case,
        "soft_prompt": lambda a: Work(masses=3 * 720 * a.sides),
        "hidden": lambda a: Work(masses=3000 + 2 * min(a.users, 6000)),
        "membership": lambda a: Work(masses=2000 * a.sides),
        "relearn": _relearn,
        "relearn_few": lambda a: _relearn(a, 6),
        "precision": _precision,
        "forensics": lambda a: Work(masses=64 * a.breadth * a.sides),
        "influence": lambda a: Work(lists=2 * min(a.concept_users, 1000)),
        "within": lambda a: Work(masses=2000 * a.sides),
    }
)
"""Probe -> what it asks of a model: those of the quick profile exactly, others as the nearest number of such readings. A probe that is
not here is told as one whose time is not known."""


@dataclass(frozen=True)
class Speeds:
    """Seconds a reading of one history takes."""

    lists: float
    masses: float
    free: float

    def of(self, work: Work) -> float:
        """Seconds that some work takes."""
        return work.lists * self.lists + work.masses * self.masses + work.free * self.free


@dataclass(frozen=True)
class Estimate:
    """About how long an audit takes."""

    profile: str
    roles: tuple[str, ...]
    seconds: Mapping[str, float]
    """Probe -> seconds on all models together; in the order in which they are run."""
    unknown: tuple[str, ...]
    """Probes whose time is not known."""

    @property
    def told(self) -> str:
        """One line for a person."""
        parts = ", ".join(f"{name} {duration(spent)}" for name, spent in self.seconds.items())
        counts = Counter(self.roles)
        roles = ", ".join(role if n == 1 else f"{n} {role}s" for role, n in counts.items())
        models = f"{len(self.roles)} model{'s' if len(self.roles) > 1 else ''} ({roles})"
        more = f"; how long {', '.join(self.unknown)} take is not known" if self.unknown else ""
        return f"{self.profile} profile on {models}: about {duration(sum(self.seconds.values()))} ({parts}){more}"


def duration(seconds: float) -> str:
    """A guess of a time as one says it: `< 1 s`, `40 s`, `12 min`, `3.5 h`."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def estimated(readings: Sequence[Readings]) -> Estimate:
    """How long the probes of the profile take on these models, from a few timed readings of the first of them.

    Takes under a second or two (one block of four histories at least, whatever the model). Raises as the readings do.
    """
    profile = readings[0].world.config.profile
    names = probes_of(profile)
    asked = _asked(readings)
    whole = [WORK[name](a) for name in names if name in WORK for a in asked]
    speeds = _speeds(readings[0], Work(*(sum(getattr(w, kind) for w in whole) for kind in ("lists", "masses", "free"))))
    seconds = {
        name: sum(_spent(WORK[name](a), a, speeds) for a in asked) / workers().size for name in names if name in WORK
    }
    return Estimate(profile, tuple(r.model.role for r in readings), seconds, tuple(n for n in names if n not in WORK))


def _spent(work: Work, asked: Asked, speeds: Speeds) -> float:
    lists = work.lists if asked.listed_anew else 0
    masses, free = (work.masses, work.free) if asked.weighed_anew else (0, 0)
    return speeds.of(Work(lists, masses, free))


def _asked(readings: Sequence[Readings]) -> list[Asked]:
    found: list[Asked] = []
    weights: set[object] = set()
    lists: set[object] = set()
    for reading in readings:
        model, world = reading.model, reading.world
        key = (model.digest or id(model.recommender), model.reads_concept)
        listing = (*key, model.table.codes.tobytes(), model.listed.tobytes())
        sample, users = mass_users(world), len(world.histories)
        found.append(
            Asked(
                users=users,
                sample=len(sample.rows),
                concept_users=len(concept_users_case(world)),
                synthetic=world.config.saturated_histories,
                reads_concept=model.reads_concept,
                moved=bool(model.old_table.moved(model.table).any()),
                listed_anew=listing not in lists,
                weighed_anew=key not in weights,
                has_embeddings=world.embeddings is not None,
                has_codebooks=world.codebooks is not None,
                has_earlier=world.earlier is not None,
                config=world.config,
                breadth=len(world.members) / max(1, int(world.members.sum())),
            )
        )
        weights.add(key)
        lists.add(listing)
    return found


def _speeds(reading: Readings, whole: Work) -> Speeds:
    """Timed on histories spread over all users of the world."""
    from recerase.model.decode import generate_free, recommend
    from recerase.model.mass import concept_mass
    from recerase.sid.trie import Trie

    model, world = reading.model, reading.world
    config, table = world.config, model.table
    listed = model.listed & table.present
    trie = Trie.build(table, listed) if listed.any() else None
    members = world.members & table.present
    histories = world.histories if model.reads_concept else world.histories.without(world.out)

    def lists(rows: IntArray) -> None:
        recommend(
            model.recommender,
            table,
            histories.take(rows),
            k=max(config.k),
            beam=config.beam,
            trie=trie,
            batch=config.batch,
        )

    def masses(rows: IntArray) -> None:
        concept_mass(model.recommender, table, members, histories.take(rows), batch=config.mass_batch)

    def free(rows: IntArray) -> None:
        generate_free(model.recommender, table, histories.take(rows), beam=config.free_beam, batch=config.batch)

    n = len(histories)
    return Speeds(
        lists=_timed(lists, n, whole.lists) if trie is not None and whole.lists else 0.0,
        masses=_timed(masses, n, whole.masses) if members.any() and whole.masses else 0.0,
        free=_timed(free, n, whole.free) if whole.free else 0.0,
    )


def _timed(read: Callable[[IntArray], object], users: int, count: float) -> float:
    """Seconds a history, of blocks of growing size until one is long enough, is all there is, or is not worth a longer one."""
    size = _FIRST
    read(_spread(users, 1))  # what is only done once is no part of a rate
    while True:
        rows = _spread(users, size)
        began = time.monotonic()
        read(rows)
        spent = time.monotonic() - began
        rate = spent / len(rows)
        if spent >= _LONG or len(rows) == users or size >= _MOST or rate * count < _LONG:
            return rate
        size *= 4


def _spread(users: int, size: int) -> IntArray:
    """At most `size` positions among `users`, evenly spread."""
    return np.unique(np.linspace(0, users - 1, min(size, users)).astype(np.int64))
