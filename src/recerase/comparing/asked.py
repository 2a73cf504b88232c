"""What a comparison is asked to do: methods with their settings, and the grid that a search of strength goes through.

The deciding choice is that every method gets the same number of settings, its own first and the rest drawn with the seed from
the grid on its card: who has more knobs, or a finer grid, is given no more chances.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import RecEraseError, UsageError
from recerase.types import Scope

if TYPE_CHECKING:
    from recerase.erase.method import Method
    from recerase.layouts.native import Checkpoint

SCOPES: tuple[Scope, ...] = ("output", "influence")
ALL = "all"
"""Stands for every method but those of APART_FROM."""
APART_FROM = ("filter", "retrain")
_DEFAULT = "/default"
"""A method with this preset is the method."""
_NAMES = "Name some of `recerase list methods`, separated by commas, or all."


@dataclass(frozen=True)
class Contender:
    """A method with the settings it begins with."""

    name: str
    """`npo` or `tracer/paper`."""
    card: Method
    preset: str | None
    config: Any
    given: tuple[str, ...] = ()
    """Settings that were set by hand, which no search changes."""
    called: bool = True
    """Whether it was named; False: it is one of `all`, and left out where it cannot run."""


@dataclass(frozen=True)
class Setting:
    """One configuration of a contender, and what a search changed in it."""

    config: Any
    changed: Mapping[str, Any]


def contenders(names: Sequence[str], overrides: Sequence[str] = ()) -> tuple[Contender, ...]:
    """The methods called `names`, with `METHOD.KEY=VALUE` settings laid over their own.

    `all` is every method but APART_FROM, those that are also named once. Raises UsageError for a method, preset or setting that
    there is not, a method named twice, and the control `filter`, which stands in every comparison.
    """
    from recerase.erase.methods import METHODS, get_method, make_config

    called = [name.strip() for name in names if name.strip()]
    plain = [name.removesuffix(_DEFAULT) for name in called]
    every = [name for name in METHODS if name not in APART_FROM and name not in plain]
    wanted = [name for own in called for name in (every if own == ALL else (own,))]
    if not wanted:
        raise UsageError("No method is named.", _NAMES)
    plain = [name.removesuffix(_DEFAULT) for name in wanted]
    twice = sorted({name for name in plain if plain.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is named twice.", "Name each method once.")
    if "filter" in wanted:
        raise UsageError("filter stands in every comparison, as a control.", "Leave it out of --methods.")
    pairs = _by_method(overrides, wanted)
    found = []
    for name in wanted:
        card, preset = get_method(name)
        found.append(
            Contender(
                name, card, preset, make_config(card, preset, pairs[name]), tuple(sorted(pairs[name])), name in called
            )
        )
    return tuple(found)


def runnable(entrants: Sequence[Contender], before: Checkpoint) -> tuple[tuple[Contender, ...], dict[str, str]]:
    """The contenders that are tried on a checkpoint, and of those that `all` stood for who is not, and why.

    Raises UsageError when nobody is left.
    """
    kept, out = [], {}
    for entrant in entrants:
        try:
            entrant.card.check(before.table, before.codebooks, before.embeddings, entrant.config)
        except RecEraseError as error:
            if not entrant.called:
                out[entrant.name] = error.message
                continue
        kept.append(entrant)
    if not kept:
        raise UsageError(
            "No method can run on this checkpoint.", "; ".join(f"{name}: {why}" for name, why in out.items())
        )
    return tuple(kept), out


def _by_method(overrides: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Method -> its `key=value` settings."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for given in overrides:
        left, equals, value = given.partition("=")
        method, dot, key = left.strip().rpartition(".")
        if not (equals and dot and method and key):
            raise UsageError(f"{given!r} is not METHOD.KEY=VALUE.", "For example: --set npo.steps=200.")
        if method not in found:
            raise UsageError(f"{given!r} sets a method that is not compared.", f"Compared: {', '.join(names)}.")
        if key in found[method]:
            raise UsageError(f"{method}.{key} is set twice.", "Give each setting once.")
        found[method][key] = value.strip()
    return found


def read_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers. Raises UsageError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r:.60} is no list of seeds.", "For example: --seeds 0,1,2.") from error


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Raise UsageError unless there is a seed, none is there twice, and none is negative or over 2**31 - 1."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**31:
        raise UsageError("Seeds must be different numbers from 0 to 2147483647.", "For example: --seeds 0,1,2.")
    return tuple(seeds)


def settings(contender: Contender, budget: int, seed: int) -> tuple[Setting, ...]:
    """At most `budget` settings of a contender: its own, then others of its grid drawn with `seed`; 0 or 1: its own alone.

    Not every method has as many as the budget. A setting that is 0, or was given by hand, stays.
    """
    own = Setting(contender.config, {})
    axes = []
    values = asdict(contender.config)
    for name, factors in contender.card.strength.items():
        at = values[name]
        if not at or name in contender.given:
            continue
        steps = [max(1, round(at * by)) if isinstance(at, int) else at * by for by in factors]
        axes.append([(name, value) for value in dict.fromkeys([at, *steps])])
    grid = [point for point in itertools.product(*axes) if any(value != values[name] for name, value in point)]
    drawn = np.random.default_rng([seed, *contender.name.encode()]).permutation(len(grid))[: max(0, budget - 1)]
    found = [own]
    for place in drawn:
        changed = {name: value for name, value in grid[place] if value != values[name]}
        found.append(Setting(replace(contender.config, **changed), changed))
    return tuple(found)


def steps_of(config: Any) -> int | None:
    """Gradient steps that a configuration asks for, all phases together; None where it counts none."""
    counts = [v for name, v in asdict(config).items() if name == "steps" or name.endswith("_steps")]
    return sum(counts) if counts else None


def seeded(config: Any, seed: int) -> Any:
    """A configuration whose own seed follows the original's (-1, as retrain has it), with the seed of its cell instead."""
    return replace(config, seed=seed) if getattr(config, "seed", 0) == -1 else config
