"""Concepts that were erased before: an erasure must not bring them back.

The one decision: they are held to what they had to meet when they were erased themselves, whatever the policy asks of this concept,
unless it says `earlier.*` in words of its own. Where nothing was erased before, nothing is measured and nothing is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from recerase.audit.cases import codes_before, mass_users, natural_case
from recerase.audit.policy_file import policy_digest
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, Side, exposure
from recerase.types import Measurement, Policy, Rule, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings
    from recerase.sid.table import SidTable

RULES = (
    Rule("earlier-exposure", "earlier.exposure@10", max=0.001),
    Rule("earlier-mass-old", "earlier.mass.old", max=0.001),
    Rule("earlier-mass-new", "earlier.mass.new", max=0.003),
)
"""The shipped policy's limits on a concept, for those before it."""


def earlier(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@k and exact mass of items that earlier concepts had, over all test users; nothing where there are none."""
    world = readings.world
    if world.earlier is None:
        return []
    lists, sample = readings.lists(natural_case(world)), mass_users(world)
    found = [
        measured(readings, f"earlier.exposure@{k}", exposure(lists, world.earlier.members, k)) for k in world.config.k
    ]
    for side in SIDES:
        mass = readings.mass_of(sample.case, world.earlier.members, _spelled(readings, side))
        found.append(measured(readings, f"earlier.mass.{side}", mass[sample.everyone]))
    return found


def _spelled(readings: Readings, side: Side) -> SidTable:
    """The current table, and (`old`) with the SIDs that earlier items had first.

    A reference, and a model whose table cannot spell the SID they had first, is read under the one they have in it.
    """
    table, earlier = readings.model.table, readings.world.earlier
    if side == "new" or earlier is None or not readings.model.reads_concept:
        return table
    return replace(table, codes=codes_before(earlier, table))


def with_earlier(policy: Policy) -> Policy:
    """The policy with `RULES`, under a digest of its own; as it is where it speaks of earlier concepts itself."""
    if any(rule.metric.startswith("earlier.") for rule in policy.rules):
        return policy
    more = replace(policy, rules=(*policy.rules, *RULES))
    return replace(more, digest=policy_digest(more)) if policy.digest else more
