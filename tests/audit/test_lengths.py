"""What the probes say of tables whose SIDs differ in length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from recerase.audit.aliasing import aliasing
from recerase.audit.cases import concept_users_case
from recerase.audit.free import free
from recerase.audit.nearest import nearest
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped


def read(probe: Callable, model: AuditModel, world: AuditWorld) -> dict[str, Measurement]:
    return {m.metric: m for m in probe(Readings(model, world)) if isinstance(m, Measurement)}


@pytest.fixture
def shorter(table: SidTable) -> SidTable:
    """The concept is items 0 to 11, of group 0; item 0 has one code, and so have 12 and 24 of other groups."""
    return table.replace(np.array([0, 12, 24]), np.array([[0, -1], [1, -1], [2, -1]]))


def test_the_prefix_is_all_codes_but_the_last_wherever_that_stands(
    world: AuditWorld, audited: Callable, untrained: Recommender, shorter: SidTable
) -> None:
    """A SID of one code stands beside all others of one code; [0, -1] is no sibling of [0, k]."""
    found = read(aliasing, audited(untrained, table=shorter), world)
    assert found["aliasing.shared_sid"].value == 0
    assert found["aliasing.shared_prefix"].value == pytest.approx(1 / 12)
    twin = shorter.replace(np.array([12]), np.array([[0, -1]]))
    assert read(aliasing, audited(untrained, table=twin), world)["aliasing.shared_sid"].value == pytest.approx(1 / 12)


def test_meaning_is_not_measured_where_a_sid_may_stop_anywhere(
    world: AuditWorld, audited: Callable, untrained: Recommender, table: SidTable, shorter: SidTable
) -> None:
    for tables in ({"table": shorter}, {"old_table": shorter}):
        (skipped,) = nearest(Readings(audited(untrained, **tables), world))
        assert isinstance(skipped, Skipped)
        assert "differ in length" in skipped.reason


def test_generations_stop_at_eos_also_where_only_the_old_sids_did(
    world: AuditWorld, audited: Callable, untrained: Recommender, table: SidTable, shorter: SidTable
) -> None:
    """Else an old SID of one code could never be seen again."""
    case = concept_users_case(world)
    eos = table.schema.eos
    for tables, stops in (({}, False), ({"table": shorter}, True), ({"old_table": shorter}, True)):
        model = audited(untrained, **tables)
        rows = Readings(model, world).free(case).rows
        ended = rows[..., 0] == eos
        assert (rows[ended][:, 1] == -1).all() if stops else (rows >= 0).all()
        assert 0 <= read(free, model, world)["free.old_concept"].value <= 1
