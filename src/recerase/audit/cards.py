"""The probes there are, a card each, the metrics they yield, and which of them a profile runs.

A new probe is a file of its own and a card here. The registry is explicit, lazy and frozen: "module:function", imported when run.
"""

from __future__ import annotations

import difflib
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


MARKS = (0, 1, 5, 21, 89)
"""Steps of the relearning attack after which exposure is a metric of its own; all that are read are in the report's curves."""


def _masses(stem: str) -> tuple[MetricSpec, ...]:
    return (MetricSpec(f"{stem}.mass.old", "behaviour"), MetricSpec(f"{stem}.mass.new", "behaviour"))


def _relearned(kind: str) -> tuple[MetricSpec, ...]:
    marks = (MetricSpec(f"relearn.{kind}.exposure@s{mark}", "weights", "neither") for mark in MARKS)
    return (*_steps(f"relearn.{kind}"), *marks)


def _steps(stem: str) -> tuple[MetricSpec, ...]:
    return (MetricSpec(f"{stem}.steps", "weights", "higher", most=MARKS[-1]), MetricSpec(f"{stem}.reached", "weights"))


def _coarser(name: str) -> tuple[MetricSpec, ...]:
    return tuple(MetricSpec(f"precision.{name}{part}", "weights") for part in ("exposure@10", "mass.old", "mass.new"))


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
        "relearn",
        "How soon does further training bring the concept back, on the concept's interactions and on all others?",
        "Lynch et al. 2024, arXiv 2402.16835; from harmless data: Hu et al. 2024, arXiv 2406.13356; for recommenders: recerase",
        (*_relearned("forget"), *_relearned("benign")),
        "relearn:relearn",
        how="a copy is trained further (AdamW, 3e-4, 32 pairs a step, 89 steps), the same pairs in the same order for every model; "
        "the step at which saturated histories show half of what the original's do, and exposure@10 on the way",
        cost="two attacks, four where SIDs moved: 89 steps and 11 readings of 1,000 lists each",
        misses="that another rate, longer training or better data does not; compare the steps with the reference's",
        profile="standard",
    ),
    ProbeCard(
        "relearn_few",
        "How soon does further training on 8 or 64 concept histories bring the concept back?",
        "as relearn, with few pairs, three draws of them",
        (*_steps("relearn_few.shots8"), *_steps("relearn_few.shots64")),
        "relearn:few",
        how="as relearn's forget attack, by somebody who has 8 or 64 pairs; the mean over three draws",
        cost="six attacks, twelve where SIDs moved",
        misses="that well chosen pairs do not: these are drawn",
        profile="thorough",
    ),
    ProbeCard(
        "precision",
        "Does rounding, pruning or noise bring the concept back?",
        "Zhang et al. 2024, arXiv 2410.16454 (4 bits restore what was unlearned); exact concept mass of each copy: recerase",
        (
            *_coarser(""),
            *(
                spec
                for name in ("stored", "bf16", "fp16", "int8", "int4", "pruned", "noise")
                for spec in _coarser(f"{name}.")
            ),
        ),
        "precision:precision",
        how="copies in bf16, fp16, int8 (a scale a row), int4 (a scale for 128 weights), without the smallest 30 % of weights, "
        "and with noise of .5 %; lists and exact mass, the concept in the trie; the worst of them, stored among them",
        cost="seven times the lists and twice the exact masses of 1,000 users",
        misses="that calibrated quantisers (GPTQ, AWQ) or other seeds of noise do not; only weights are rounded",
        profile="standard",
    ),
    ProbeCard(
        "forensics",
        "What does the checkpoint give away of what was erased, alone or beside the one of before?",
        "recerase: AUC of items ranked by row movement, row length, and change of exact log-probability",
        (
            *(MetricSpec(f"forensics.{way}.auc", "weights") for way in ("rows", "logprob", "norm", "alone")),
            MetricSpec("forensics.table.auc", "catalogue", "neither"),
            MetricSpec("forensics.moved", "weights", "neither"),
            MetricSpec("forensics.identical", "weights", "neither"),
        ),
        "forensics:forensics",
        how="all items ranked by how far their codes' rows moved, how much less likely their SID is than it was, whether it changed; "
        "and off the model alone by how long the rows are and how unlikely the SID is",
        cost="the exact log-probability of every item after 64 histories, twice where SIDs moved",
        misses="that a cleverer reader finds nothing. A reference is not at .5 either: compare with it",
        profile="standard",
    ),
    ProbeCard(
        "influence",
        "How much do a history's concept items move the rest of the list, beside as many other items?",
        "recerase: overlap@10 and rank-biased overlap (Webber et al. 2010) of retained items, matched drops in the same history",
        tuple(
            MetricSpec(f"influence.{name}", "behaviour", "neither")
            for name in ("history", "history.rbo", "matched.concept", "matched.other")
        ),
        "influence:influence",
        how="the list's retained items with and without the history's concept items, and without as many others nearby",
        cost="two lists for each of 1,000 users of the concept",
        misses="that single items move nothing. Under scope output a concept item may inform the rest: then it is no fault",
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
