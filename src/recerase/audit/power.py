"""How well each metric tells models that were trained with a concept from models that were not, as it was measured.

The decision that shaped this file: the figures are made apart, by `make meta` on pools of small models (benchmarks/META.md),
and ship as data. A policy is free to gate on anything; it is told where what it gates on could not tell the pools apart, or
was never tried.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from recerase.audit.cards import card_of, metrics
from recerase.types import Rule

SCHEMA = "recerase.power/1"
LEAST = 0.9
"""The AUC from which on a metric may gate by default."""
TABLE_FACTS: Mapping[str, str] = MappingProxyType(
    {"aliasing.shared_sid": "it is read off the SID table, exactly, and is the same for every model that speaks it"}
)
"""Metrics that models cannot be told apart by, and that may gate all the same, and why."""


@dataclass(frozen=True)
class Power:
    """What a metric can tell."""

    auc: float | None
    """The chance that a model which knows the concept looks worse than one which does not; None: no way is better."""
    low: float | None
    high: float | None
    """The interval of `auc` at 95 %."""
    two_sided: float
    """The AUC whichever way the metric points, at least .5."""
    pool: str
    """What was told from models without the concept: `with` it, or a `filter` over the same weights."""
    n: tuple[int, int]
    """Models with and without."""

    @property
    def told(self) -> str:
        """In a few words: `AUC 1.00 [0.80, 1.00], filter against without, 10 + 10 models`."""
        models = f"{self.pool} against without, {self.n[0]} + {self.n[1]} models"
        if self.auc is None:
            return f"two-sided AUC {self.two_sided:.2f}, {models}"
        other = f" (two-sided {self.two_sided:.2f})" if self.auc < 0.5 else ""
        return f"AUC {self.auc:.2f} [{self.low:.2f}, {self.high:.2f}]{other}, {models}"


@functools.cache
def powers() -> Mapping[str, Power]:
    """The figure of every metric that has one, by its full name."""
    told = _shipped()
    n = tuple(told["n"])
    found = {
        name: Power(**{**dict.fromkeys(("auc", "low", "high")), **figure}, n=n)
        for name, figure in told["metrics"].items()
    }
    return MappingProxyType(found)


@functools.cache
def unmeasured() -> Mapping[str, str]:
    """Metrics that were tried and have no figure, and why."""
    return MappingProxyType(dict(_shipped()["no_figure"]))


def power_of_metric(name: str) -> str:
    """A metric's figure in words, or that it has none."""
    power = powers().get(name)
    return power.told if power is not None else f"no figure: {unmeasured().get(name, 'not tried')}"


def power_of_probe(probe: str) -> str:
    """The AUCs of a probe's metrics, those of one value together, the best first: `AUC 1.00: a, b; AUC 0.62: c`.

    Those of utility and those that are better neither way are left out: they say nothing of whether a concept is known.
    """
    by_value: dict[float, list[str]] = {}
    for name, spec in metrics().items():
        card, power = card_of(name), powers().get(name)
        if card is None or card.name != probe or spec.layer == "utility" or spec.better == "neither":
            continue
        value = power.auc if power is not None and power.auc is not None else -1.0
        by_value.setdefault(round(value, 2), []).append(name)
    said = []
    for value, names in sorted(by_value.items(), reverse=True):
        which = "all its metrics" if len(by_value) == 1 and len(names) > 3 else ", ".join(names)
        said.append(f"AUC {value:.2f}: {which}" if value >= 0 else f"no figure: {which}")
    return "; ".join(said) or "it has no metric about the concept"


def doubt_of(rule: Rule) -> str:
    """Why a rule that must be met rests on a metric which was not seen to tell the pools apart; nothing where it does not.

    Utility asks another question, and has no figure to reach.
    """
    spec, power = metrics().get(rule.metric), powers().get(rule.metric)
    if rule.optional or rule.metric in TABLE_FACTS or (spec is not None and spec.layer == "utility"):
        return ""
    if power is None:
        reason = unmeasured().get(rule.metric, "it was not tried")
        return f"how well it tells models that know a concept from models that do not is not known: {reason}"
    if power.auc is None:
        return "no way of it is better, so a limit on it says nothing of the concept"
    if power.auc < LEAST:
        return (
            f"it does not reach {LEAST:g} in telling models that know a concept from models that do not ({power.told})"
        )
    return ""


@functools.cache
def _shipped() -> dict[str, Any]:
    text = files("recerase.audit").joinpath("power.json").read_text(encoding="utf-8")
    told: dict[str, Any] = json.loads(text)
    return told
