"""The probes there are, a card each, the metrics they yield, and which of them a profile runs.

A new probe is a file of its own and a card in cards_quick.py or cards_wide.py.
The registry is explicit, lazy and frozen: "module:function", imported when run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from recerase.audit.card import CUTS, PROFILES, MetricSpec, ProbeCard
from recerase.audit.cards_quick import QUICK
from recerase.audit.cards_wide import WIDE
from recerase.errors import UsageError
from recerase.types import Measurement, Profile, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings

Probe = Callable[["Readings"], list[Measurement | Skipped]]

PROBES: Mapping[str, ProbeCard] = MappingProxyType({card.name: card for card in (*QUICK, *WIDE)})


def metrics(k: Sequence[int] = CUTS) -> Mapping[str, MetricSpec]:
    """Every metric the registry can yield at the cut-offs `k`, by its full name."""
    specs = [spec for card in PROBES.values() for spec in card.metrics]
    plain = {spec.name: spec for spec in specs if not spec.per_k}
    return {**plain, **{f"{spec.name}@{cut}": spec for spec in specs if spec.per_k for cut in k}}


def known_metrics(k: Sequence[int] = CUTS) -> set[str]:
    """The names a policy may use; what `policy.check_policy` is given."""
    return set(metrics(k))


def load_probe(name: str) -> Probe:
    """Import the probe called `name`. Raises UsageError with the nearest names when there is none."""
    if name not in PROBES:
        near = difflib.get_close_matches(name, PROBES, n=1)
        raise UsageError(
            f"There is no probe {name!r}.", f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(PROBES)}."
        )
    module, attribute = PROBES[name].function.split(":")
    probe: Probe = getattr(import_module(f"recerase.audit.{module}"), attribute)
    return probe


def card_of(metric: str) -> ProbeCard | None:
    """The card of the probe that yields a metric, whatever its cut-off; None where there is none."""
    stem = metric.partition("@")[0]
    yielding = (c for c in PROBES.values() if any(stem == spec.name.partition("@")[0] for spec in c.metrics))
    return next(yielding, None)


def cards_beyond(profile: Profile) -> tuple[ProbeCard, ...]:
    """The cards of the probes that a profile does not run, in the order of the registry."""
    run = probes_of(profile)
    return tuple(card for name, card in PROBES.items() if name not in run)


def probes_of(profile: Profile) -> tuple[str, ...]:
    """The names of the probes that a profile runs, in the order of the registry."""
    upto = PROFILES[: PROFILES.index(profile) + 1]
    return tuple(name for name, card in PROBES.items() if card.profile in upto)
