"""What an erasing method is: one frozen configuration, one function, one line in the registry below.

A method gets an `EraseRequest` (values only; the model in it is never changed) and returns an `Erased`. Nothing here
reads or writes files, audits or prints; `api.erase` does the rest, the same for every method.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recerase.catalog.interactions import Interactions
from recerase.erase.overrides import parsed
from recerase.erase.precision import as_stored, in_single
from recerase.errors import ConceptError, EraseError, UsageError
from recerase.model.recommender import Recommender
from recerase.resume import Pieces
from recerase.sid.quantize import Codebooks
from recerase.sid.table import SidTable
from recerase.types import SILENT, BoolArray, FloatArray, IntArray, Observer, Scope

UNPRESSED = "presses for scope output alone: a history that holds the concept may go on informing what is recommended"
"""What is said, and put into the summary, where a method is asked for more than it does."""


@dataclass(frozen=True)
class EraseRequest:
    """All that a method may know."""

    model: Recommender
    """The original; read only."""
    table: SidTable
    interactions: Interactions
    concept: BoolArray
    """[N] True for items to erase."""
    embeddings: FloatArray | None = None
    """[N, D] frozen item embeddings."""
    codebooks: Codebooks | None = None
    scope: Scope = "output"
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    """The original's recorded training recipe (`model`, `training` keys), for methods that train again."""
    observer: Observer = SILENT
    state: Pieces | None = None
    """Where a method that can be continued keeps what it has finished."""
    offered: tuple[IntArray, ...] = ()
    """A level: codes that nobody uses and that have a row and a codeword made for this run; () when there are none."""
    needed: int | None = None
    """A code that some item must have on some level, whoever moves, for the other tool takes its model's shape from it."""


@dataclass(frozen=True)
class Erased:
    """What a method made."""

    model: Recommender
    table: SidTable
    summary: Mapping[str, Any]
    """Figures for the report: steps, losses, shares moved; JSON values only."""


@dataclass(frozen=True)
class Method:
    """The card of a method."""

    name: str
    target: str
    """`module:function`, imported when the method is run."""
    config: str
    """`module:Class`, a frozen dataclass."""
    changes: str
    gradients: bool
    cost: str
    source: str
    departs: str
    defaults: str = "untuned"
    """Where the default settings come from."""
    presets: tuple[str, ...] = ()
    moves: bool = False
    """Whether items get other SIDs, so that new vocabulary rows could be of use."""
    refuses: str = ""
    """`module:function` that says before any model is loaded which SIDs the method cannot work with; none: it takes all."""
    scope: str = "output alone"
    """The scopes that the method presses for, to be read; a config that knows more than `output` says so in `scopes`."""
    objective: str = ""
    """`module:function` from a request and settings to the `steps.Loss` that it goes down; none: it goes down none."""

    @property
    def facts(self) -> dict[str, str]:
        """What the card says to a person."""
        said = {
            "changes": self.changes,
            "gradients": "yes" if self.gradients else "no",
            "cost": self.cost,
            "source": self.source,
            "departs": self.departs,
            "defaults": self.defaults,
            "presses for": f"scope {self.scope}",
        }
        return {**said, "presets": ", ".join(self.presets)} if self.presets else said

    def check(self, table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None, config: Any) -> None:
        """Refuse, with UsageError, SIDs that `run` would refuse."""
        if self.refuses:
            typing.cast("Callable[..., None]", _load(self.refuses))(table, codebooks, embeddings, config)

    def loss(self, request: EraseRequest, config: Any) -> Any:
        """The `steps.Loss` that the method goes down for this request, or None where it goes down none."""
        return _load(self.objective)(request, config) if self.objective else None

    def config_class(self) -> type[Any]:
        return typing.cast("type[Any]", _load(self.config))

    def run(self, request: EraseRequest, config: Any) -> Erased:
        """Erase; a model of half precision is trained in float32, and rounded before it is returned.

        Raises:
            ConceptError: the concept holds no item, or none with a SID.
            EraseError: the method diverged; its own errors are in its docstring.
        """
        if not request.concept.any():
            raise ConceptError("The concept holds no item, so there is nothing to erase.", "Name items that there are.")
        if not (request.concept & request.table.present).any():
            raise ConceptError(
                "No item of the concept has a SID, so the model cannot recommend any.", "Name items that have one."
            )
        pressed = request.scope in getattr(config, "scopes", ("output",))
        if not pressed:
            request.observer.note(f"{self.name} {UNPRESSED}")
        function = typing.cast("Callable[[EraseRequest, Any], Erased]", _load(self.target))
        model = in_single(request.model) if self.gradients else request.model
        erased = function(dataclasses.replace(request, model=model), config)
        if model is not request.model:
            erased = dataclasses.replace(erased, model=as_stored(erased.model, request.model))
        if not all(bool(p.isfinite().all()) for p in erased.model.module.parameters()):
            raise EraseError(
                f"Method {self.name} diverged: some weights are no longer finite.",
                "Lower its learning rate, or its steps.",
            )
        return erased if pressed else dataclasses.replace(erased, summary={**erased.summary, "scope": UNPRESSED})


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
            cost="75 steps: 1.3 to 1.4 times npo's",
            source="TRACER, arXiv 2606.07688 (equations 5-11)",
            departs="preset paper: no. Preset default: AdamW, annealed tau, bounded losses, unique new SIDs by assignment, "
            "and a second phase that settles old and new SIDs at what the original gives to SIDs nobody ever had",
            defaults="preset default tuned on this project's benchmark, preset paper as published",
            presets=("default", "paper"),
            scope="output and influence; preset paper: output alone",
            moves=True,
            refuses="recerase.erase.tracer_config:check",
        ),
        Method(
            name="renormalise",
            target="recerase.erase.tracer:erase",
            config="recerase.erase.tracer_config:RenormaliseConfig",
            changes="weights",
            gradients=True,
            cost="120 steps: 1.7 to 2.1 times npo's",
            source="exact deletion and renormalisation of the original's own distribution",
            departs="no reassignment: TRACER's second phase alone",
            scope="output and influence",
            refuses="recerase.erase.tracer_config:check",
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
        ),
        Method(
            name="filter",
            target="recerase.erase.baselines:filter_only",
            config="recerase.erase.baselines:FilterConfig",
            changes="the list of items that may be recommended; not erasure",
            gradients=False,
            cost="none",
            source="what most shops do: a decoding trie without the concept",
            departs="nothing",
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


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
