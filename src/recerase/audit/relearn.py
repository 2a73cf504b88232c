"""How soon the concept comes back when somebody trains the model further: on the concept, and on anything but it.

The decision that shaped this probe: its number is a number of steps, the one at which the model shows half of what the original does,
and it is held against the same number of a model that never knew the concept (`min_ratio_to = "reference"`). The protocol is
`relearning.py`'s; every role gets it alike, a reference too is attacked with histories of concept items, for how fast someone with
concept data gets the concept out of it is the question. Where the erasure moved items, the attacker is tried with today's SIDs
and with those of before, and the better way counts.

A model that is not brought back within the horizon counts as if it were there at its end, and `reached` says so. Steps carry a value
a history, linear in what the history showed (the delta method), so that they have an interval and can be compared in pairs; their
mean is the number of steps itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cards_wide import MARKS
from recerase.audit.probes import counted, measured
from recerase.audit.readings import SIDES, Arrays, _digest, _spelling
from recerase.audit.relearning import ATTACKS, Attack, RelearnConfig, Relearned
from recerase.audit.shared import Key, shared, weights_of
from recerase.types import FloatArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings

SHOTS = (8, 64)
"""Concept histories that a poorer attacker has."""
REPEATS = 3
"""How often he is given others of them."""

UNSURE = 3.0
"""Standard errors by which a curve must stay below the level to be surely not there at the horizon."""


def relearn(readings: Readings) -> list[Measurement | Skipped]:
    """Steps to half of the original's exposure, whether they sufficed, and exposure@10 on the way: forget and benign attack."""
    found: list[Measurement | Skipped] = []
    for kind in ATTACKS:
        sides = attacked(readings, kind, _config(readings))
        found += _steps(readings, f"relearn.{kind}", kind, sides)
        found += _on_the_way(readings, f"relearn.{kind}", sides)
    return found


def few(readings: Readings) -> list[Measurement | Skipped]:
    """The forget attack by somebody who has 8 or 64 concept histories, and no more."""
    found: list[Measurement | Skipped] = []
    for shots in SHOTS:
        stem, config = f"relearn_few.shots{shots}", replace(_config(readings), shots=shots, repeats=REPEATS)
        level = _original(readings, "forget")  # without one there is nothing to attack for
        sides = level if isinstance(level, str) else attacked(readings, "forget", config)
        found += _steps(readings, stem, "forget", sides)
    return found


def attacked(readings: Readings, kind: Attack, config: RelearnConfig) -> list[Relearned] | str:
    """The model's curves, with today's SIDs and, where the erasure moved items, with those of before; or why there is none.

    Made once for all roles whose weights, SIDs and listed items are the same, and kept.
    """
    made = shared(readings, _makes(readings, kind, config))
    if isinstance(made[0], str):
        return made[0]
    return [_curve(kind, x) for x in made if not isinstance(x, str)]


