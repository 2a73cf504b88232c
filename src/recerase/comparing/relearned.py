"""Relearning attacks as cells, and the figures of a row: steps until a model shows half of what the original did.

The deciding choice is that the attacker chooses the SIDs he writes with: where an erasure moved items he is tried with today's
and with those of before, and the quicker way counts. A model that is not brought back within the last step read counts as if it
had been there, and the row says how many were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from recerase.comparing.cells import Bench
from recerase.comparing.reading import Reading
from recerase.errors import CheckpointError, ConceptError, DataError
from recerase.report.compared import Figure
from recerase.types import Role

if TYPE_CHECKING:
    from recerase.audit.probes import AuditModel
    from recerase.audit.readings import Side
    from recerase.audit.relearning import Attack, RelearnConfig, Relearned

Opened = Callable[[], "AuditModel"]


def attacks(beam: int | None) -> tuple[tuple[Attack, ...], RelearnConfig]:
    """The kinds of attack, and how each is made."""
    from recerase.audit import relearning

    config = relearning.RelearnConfig()
    return relearning.ATTACKS, config if beam is None else replace(config, beam=beam)


def attacked(
    bench: Bench, of: str, role: Role, opened: Opened, kind: Attack, config: RelearnConfig
) -> tuple[Reading, ...]:
    """What a model shows under attack, from its cells when they are there: with today's SIDs and, where they moved, the old ones."""
    first = _side(bench, of, role, opened, kind, config, "new")
    if first.failure or not first.values["moved"].any():
        return (first,)
    return first, _side(bench, of, role, opened, kind, config, "old")


def _side(
    bench: Bench, of: str, role: Role, opened: Opened, kind: Attack, config: RelearnConfig, side: Side
) -> Reading:
    config = replace(config, side=side)

    def make(state: object) -> Reading:
        from recerase.audit import relearning

        model = opened()
        try:
            found = relearning.relearn(model, bench.worlds["test"], kind, config, bench.observer)
        except (CheckpointError, ConceptError, DataError) as error:
            return Reading({}, str(error))
        moved = float(model.table.moved(model.old_table).any())
        told = {
            "values": found.values,
            "steps": found.steps,
            "pairs": np.array([found.pairs]),
            "moved": np.array([moved]),
        }
        return Reading({name: np.asarray(x, np.float64) for name, x in told.items()})

    key = bench.kept_key({"of": of, "role": role, "relearn": kind, "config": asdict(config)})
    return bench.kept(key, make)


def half_of(bench: Bench, kind: Attack, config: RelearnConfig) -> float:
    """Half of what the original shows on the histories of an attack before any step; 0 where it could not be read."""
    from recerase.auditing import audit_model

    before = bench.before
    short = replace(config, steps=(1,))
    (found, *_) = attacked(
        bench, before.digest, "original", lambda: audit_model("original", before, before.table), kind, short
    )
    return 0.0 if found.failure else _curve(found, kind, "new").half


def resistance(
    kind: Attack, own: Sequence[tuple[Reading, ...]], gold: Sequence[tuple[Reading, ...]], half: float
) -> Mapping[str, Figure]:
    """Figures of a row's models: steps, the share that was brought back within them, and the ratio to the slowest reference.

    A value a seed: `own` and `gold` hold what `attacked` gave. {} where nothing could be read, or `half` is not above 0.
    """
    from recerase.audit.relearning import relearn_score

    mine, theirs = ([_curves(sides, kind) for sides in some] for some in (own, gold))
    mine, theirs = ([sides for sides in some if sides] for some in (mine, theirs))
    if not mine or not half > 0:
        return {}
    horizon, n = mine[0][0].horizon, mine[0][0].values.shape[2]
    steps = [min(curve.steps_to(half) for curve in sides) for sides in mine]
    stem = f"relearn.{kind}"
    found = {
        f"{stem}.steps": _figure([min(x, horizon) for x in steps], n),
        f"{stem}.reached": _figure([float(np.isfinite(x)) for x in steps], n),
    }
    if theirs:
        references = [sides[0] for sides in theirs]
        scores = [min(relearn_score(curve, references, half).value for curve in sides) for sides in mine]
        found[f"{stem}.steps ratio/reference"] = _figure(scores, n)
    return found


def _curves(sides: tuple[Reading, ...], kind: Attack) -> list[Relearned]:
    spelled: tuple[Side, ...] = ("new", "old")
    return [_curve(x, kind, side) for x, side in zip(sides, spelled, strict=False) if not x.failure]


def _curve(found: Reading, kind: Attack, side: Side) -> Relearned:
    from recerase.audit.relearning import Relearned

    steps, pairs = found.values["steps"].astype(np.int64), int(found.values["pairs"][0])
    return Relearned(kind, steps, found.values["values"], pairs, side)


def _figure(points: Sequence[float], n: int) -> Figure:
    sd = float(np.std(points, ddof=1)) if len(points) > 1 and np.isfinite(points).all() else None
    return Figure(float(np.mean(points)), n, len(points), sd)
