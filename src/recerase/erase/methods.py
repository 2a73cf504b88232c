"""The methods there are, a card each, and how one is named and set.

A new method is a file of its own and a card here; what a card says is shown to people (`recerase list methods`, `--plan`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from recerase.erase.method import Method
from recerase.erase.overrides import parsed
from recerase.errors import UsageError

_STEPS: Mapping[str, tuple[float, ...]] = {"steps": (0.5, 2, 4), "lr": (0.3, 3)}
"""How strong a method of gradient steps is: how often it steps, and how far."""


def _stepwise(
    name: str,
    config: str,
    *,
    cost: str,
    source: str,
    departs: str,
    changes: str = "weights",
    defaults: str = "untuned",
    refuses: str = "recerase.erase.steps:check",
    strength: Mapping[str, tuple[float, ...]] | None = None,
) -> Method:
    """The card of a method of gradient steps (erase/steps.py), which leaves the SIDs as they are."""
    room = f"recerase.erase.{name.replace('-', '_')}"
    return Method(
        name=name,
        target=f"{room}:erase",
        config=f"{room}:{config}",
        changes=changes,
        gradients=True,
        cost=cost,
        source=source,
        departs=departs,
        defaults=defaults,
        refuses=refuses,
        objective=f"{room}:objective",
        strength=_STEPS if strength is None else strength,
    )


METHODS: Mapping[str, Method] = {
    m.name: m
    for m in (
        Method(
            name="tracer",
            target="recerase.erase.tracer:erase",
            config="recerase.erase.tracer_config:TracerConfig",
            changes="weights and the SIDs of the concept's items",
            gradients=True,
            cost="158 steps: 1.3 to 1.7 times npo's",
            source="TRACER, arXiv 2606.07688 (equations 5-11)",
            departs="preset paper: no. Preset default: AdamW, annealed tau, bounded losses, unique new SIDs by assignment, "
            "and a second phase that settles old and new SIDs, and single items, at what the original gives to SIDs nobody ever had",
            defaults="preset default tuned on this project's benchmark, preset paper as published",
            presets=("default", "paper"),
            scope="output and influence; preset paper: output alone",
            moves=True,
            refuses="recerase.erase.tracer_config:check",
            strength={"reassign_steps": (0.5, 2), "settle_steps": (0.5, 2, 4), "forget_weight": (0.3, 3)},
        ),
        Method(
            name="renormalise",
            target="recerase.erase.tracer:erase",
            config="recerase.erase.tracer_config:RenormaliseConfig",
            changes="weights",
            gradients=True,
            cost="150 steps: 1.0 to 1.3 times npo's",
            source="exact deletion and renormalisation of the original's own distribution",
            departs="no reassignment: TRACER's second phase alone",
            scope="output and influence",
            refuses="recerase.erase.tracer_config:check",
            strength={"settle_steps": (0.5, 2, 4), "settle_lr": (0.3, 3)},
        ),
        _stepwise(
            "npo",
            "NpoConfig",
            cost="100 steps of 64 pairs, however large the catalogue: 2.4 to 2.8 (causal) or 0.7 (T5) epochs over 28,000 interactions",
            source="Negative Preference Optimization, Zhang et al. 2024 (arXiv 2404.05868), with a retain NLL",
            departs="the retain NLL is the sum over an item's codes, not its mean over tokens, so it weighs more beside L_NPO",
        ),
        _stepwise(
            "simnpo",
            "SimNpoConfig",
            cost="a little under npo's: no reference is read",
            source="SimNPO, Fan et al. 2024 (arXiv 2410.07163), with a retain NLL",
            departs="a SID is the answer: the log-probability is divided by its number of codes, and so is the retain NLL",
            defaults="beta and forget_weight as published for texts, the rest untuned",
        ),
        _stepwise(
            "ga",
            "GaConfig",
            cost="a quarter of npo's: 50 steps, and nothing is read but D_F",
            source="gradient ascent on D_F, Jang et al. 2022 (arXiv 2210.01504)",
            departs="a pair under `floor` presses no more (published: unbounded, floor=-1e9); nothing holds what is to be kept",
        ),
        _stepwise(
            "graddiff",
            "GradDiffConfig",
            cost="four fifths of npo's: no reference is read",
            source="gradient difference, Liu et al. 2022 (arXiv 2203.12817): ascent on D_F, NLL on D_R",
            departs="a forget pair under `floor` presses no more (published: unbounded, floor=-1e9)",
        ),
        _stepwise(
            "undial",
            "UndialConfig",
            cost="about npo's",
            source="UNDIAL, Dong et al. 2024 (arXiv 2402.10052): self-distillation with the code's logit turned down",
            departs="a retain NLL is added, for codes are shared with retained items (published: retain_weight=0)",
            defaults="strength as published for texts, the rest untuned",
        ),
        _stepwise(
            "rmu",
            "RmuConfig",
            changes="the feed-forward outputs of up to three layers",
            cost="four fifths of npo's",
            source="RMU, Li et al. 2024 (arXiv 2403.03218): hidden states steered to a random direction",
            departs="read where codes are said, not at every token; the middle layer unless one is set, not one searched for; c 2 "
            "and retain_weight 1, as open-unlearning's (published: c 6.5 and more, retain_weight 1200)",
            strength={"steps": (0.5, 2, 4), "lr": (0.3, 3), "steering": (0.5, 3)},
        ),
        _stepwise(
            "e2urec",
            "E2urecConfig",
            cost="1.6 to 1.9 times npo's: a teacher is trained first, and two are read in each step",
            source="E2URec, Wang et al. 2024 (arXiv 2403.03536) and its authors' code",
            departs="all weights that may change, not new LoRA adapters; differences of log-probabilities, not of logits; no first "
            "epoch on D_F alone",
            defaults="alpha and weight as published, the rest untuned",
        ),
        _stepwise(
            "mmrecun",
            "MmRecUnConfig",
            cost="a little over npo's: no reference is read, but K negatives are scored beside each target",
            source="MMRecUn (arXiv 2405.15328): reverse BPR on D_F, BPR on D_R; a reconstruction",
            departs="scores are log-probabilities of SIDs; all K nearest items are negatives, none is drawn, and the user may have "
            "had them; no regularisers",
            refuses="recerase.erase.mmrecun:check",
        ),
        _stepwise(
            "task-vector",
            "TaskVectorConfig",
            cost="a fifth of npo's: a fine-tune of 50 steps on D_F and a subtraction",
            source="negated task vector, Ilharco et al. 2022 (arXiv 2212.04089)",
            departs="scale is given, not the largest that leaves a control task alone; nothing holds what is to be kept",
            strength={"steps": (0.5, 2, 4), "scale": (0.3, 3)},
        ),
        Method(
            name="scif",
            target="recerase.erase.scif:erase",
            config="recerase.erase.scif:ScifConfig",
            changes="weights",
            gradients=True,
            cost="half of npo's where `radius` ends it after two products with the Hessian of 256 pairs; there may be 200",
            source="Selective and Collaborative Influence Function, Li et al. 2023 (arXiv 2304.10199); a reconstruction",
            departs="all weights, not the embeddings concerned alone; Steihaug's conjugate gradients, for the Hessian is "
            "indefinite; gradients of samples; what is forgotten is given no averaged label; g_R stands beside g_F, which where "
            "training ended in an optimum is twice the influence of D_F",
            defaults="damping, iterations and radius as published, the rest untuned",
            refuses="recerase.erase.steps:check",
            strength={"radius": (0.3, 3, 10), "damping": (0.1, 10)},
        ),
        Method(
            name="u-can",
            target="recerase.erase.u_can:erase",
            config="recerase.erase.u_can:UCanConfig",
            changes="LoRA factors; of a model without any, the second matrix of each feed-forward layer",
            gradients=False,
            cost="one reading of up to 2 x 2048 pairs",
            source="U-CAN (arXiv 2602.23400): risky input dimensions are turned down, softly and once; a reconstruction",
            departs="its equations are METHODS 3's, not read in the paper; a dense model is not given factors first; a concept's "
            "pairs are D_F, not a quarter of the interactions",
            refuses="recerase.erase.steps:check",
        ),
        Method(
            name="unlearnrec",
            target="recerase.erase.unlearnrec:erase",
            config="recerase.erase.unlearnrec:UnlearnRecConfig",
            changes="the rows of codes that a request touches, in embeddings and head",
            gradients=True,
            cost="an influence encoder is trained first, once a checkpoint with `recerase prepare`; then a few steps a request",
            source="UnlearnRec, Chen et al. 2025 (arXiv 2505.22649); a reconstruction after a public port",
            departs="nodes are codes, not users and items of a graph recommender: codes are shared, so retained items move with the "
            "concept's; scores are log-probabilities above chance; requests are simulated from sub-tries and at random",
            refuses="recerase.erase.steps:check",
            prepares="recerase.erase.unlearnrec:prepare",
        ),
        Method(
            name="filter",
            target="recerase.erase.baselines:filter_only",
            config="recerase.erase.baselines:FilterConfig",
            changes="the list of items that may be recommended; not erasure",
            gradients=False,
            weights=False,
            cost="none",
            source="what most shops do: a decoding trie without the concept",
            departs="nothing",
            defaults="there are no settings",
        ),
        Method(
            name="cragru",
            target="recerase.erase.cragru:erase",
            config="recerase.erase.cragru:CragruConfig",
            changes="the list of items that may be recommended, and a filter that drops the concept's items from histories; no "
            "weight: plain transformers, which knows neither, serves the original",
            gradients=False,
            weights=False,
            cost="none",
            source="CRAGRU, Zhang et al. 2025 (arXiv 2511.05494): forgotten interactions are dropped where histories are retrieved",
            departs="the filter and nothing else: no base recommender, no LLM that ranks its candidates, no choice of what is read by "
            "preference, diversity or attention; native checkpoints alone carry it",
            defaults="there are no settings",
        ),
        Method(
            name="retrain",
            target="recerase.erase.baselines:retrain",
            config="recerase.erase.baselines:RetrainConfig",
            changes="weights, all of them; the concept's items lose their SIDs' listing",
            gradients=True,
            cost="one training",
            source="the reference: same recipe, same seed, without the concept's interactions",
            departs="the SIDs and the codebooks are those made with the concept",
            defaults="the recipe recorded in the checkpoint",
        ),
    )
}


def get_method(name: str) -> tuple[Method, str | None]:
    """The method and preset named by `tracer` or `tracer/paper`.

    Raises:
        UsageError: there is no such method or preset; the message offers the nearest.
    """
    base, _, preset = name.partition("/")
    if base not in METHODS:
        near = difflib.get_close_matches(base, METHODS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"There is no method {base!r}.", f"{hint}There are: {', '.join(METHODS)}.")
    method = METHODS[base]
    if preset and preset not in method.presets:
        offered = ", ".join(method.presets) or "none"
        raise UsageError(f"Method {base} has no preset {preset!r}.", f"Its presets: {offered}.")
    return method, preset or None


def make_config(method: Method, preset: str | None, pairs: Mapping[str, str]) -> Any:
    """The method's configuration with `pairs` (from `--set key=value`) laid over the preset.

    Raises:
        UsageError: an unknown preset; else as `overrides.parsed`.
    """
    kind = method.config_class()
    pairs = dict(pairs)
    preset = pairs.pop("preset", preset)
    if preset:
        get_method(f"{method.name}/{preset}")
    base = kind.preset(preset) if preset else kind()
    return dataclasses.replace(base, **parsed(method.name, kind, pairs))
