"""What an erasing method is: one frozen configuration, one function, one card.

A method gets an `EraseRequest` (values only; the model in it is never changed) and returns an `Erased`. Nothing here
reads or writes files, audits or prints; `api.erase` does the rest, the same for every method.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recerase.catalog.interactions import Interactions
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
class Prepared:
    """What a method learnt of a checkpoint before any request, to answer each of them faster."""

    tensors: Mapping[str, FloatArray]
    facts: Mapping[str, Any]
    """Settings and figures; JSON values only."""


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
    prepared: Prepared | None = None
    """What the method itself has prepared for this checkpoint; None: nothing."""
    offered: tuple[IntArray, ...] = ()
    """A level: codes that nobody uses and that have a row and a codeword made for this run; () when there are none."""
    needed: int | None = None
    """A code that some item must have on some level, whoever moves, for the other tool takes its model's shape from it."""
    gone: BoolArray | None = None
    """[N] items of concepts that were erased before: never a retained target, and no move of theirs; None: nothing was."""
    left: IntArray | None = None
    """[n, L] SIDs that items of those concepts had, and that no item may get; None: none."""

    @property
    def earlier(self) -> BoolArray:
        """[N] `gone`, without what is to be erased now."""
        return np.zeros(len(self.concept), bool) if self.gone is None else self.gone & ~self.concept

    @property
    def out(self) -> BoolArray:
        """[N] items that the result is not to know: the concept and those of earlier ones."""
        return self.concept | self.earlier


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
    strength: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What a search of its strength may change: setting -> factors on the value it has; whole numbers are rounded."""
    weights: bool = True
    """Whether weights change; without gradients they may, too."""
    prepares: str = ""
    """`module:function` from a request without a concept and settings to what is `Prepared`; none: there is nothing to prepare."""

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
        if self.strength:
            told = (f"{name} x{', '.join(f'{factor:g}' for factor in by)}" for name, by in self.strength.items())
            said["strength"] = "; ".join(told)
        return {**said, "presets": ", ".join(self.presets)} if self.presets else said

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that what the method makes comes from."""
        named = (self.target, self.config, self.refuses, self.objective, self.prepares, f"{__name__}:")
        return tuple(dict.fromkeys(path.partition(":")[0] for path in named if path))

    def check(self, table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None, config: Any) -> None:
        """Refuse, with UsageError, SIDs that `run` would refuse."""
        if self.refuses:
            typing.cast("Callable[..., None]", _load(self.refuses))(table, codebooks, embeddings, config)

    def loss(self, request: EraseRequest, config: Any) -> Any:
        """The `steps.Loss` that the method goes down for this request, or None where it goes down none."""
        return _load(self.objective)(request, config) if self.objective else None

    def require_preparing(self) -> None:
        """Raises UsageError for a method that prepares nothing."""
        if not self.prepares:
            from recerase.erase.methods import METHODS

            able = ", ".join(method.name for method in METHODS.values() if method.prepares)
            raise UsageError(f"Method {self.name} has nothing to prepare.", f"Methods that have: {able}.")

    def prepare(self, request: EraseRequest, config: Any) -> Prepared:
        """What can be learnt before there is a concept. Raises: as `require_preparing`."""
        self.require_preparing()
        request = dataclasses.replace(request, model=in_single(request.model))
        return typing.cast("Prepared", _load(self.prepares)(request, config))

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


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
