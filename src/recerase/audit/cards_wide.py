"""The cards of the probes that only wider profiles run: searches, attacks, and what is read off the weights."""

from __future__ import annotations

import math

from recerase.audit.card import Better, MetricSpec, ProbeCard, exposure_of, masses_of

MARKS = (0, 1, 5, 21, 89)
"""Steps of the relearning attack after which exposure is a metric of its own; all that are read are in the report's curves."""


def _relearned(kind: str) -> tuple[MetricSpec, ...]:
    marks = (MetricSpec(f"relearn.{kind}.exposure@s{mark}", "weights", "neither") for mark in MARKS)
    return (*_steps(f"relearn.{kind}"), *marks)


def _steps(stem: str) -> tuple[MetricSpec, ...]:
    return (MetricSpec(f"{stem}.steps", "weights", "higher", most=MARKS[-1]), MetricSpec(f"{stem}.reached", "weights"))


def _coarser(name: str) -> tuple[MetricSpec, ...]:
    return tuple(MetricSpec(f"precision.{name}{part}", "weights") for part in ("exposure@10", "mass.old", "mass.new"))


_PROBED: tuple[tuple[str, Better], ...] = (
    ("auc", "lower"),
    ("mlp", "lower"),
    ("control", "neither"),
    ("selectivity", "lower"),
    ("mlp_selectivity", "lower"),
)

WIDE = (
    ProbeCard(
        "co_consumed",
        "Do items that people take with the concept bring it back?",
        "pointwise mutual information (Church & Hanks 1990) with the concept in the training interactions",
        (exposure_of("co_consumed"), *masses_of("co_consumed")),
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
            *(MetricSpec(f"depth.exposure@{k}", "catalogue", units=200) for k in (50, 100, 500)),
            MetricSpec("depth.first_rank.old", "behaviour", "higher", units=200),
            MetricSpec("depth.first_rank.new", "behaviour", "higher", units=200),
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
    ProbeCard(
        "worst_case",
        "How likely can an adversary make the concept by what he puts into a history?",
        "recerase: greedy search over histories; swaps proposed by gradients (HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023)",
        (
            *masses_of("worst_case"),
            MetricSpec("worst_case.mean.old", "behaviour", units=12),
            MetricSpec("worst_case.mean.new", "behaviour", units=12),
            MetricSpec("worst_case.any.old", "behaviour"),
            MetricSpec("worst_case.any.new", "behaviour"),
            exposure_of("worst_case", 12),
        ),
        "worst_case:worst_case",
        how="from 12 histories of up to 10 listed retained items, 24 rounds of one swap each: the gradient of the exact log-mass "
        "proposes 32, all are read, the best is made (any: with the concept's own items)",
        cost="9,000 exact masses and 300 gradients a search; two searches, twice as many where SIDs moved",
        misses="that no history is worse: what is found is a lower bound; read it beside a reference, which can be talked into it too",
        profile="standard",
    ),
    ProbeCard(
        "soft_prompt",
        "How likely can the concept be made by vectors that no item spells, in the place of a history?",
        "recerase: continuous prompts (Lester et al. 2021) against a recommender, in the norm of its own embeddings",
        masses_of("soft_prompt"),
        "soft_prompt:soft_prompt",
        how="from the worst histories of worst_case and from random ones, 60 steps up the gradient of the exact log-mass",
        cost="360 gradients of it, after worst_case; twice as many where SIDs moved",
        misses="that a longer ascent finds no more; and no server takes vectors: a reference can be talked into it too, so compare",
        profile="thorough",
    ),
    ProbeCard(
        "hidden",
        "Does the state after a history tell that a concept item was in it, or that one comes next?",
        "linear probes (Alain & Bengio 2017, arXiv 1610.01644), selectivity (Hewitt & Liang 2019, arXiv 1909.03368)",
        tuple(
            MetricSpec(f"hidden.{question}.{name}", "weights", better)
            for question in ("next", "history")
            for name, better in _PROBED
        ),
        "hidden:hidden",
        how="logistic regression and a small MLP fitted on the states after training histories, asked about held-out histories of "
        "other users; the same for 3 sets of retained items, as many and as popular",
        cost="two states for each of up to 3,000 training histories and 12,000 held-out ones, 80 fits of a second or less",
        misses="that no layer below the last holds it, and no classifier that has seen more finds it",
        profile="standard",
    ),
    ProbeCard(
        "membership",
        "Can it be told which interactions with the concept were trained on?",
        "loss, Min-K% (Shi et al. 2024, arXiv 2310.16789), Min-K%++ (Zhang et al. 2025, arXiv 2404.02936), "
        "offline likelihood ratio (Carlini et al. 2022, arXiv 2112.03570)",
        (
            *(
                MetricSpec(f"membership.{attack}.{what}", "weights")
                for attack in ("loss", "min_k", "min_k_plus", "ratio")
                for what in ("auc", "tpr")
            ),
            MetricSpec("membership.advantage", "weights"),
            MetricSpec("membership.new.auc", "weights"),
            MetricSpec("membership.heldout.auc", "weights"),
            MetricSpec("membership.retained.auc", "weights", "neither"),
        ),
        "membership:membership",
        how="training pairs that lead to the concept, beside the same histories with another, as popular concept item that "
        "the user never took; AUC, and hits at 1 % false alarms",
        cost="the SIDs of 4,000 pairs at most under each table, and of the held-out interactions with the concept",
        misses="that an attacker with many models of his own (full LiRA) learns nothing; that single users are safe",
        profile="standard",
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
    ProbeCard(
        "within",
        "Shown nothing but the concept, does the model know which of its items goes with whom?",
        "recerase: exact ranks among the concept's items alone, which no general suppression of the concept changes",
        (
            *(
                MetricSpec(f"within.{name}.{side}", "weights")
                for side in ("old", "new")
                for name in ("trained", "heldout", "top", "popular")
            ),
            MetricSpec("within.advantage", "weights"),
        ),
        "within:within",
        how="after histories without concept items: the share of the concept items a user never took that are ranked below the one he "
        "took, how often that is in the first tenth, and whether items with more training interactions are likelier",
        cost="the exact mass of 2,000 histories at most, twice as many where SIDs moved",
        misses="that a list of the concept alone, weighted by other knowledge (popularity, a second model), is useless. A model that "
        "never saw the concept has an order too, by what SIDs share and by chance: read it beside a reference",
        profile="standard",
    ),
)
