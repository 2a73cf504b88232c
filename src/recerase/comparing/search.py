"""Which setting of a method is taken: chosen on validation users, by a criterion that the report states.

The deciding choice is that nothing here can see a test user: a trial is read on the `valid` world alone, and the choice is a
pure function of what was read there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.comparing.apart import apart
from recerase.comparing.reading import Reading
from recerase.comparing.rows import NDCG
from recerase.report.compared import Trial
from recerase.stats import paired_drop
from recerase.types import Scope

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig


def criterion(max_drop: float, references: bool) -> str:
    """The rule of `choose`, in words."""
    forgetting = (
        "the concept mass nearest to the references' on the same users, two-sided"
        if references
        else "the least exposure@10, then the least concept mass (under the old or the new SIDs, whichever is more)"
    )
    return (
        "Among the settings whose NDCG@10 on retained items does not drop beyond doubt (the interval over validation users, paired) "
        f"by more than {100 * max_drop:g} % against the original: {forgetting}, then the least drop, then the earlier one. "
        "Where none stays within the limit: the least drop."
    )


def trial(
    method: str,
    scope: Scope,
    changed: Mapping[str, Any],
    reading: Reading,
    original: Reading,
    references: Sequence[Reading],
    config: AuditConfig,
) -> Trial:
    """What validation users say of one setting; of `references` the same users' readings."""
    if reading.failure:
        return Trial(method, scope, changed, failure=reading.failure)
    mass = max(float(reading.values[f"natural.mass.{side}"].mean()) for side in ("old", "new"))
    drop, surely = 0.0, None
    before, now = (x.values.get(NDCG, np.zeros(0)) for x in (original, reading))
    if before.size and before.mean() > 0:
        drop, interval = paired_drop(now, before, confidence=config.confidence, seed=config.seed)
        surely = interval.low
    leak = (float(reading.values["natural.exposure@10"].mean()), mass)
    away = apart([reading], references, config)
    return Trial(method, scope, changed, leak, drop, surely, None if away is None else away.value)


def choose(trials: Sequence[Trial], max_drop: float) -> int | None:
    """Which of a method's trials is taken; None when all failed."""
    alive = [i for i, found in enumerate(trials) if not found.failure]
    within = [i for i in alive if _least(trials[i]) <= max_drop]
    if within:
        return min(within, key=lambda i: (*_forgetting(trials[i]), trials[i].drop, i))
    return min(alive, key=lambda i: (trials[i].drop, *_forgetting(trials[i]), i), default=None)


def _least(found: Trial) -> float:
    return found.drop if found.surely is None else found.surely


def _forgetting(found: Trial) -> tuple[float, ...]:
    return found.leak if found.apart is None else (found.apart,)


def marked(trials: Sequence[Trial], taken: int | None) -> tuple[Trial, ...]:
    """The trials with the one that was taken marked."""
    return tuple(replace(found, chosen=i == taken) for i, found in enumerate(trials))