def drawn(readings: Sequence[Readings]) -> dict[str, dict[str, list[float]]]:
    """The report's curves: `relearn_forget` and `relearn_benign`, exposure@10 after x steps, a role each.

    Of what was made already; {} where the probe did not run.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for kind in ATTACKS:
        lines: dict[str, list[float]] = {
            reading.model.role: line for reading in readings if (line := _line(reading, kind))
        }
        if lines:
            steps = [float(x) for x in (0, *_config(readings[0]).steps)]
            curves[f"relearn_{kind}"] = {"x": steps} | lines
    return curves


def steps_a_history(curve: Relearned, original: Relearned) -> FloatArray:
    """[n] a value a history whose mean is `curve.steps_to(original.half)`, or the horizon where that is not reached.

    Steps are linear in the exposures around the crossing and in the level: a history's value is the steps and its pull on them.
    """
    steps, n = curve.steps_to(original.half), curve.values.shape[2]
    if steps == 0:
        return np.zeros(n)
    if not np.isfinite(steps):
        return _not_reached(curve, original)
    at = int(np.flatnonzero(curve.exposure >= original.half)[0])
    around = curve.per_history[at - 1 : at + 1]  # [2, n]
    low, high = around.mean(axis=1)
    share = (original.half - low) / (high - low)
    first = original.per_history[0]
    pull = (first - first.mean()) / 2 - (1 - share) * (around[0] - low) - share * (around[1] - high)
    values: FloatArray = steps + pull * (curve.steps[at] - curve.steps[at - 1]) / (high - low)
    return values


def _not_reached(curve: Relearned, original: Relearned) -> FloatArray:
    """[n] the horizon, with the spread of the crossing where the last reading is so near the level that other histories would
    have found it there (within UNSURE standard errors): the horizon is where nobody looked further, and not what is sure."""
    horizon = float(curve.horizon)
    before, last = curve.per_history[-2:]
    short = original.per_history[0] / 2 - last  # its mean is what is lacking
    climb = float(last.mean() - before.mean())
    if climb <= 0 or short.mean() > UNSURE * short.std() / np.sqrt(len(short)):
        return np.full(len(short), horizon)
    values: FloatArray = horizon + (short - short.mean()) * (curve.steps[-1] - curve.steps[-2]) / climb
    return values


def _steps(readings: Readings, stem: str, kind: Attack, sides: list[Relearned] | str) -> list[Measurement | Skipped]:
    names, role = (f"{stem}.steps", f"{stem}.reached"), readings.model.role
    level = _original(readings, kind)
    why = sides if isinstance(sides, str) else level if isinstance(level, str) else ""
    if why or isinstance(sides, str) or isinstance(level, str):
        return [Skipped(name, role, why) for name in names]
    curve = min(sides, key=lambda side: side.steps_to(level.half))
    reached = np.isfinite(curve.steps_to(level.half))
    values = steps_a_history(curve, level)
    return [measured(readings, names[0], values), counted(readings, names[1], float(reached), len(values))]


def _original(readings: Readings, kind: Attack) -> Relearned | str:
    """The curve whose beginning sets the level, or why there is no level."""
    own = readings.model.role in ("original", "filter")  # the same weights, and the attacker filters nothing
    original = readings if own else readings.beside.get("original")
    if original is None:
        return "how much of the concept must come back is told by the original: none was given"
    sides = attacked(original, kind, _config(original))
    if isinstance(sides, str):
        return sides
    if not sides[0].half > 0:
        return "the original shows nothing of the concept after its items, so there is nothing to relearn"
    return sides[0]


def _on_the_way(readings: Readings, stem: str, sides: list[Relearned] | str) -> list[Measurement | Skipped]:
    names = {mark: f"{stem}.exposure@s{mark}" for mark in MARKS}
    if isinstance(sides, str):
        return [Skipped(name, readings.model.role, sides) for name in names.values()]
    found: list[Measurement | Skipped] = []
    for mark, name in names.items():
        if mark not in sides[0].steps:
            found.append(Skipped(name, readings.model.role, f"after step {mark} nothing was read"))
            continue
        at = int(np.flatnonzero(sides[0].steps == mark)[0])
        side = max(sides, key=lambda x: float(x.exposure[at]))
        found.append(measured(readings, name, side.per_history[at]))
    return found


def _line(readings: Readings, kind: Attack) -> list[float]:
    keys = list(_makes(readings, kind, _config(readings)))
    made = [readings.cache.get(key) for key in keys]
    curves = [_curve(kind, x) for x in made if isinstance(x, dict)]
    return [float(x) for x in np.max([x.exposure for x in curves], axis=0)] if curves else []


def _makes(readings: Readings, kind: Attack, config: RelearnConfig) -> Mapping[Key, partial[Arrays]]:
    """What makes the curves, by key: one with today's SIDs, and one with those of before where they differ."""
    model, world = readings.model, readings.world
    sides = SIDES[::-1] if model.table.moved(model.old_table).any() else ("new",)
    makes: dict[Key, partial[Arrays]] = {}
    for side in sides:
        asked = replace(config, side=side)
        table = (model.table if side == "new" else model.old_table).unfiltered
        listed = (model.listed if side == "new" else table.listed) | world.members
        key = ("relearn", weights_of(readings), kind, _spelling(table), _digest(listed), str(asdict(config)))
        makes[key] = partial(_attack, readings, kind, asked)
    return makes


def _attack(readings: Readings, kind: Attack, config: RelearnConfig) -> Arrays:
    from recerase.audit.relearning import relearn as attack

    found = attack(readings.model, readings.world, kind, config, readings.observer)
    return {"values": found.values, "steps": found.steps, "pairs": np.array([found.pairs])}


def _curve(kind: Attack, made: Arrays) -> Relearned:
    return Relearned(kind, made["steps"], made["values"], int(made["pairs"][0]))


def _config(readings: Readings) -> RelearnConfig:
    """The protocol's own, with as many histories as the saturated probe reads and the audit's beam."""
    config = readings.world.config
    return RelearnConfig(histories=config.saturated_histories, beam=config.beam)
