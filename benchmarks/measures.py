"""What is read off one model in the results: the audit's own readings, at the sizes of the results.

The decision that shaped this file: every number comes from `audit.readings` and its probes' functions, so that the
results and a report of `recerase audit` mean the same by a name. A finished evaluation is kept under the digest of
what determines it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from worlds import Model, Setup, Space

from recerase.audit.cases import Case, concept_users, concept_users_case, mass_users, natural_case
from recerase.audit.free import contains
from recerase.audit.nearest import RADII, compass
from recerase.audit.probes import AuditModel, AuditWorld, build_world
from recerase.audit.readings import Cache, Readings, exposure
from recerase.audit.saturated import saturated_case
from recerase.audit.utility import ndcg, near_targets, ranks, recall
from recerase.catalog import Concept
from recerase.stats import bootstrap_mean, paired_drop
from recerase.store import canonical_json, sha256_bytes, write_bytes
from recerase.types import SILENT, FloatArray, Observer, Role

VERSION = 1
"""Raised when the meaning of a number changes, which makes every evaluation anew."""
K = 10

Figure = dict[str, Any]


def world_of(space: Space, concept: Concept, setup: Setup) -> AuditWorld:
    """The audit's world of one group: all test users."""
    return build_world(
        space.catalogue, concept, embeddings=space.embeddings, codebooks=space.codebooks, config=setup.audit
    )


def evaluated(
    role: Role, model: Model, space: Space, world: AuditWorld, setup: Setup, cache: Cache, observer: Observer = SILENT
) -> dict[str, Any]:
    """Figures of one model, and its per-user NDCG; read again only when weights, table, concept or settings differ.

    Raises CheckpointError when the model gives no finite probability.
    """
    cause = {
        "version": VERSION,
        "role": "reference" if role == "reference" else "model",
        "weights": model.digest,
        "table": model.table.digest,
        "old_table": space.table.digest,
        "concept": world.concept.digest,
        "data": [space.catalogue.items.digest, space.catalogue.interactions.digest],
        "settings": [asdict(setup.audit), setup.saturated_mass, setup.nearest_users],
    }
    key = sha256_bytes(canonical_json(cause))[:24]
    path = setup.runs / "evaluated" / f"{key}.json"
    if not path.is_file():
        audited = AuditModel(
            role=role,
            recommender=model.recommender,
            table=model.table,
            old_table=space.table,
            listed=model.table.listed,
            reads_concept=role != "reference",
            digest=model.digest,
        )
        found = measure(Readings(audited, world, cache, observer), setup)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, canonical_json(found))
    result: dict[str, Any] = json.loads(path.read_bytes())
    return result


def measure(readings: Readings, setup: Setup) -> dict[str, Any]:
    """{"figures": name -> Figure, "ndcg": per-user retain NDCG@10 in the order shared by every model}."""
    world = readings.world
    figures = {**_shown(readings), **_masses(readings, setup), **_meaning(readings, setup), **_moves(readings)}
    lists, targets = readings.lists(natural_case(world)), world.histories.targets
    rank = ranks(lists, targets)
    retained, near = ~world.members[targets], near_targets(world)
    gain = ndcg(rank, K)
    figures["retain.ndcg@10"] = figure(gain[retained], interval=True)
    figures["concept_users.ndcg@10"] = figure(gain[retained & concept_users(world)])
    if near is not None:
        figures["neighbours.ndcg@10"] = figure(gain[retained & near[targets]])
    figures["recall@10"] = figure(recall(rank, K))
    return {"figures": figures, "ndcg": gain[retained].round(6).tolist()}


def _shown(readings: Readings) -> dict[str, Figure]:
    """Exposure@10: real users, saturated histories (a reference: the concept's users), stale clients."""
    world, members = readings.world, readings.world.members
    natural = exposure(readings.lists(natural_case(world)), members, K)
    stale = concept_users_case(world)
    found = {
        "natural.exposure@10": figure(natural, interval=True, hits=True),
        "concept_users.exposure@10": figure(natural[concept_users(world)]),
        "replay.exposure@10": figure(exposure(readings.lists(stale, "old"), members, K), hits=True),
    }
    if readings.model.reads_concept:
        case = saturated_case(world)
        found["saturated.exposure@10"] = figure(exposure(readings.lists(case), members, K), hits=True)
        found["saturated_replay.exposure@10"] = figure(exposure(readings.lists(case, "old"), members, K), hits=True)
    else:
        found["saturated.exposure@10"] = figure(exposure(readings.lists(stale), members, K), hits=True)
    return found


def _masses(readings: Readings, setup: Setup) -> dict[str, Figure]:
    """Exact concept mass under the old and, where there is one, the new table."""
    world = readings.world
    users, found = mass_users(world), {}
    saturated = Case("saturated mass", saturated_case(world).histories.take(np.arange(_at_most(setup, world))))
    for side in ("old", "new") if readings.model.reads_concept else ("old",):
        mass = readings.mass(users.case, side)
        found[f"natural.mass.{side}"] = figure(mass[users.everyone])
        found[f"concept_users.mass.{side}"] = figure(mass[users.of_concept])
        if readings.model.reads_concept:
            found[f"saturated.mass.{side}"] = figure(readings.mass(saturated, side))
        else:
            found[f"saturated.mass.{side}"] = figure(mass[users.of_concept])
    return found


def _at_most(setup: Setup, world: AuditWorld) -> int:
    return min(setup.saturated_mass, world.config.saturated_histories)


def _meaning(readings: Readings, setup: Setup) -> dict[str, Figure]:
    """Nearest-item leak: the share of free generations on concept users' histories that mean the concept."""
    world, model = readings.world, readings.model
    users = concept_users_case(world)
    chosen = np.sort(world.random("nearest users").permutation(len(users))[: setup.nearest_users])
    rows = readings.free(Case("nearest users", users.histories.take(chosen))).rows
    share = compass(world, model.old_table).leaks(model.table.schema.codes_of(rows)).mean(axis=1)  # [B, 3]
    return {f"nearest.leak@r{radius}": figure(share[:, i]) for i, radius in enumerate(RADII)}


def _moves(readings: Readings) -> dict[str, Figure]:
    """How many concept items have a new SID, and how many of the new ones a retained item has too."""
    members, table, old = readings.world.members, readings.model.table, readings.model.old_table
    moved = table.moved(old) & members
    shared = contains(table.codes[moved], table.codes[table.present & ~members]) if moved.any() else np.zeros(0)
    return {"moved": figure(moved[members]), "new_sid_shared": {"value": int(shared.sum()), "n": int(moved.sum())}}


def figure(values: FloatArray | Any, *, interval: bool = False, hits: bool = False) -> Figure:
    """Mean and n of per-unit values; with a 95 % interval or the number of units above zero when asked."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return {"value": None, "n": 0}
    found: Figure = {"value": float(values.mean()), "n": int(values.size)}
    if interval:
        ends = bootstrap_mean(values)
        found |= {"low": ends.low, "high": ends.high}
    if hits:
        found["hits"] = int((values > 0).sum())
    return found


def drop(subject: dict[str, Any], versus: dict[str, Any]) -> Figure:
    """Relative loss of retain NDCG@10 against another model, paired over users."""
    own, base = subject["ndcg"], versus["ndcg"]
    if not np.any(base):
        return {"value": None, "n": len(own)}
    value, ends = paired_drop(own, base)
    return {"value": value, "n": len(own), "low": ends.low, "high": ends.high}
