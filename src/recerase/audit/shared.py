"""Pieces of work of a probe that are no reading of a case: attacks, and whatever else takes a while and gives arrays.

The one decision: such a piece is made once an audit, whichever role asks first, under a key of the weights and of all that
it depends on. It is kept in the audit's cache and in the run's state, and processes that share the audit take the pieces in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from recerase.errors import CheckpointError, ConceptError, DataError
from recerase.parallel import workers
from recerase.store import canonical_json, sha256_bytes

if TYPE_CHECKING:
    from recerase.audit.readings import Arrays, Readings

Key = tuple[Hashable, ...]


def weights_of(readings: Readings) -> Hashable:
    """What a model's weights are known by: their digest, or, without one, the object."""
    return readings.model.digest or id(readings.model.recommender)


def shared(readings: Readings, makes: Mapping[Key, Callable[[], Arrays]]) -> list[Arrays | str]:
    """What each piece gives, in the order of `makes`, whose keys name it; for one that could not be made, why in a sentence.

    Why is what a ConceptError, DataError or CheckpointError says; such a piece is not kept in the state. Other errors pass.
    """
    who, cache = workers(), readings.cache
    missing = [key for key in makes if key not in cache]
    kept = {key: arrays for key in missing if (arrays := _kept(readings, key)) is not None}
    cache.update(who.told(kept))
    left = [key for key in missing if key not in cache]
    for part in (left[first : first + who.size] for first in range(0, len(left), who.size)):
        mine = {part[i]: _made(makes[part[i]]) for i in who.mine(len(part))}
        for made in who.gathered(mine):
            cache.update(made)
        for key in part:
            _keep(readings, key)
    return [cache[key] for key in makes]


def _made(make: Callable[[], Arrays]) -> Arrays | str:
    try:
        return make()
    except (CheckpointError, ConceptError, DataError) as error:
        return str(error)


def _name(readings: Readings, key: Key) -> str | None:
    """Of the state's piece: readable in front, and as unlike any other as its key; None where nothing is to be kept."""
    if readings.state is None or not readings.model.digest:
        return None
    return f"{key[0]}-{sha256_bytes(canonical_json([*key]))[:32]}"


def _kept(readings: Readings, key: Key) -> Arrays | None:
    from safetensors.numpy import load

    name = _name(readings, key)
    piece = None if name is None or readings.state is None else readings.state.read(name)
    return None if piece is None else load(piece)


def _keep(readings: Readings, key: Key) -> None:
    from safetensors.numpy import save

    name, made = _name(readings, key), readings.cache[key]
    if name is not None and readings.state is not None and not isinstance(made, str):
        readings.state.write(name, save({part: np.ascontiguousarray(values) for part, values in made.items()}))
