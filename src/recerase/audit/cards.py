"""The probes there are, a card each, the metrics they yield, and which of them a profile runs.

A new probe is a file of its own and a card here. The registry is explicit, lazy and frozen: "module:function", imported when run.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from recerase.audit.card import CUTS, PROFILES, MetricSpec, ProbeCard
from recerase.errors import UsageError
from recerase.types import Measurement, Profile, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings

Probe = Callable[["Readings"], list[Measurement | Skipped]]


def _masses(stem: str) -> tuple[MetricSpec, ...]:
    return (MetricSpec(f"{stem}.mass.old", "behaviour"), MetricSpec(f"{stem}.mass.new", "behaviour"))


def _exposure(stem: str) -> MetricSpec:
    return MetricSpec(f"{stem}.exposure", "catalogue", per_k=True)


_CARDS = (
    ProbeCard(
        "natural",
        "How much of the concept do real users get, and how likely is it exactly?",
        "recerase: exposure and exact concept mass on the test histories",
        (
            _exposure("natural"),
            MetricSpec("natural.hit", "catalogue", per_k=True),
            _exposure("natural_concept_users"),
            *_masses("natural"),
            *_masses("natural_concept_users"),
        ),
        "natural:natural",
        how="beam search over the trie for all test users, one pass over the concept's sub-trie for a sample of them",
        cost="a list a test user, and the exact mass of 2,000 users at most",
        misses="that no other history brings the concept back: users are as they were",
    ),
    ProbeCard(
        "saturated",
        "Does a history of nothing but concept items bring the concept back?",
        "recerase: histories of 1..20 concept items, drawn by popularity",
        (_exposure("saturated"), *_masses("saturated")),
        "saturated:saturated",
        how="1 to 20 concept items drawn by popularity make a history; lists and exact mass after it",
        cost="1,000 lists and masses",
        misses="that no cleverer history does: see worst_case",
    ),
    ProbeCard(
        "neighbours",
        "Do the concept's nearest outside items bring the concept back?",
        "recerase: histories of the nearest outside items (faiss, cosine)",
        (_exposure("neighbours"), *_masses("neighbours")),
        "neighbours:neighbours",
        how="histories of the nearest outside items by embedding; lists and exact mass after them",
        cost="1,000 lists and masses",
        misses="that items near in taste and far in words do not: see co_consumed",
        needs=("embeddings",),
    ),
    ProbeCard(
        "replay",
        "Does a stale client that still sends and reads the old SIDs get the concept?",
        "recerase: the old table on the input and on the output side",
        (MetricSpec("replay.exposure", "behaviour", per_k=True), MetricSpec("replay.mass.old", "behaviour")),
        "replay:replay",
        how="histories and output spelled by the SIDs from before the erasure",
        cost="a list a test user, and the exact mass of 2,000 at most",
        misses="anything where nothing moved: then it repeats natural",
    ),
    ProbeCard(
        "nearest",
        "Whatever is generated without a trie, does it mean the concept?",
        "recerase: nearest catalogue item (faiss) to the generated SID's point in the quantiser's space",
        (
            MetricSpec("nearest.leak@r10", "behaviour"),
            MetricSpec("nearest.leak@r25", "behaviour"),
            MetricSpec("nearest.leak@r50", "behaviour"),
            MetricSpec("nearest.random", "behaviour", "neither"),
        ),
        "nearest:nearest",
        how="SIDs generated without a trie, their codewords summed, and the nearest catalogue item looked up with faiss",
        cost="20 generations a test user",
        misses="more than the quantiser's space can tell apart",
        needs=("embeddings", "codebooks"),
    ),
    ProbeCard(
        "free",
        "Without a trie, how often is the SID invalid, and how often is it a concept item's old one?",
        "recerase: beam search over the whole vocabulary",
        (MetricSpec("free.invalid", "utility"), MetricSpec("free.old_concept", "behaviour")),
        "free:free",
        how="beam search over the whole vocabulary",
        cost="20 generations a test user",
        misses="that a longer search finds none",
    ),
    ProbeCard(
        "aliasing",
        "Do concept items share a SID, or all codes but the last, with retained items?",
        "recerase: exact, over the current table",
        (MetricSpec("aliasing.shared_sid", "catalogue"), MetricSpec("aliasing.shared_prefix", "catalogue", "neither")),
        "aliasing:aliasing",
        how="SIDs and their prefixes compared, exactly",
        cost="nothing: no model is asked",
        misses="that what the model knows below a shared prefix is gone",
    ),
    ProbeCard(
        "utility",
        "Are retained items still recommended to those who want them?",
        "recall@k and ndcg@k (Jarvelin & Kekalainen 2002) on the last interaction, retained targets only",
        (
            MetricSpec("utility.recall", "utility", "higher", per_k=True),
            MetricSpec("utility.ndcg", "utility", "higher", per_k=True),
            MetricSpec("utility_concept_users.ndcg", "utility", "higher", per_k=True),
            MetricSpec("utility_neighbours.ndcg", "utility", "higher", per_k=True),
            MetricSpec("utility.coverage", "utility", "higher", per_k=True),
        ),
        "utility:utility",
        how="the held-out last interaction looked up in the list",
        cost="nothing beyond natural's lists",
        misses="that single users lost nothing",
    ),
    ProbeCard(
        "earlier",
        "Do concepts that were erased before this one stay out?",
        "recerase: exposure and exact mass of their items, under the SIDs they have and those they had",
        (_exposure("earlier"), *_masses("earlier")),
        "earlier:earlier",
        how="as natural, for the items of earlier concepts",
        cost="the exact mass of 2,000 users at most",
        misses="that attacks on the earlier concepts fail: audit each of them for that",
    ),
    ProbeCard(
        "co_consumed",
        "Do items that people take with the concept bring it back?",
        "pointwise mutual information (Church & Hanks 1990) with the concept in the training interactions",
        (_exposure("co_consumed"), *_masses("co_consumed")),
        "co_consumed:co_consumed",
        how="histories of the retained items that stand beside the concept most above chance; lists and exact mass after them",
        cost="1,000 lists and masses",
        misses="that rarer items do not: those with fewer than five training interactions are left out",
        profile="standard",
    ),
    ProbeCard(
        "depth",
        "How far down the list does the concept begin?",
        "recerase: every listed item scored, no beam",
        (
            *(MetricSpec(f"depth.exposure@{k}", "catalogue") for k in (50, 100, 500)),
            MetricSpec("depth.first_rank.old", "behaviour", "higher"),
            MetricSpec("depth.first_rank.new", "behaviour", "higher"),
        ),
        "depth:depth",
        how="the exact score of every item, and the place of the likeliest concept item among the retained, as a share of them",
        cost="one pass over the whole trie for 200 users",
        misses="that no user was missed: it is a sample; nor anything below rank 500 of a list in a catalogue above 50,000 items",
        profile="standard",
    ),
    ProbeCard(
        "forced_prefix",
        "Given the first codes of a concept item's SID, does the model write the rest?",
        "extraction strength (Carlini et al. 2021), beside retained items of the same popularity",
        (
            *(
                MetricSpec(f"forced_prefix.{kind}.{side}", "behaviour")
                for kind in ("strength", "trie", "empty", "over")
                for side in ("old", "new")
            ),
            MetricSpec("forced_prefix.retained", "behaviour", "neither"),
        ),
        "forced_prefix:forced_prefix",
        how="the SID's own codes are given one after another, and it is looked whether each next one is the likeliest",
        cost="a pass over three SIDs after 1,000 histories, and over each concept item's after none",
        misses="that sampling, which writes less likely codes as well, does not get there",
        profile="standard",
    ),
    ProbeCard(
        "spill",
        "Did the erasure take near misses along, and did it reach beyond the request?",
        "recerase: exact mass and exposure of the nearest retained items, beside the original",
        (
            MetricSpec("spill.exposure", "utility", "neither", per_k=True),
            MetricSpec("spill.mass", "utility", "neither"),
            MetricSpec("spill.lost.exposure", "utility", per_k=True),
            MetricSpec("spill.lost.mass", "utility"),
            MetricSpec("spill.gained.mass", "utility", "neither", most=math.inf),
            MetricSpec("spill.held_out.exposure", "behaviour", "neither", per_k=True),
            MetricSpec("spill.held_out.mass", "behaviour", "neither"),
        ),
        "spill:spill",
        how="the five nearest retained items of every concept item, as natural reads the concept; paired with the original",
        cost="the exact mass of 2,000 users at most, over several times as many items as the concept has",
        misses="that items near in taste and far in words were spared",
        needs=("embeddings",),
        profile="standard",
    ),
)

PROBES: Mapping[str, ProbeCard] = MappingProxyType({card.name: card for card in _CARDS})


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


def probes_of(profile: Profile) -> tuple[str, ...]:
    """The names of the probes that a profile runs, in the order of the registry."""
    upto = PROFILES[: PROFILES.index(profile) + 1]
    return tuple(name for name, card in PROBES.items() if card.profile in upto)
