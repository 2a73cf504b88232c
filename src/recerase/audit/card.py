"""What a probe says of itself: its card and the metrics it yields.

The one decision: a card is words and numbers alone, so that a policy is checked against the names, and `recerase list probes`
answers, before torch is imported or a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recerase.types import Layer, Profile

Better = Literal["lower", "higher", "neither"]
CUTS = (5, 10, 20)
"""Cut-offs k of lists that are read unless others are asked for."""
PROFILES: tuple[Profile, ...] = ("quick", "standard", "thorough")
"""Each runs the probes of those before it."""


@dataclass(frozen=True)
class MetricSpec:
    """What a metric is called, which layer it speaks for, and which way is good."""

    name: str
    layer: Layer
    better: Better = "lower"
    per_k: bool = False
    """The name is a stem: the metric exists as `name@k` for each cut-off."""
    most: float = 1.0
    """The largest value that there is; the smallest is 0."""
    units: int | None = None
    """The most users or histories that its interval is made of, however many there are; None: as many as are read."""


@dataclass(frozen=True)
class ProbeCard:
    """A probe's card: what it asks, where the idea comes from, what it yields and where its code is."""

    name: str
    goal: str
    source: str
    metrics: tuple[MetricSpec, ...]
    function: str
    """`module:attribute` inside recerase.audit; imported when the probe is run."""
    how: str
    """How it is computed, in a sentence."""
    cost: str
    """What it costs a model, in lists, passes or steps."""
    misses: str
    """What a pass does not mean."""
    needs: tuple[Literal["embeddings", "codebooks", "original"], ...] = ()
    """Without these it yields nothing but a Skipped. Of an audit's other models a probe may use those in `Readings.beside`."""
    profile: Profile = "quick"
    """The first profile that runs it."""

    @property
    def facts(self) -> dict[str, str]:
        """What the card says to a person."""
        said = {
            "asks": self.goal,
            "how": self.how,
            "costs": self.cost,
            "source": self.source,
            "a pass does not mean": self.misses,
        }
        said |= {"needs": ", ".join(self.needs)} if self.needs else {}
        return {**said, "profile": f"{self.profile} and above" if self.profile != PROFILES[-1] else self.profile}


def masses_of(stem: str) -> tuple[MetricSpec, ...]:
    """The concept's exact mass under the old SIDs and the new ones."""
    return (MetricSpec(f"{stem}.mass.old", "behaviour"), MetricSpec(f"{stem}.mass.new", "behaviour"))


def exposure_of(stem: str, units: int | None = None) -> MetricSpec:
    """The concept's share of the list."""
    return MetricSpec(f"{stem}.exposure", "catalogue", per_k=True, units=units)
