"""Every probe of the thorough profile reads every layout: in `make test` one that is quick, in the soak all of them.

The model is its own original, so that what is measured must be the same for both, and nothing may pass it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import SOAK
from tests.layouts import causal_fixtures, foreign_fixtures, onerec_fixtures
from tests.layouts.fixtures import MAKERS, turned

from recerase import api
from recerase.audit import probes, relearn, soft_prompt
from recerase.audit.cards import card_of, metrics, probes_of
from recerase.audit.recheck import inconsistencies
from recerase.errors import RecEraseError
from recerase.report.schema import parse_report, report_bytes
from recerase.runtime import RunConfig
from recerase.types import Verdict

TABLES = ("rpg", "torcheasyrec")
"""Layouts that are a table of SIDs without a model, which no audit reads."""
WITH_USER = ("grid", "rqvae-recommender", "tiger-cf", "genrec")
"""Those that read a user beside the history, and are told which."""
MAY_LACK = frozenset[str]() if SOAK else frozenset({"hidden"})
"""Probes that may have no number: `hidden` wants more users than `make test` reads."""


def native_data(out: Path) -> Path:
    """The data of `foreign_fixtures`, twenty items that are called as the native fixture's."""
    foreign_fixtures.data(out, 20)
    for name in ("items", "interactions"):
        table = pq.read_table(out / f"{name}.parquet")
        at = table.schema.get_field_index("item_id")
        ids = pa.array([f"i{item}" for item in table["item_id"].to_pylist()])
        pq.write_table(table.set_column(at, "item_id", ids), out / f"{name}.parquet")
    return out


def causal_data(world: causal_fixtures.World, by: int) -> Callable[[Path], Path]:
    return lambda out: causal_fixtures.write_data(out, turned(world, by))


def more_users(world: causal_fixtures.World) -> causal_fixtures.World:
    """The world with all users of the one it was cut from: twelve are too few for some probes."""
    return replace(world, histories=causal_fixtures.make_world().histories)


DATA: dict[str, Callable[[Path], Path]] = {
    "native": native_data,
    "minionerec": lambda out: causal_fixtures.write_data(out, causal_fixtures.make_world()),
    "lc-rec": lambda out: causal_data(causal_fixtures.make_world(), 1)(out),
    "openonerec": lambda out: causal_data(more_users(onerec_fixtures.the_world()), 2)(out),
    "onerec-think": lambda out: causal_data(more_users(onerec_fixtures.the_world()), 3)(out),
}
"""Layout -> writes the catalogue its fixture was made of; others: that of `foreign_fixtures`."""


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits read few synthetic histories, search a little and train on for a few steps."""
    few = 20 if SOAK else 4
    counts = {"saturated_histories": few, "worst_rounds": 2, "worst_starts": 2, "depth_users": few}
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, **counts))
    shorter = functools.partial(relearn.RelearnConfig, steps=(1, 2, 3, 5, 8) if SOAK else (1, 2, 3))
    monkeypatch.setattr(relearn, "RelearnConfig", shorter)
    monkeypatch.setattr(soft_prompt.ascend, "__defaults__", (8 if SOAK else 2,))


@pytest.mark.parametrize("layout", [name for name in MAKERS if name not in TABLES] if SOAK else ["native"])
def test_every_probe_of_the_thorough_profile_reads_every_layout(
    layout: str, little: None, tmp_path: Path, figure: Any
) -> None:
    path, data = MAKERS[layout](tmp_path / "model"), DATA.get(layout, foreign_fixtures.data)(tmp_path / "data")
    ids = pq.read_table(data / "items.parquet")["item_id"].to_pylist()
    most = min(8, len(ids) // 5)  # a quarter of the catalogue is too large a concept
    options = {"user": "0"} if layout in WITH_USER else {}
    report = api.audit(
        path,
        api.ConceptSpec((f"item:{','.join(ids[:most])}",)),
        data,
        original=path,
        held_out=api.ConceptSpec((f"item:{','.join(ids[most : most + 3])}",)),
        earlier=(api.ConceptSpec((f"item:{','.join(ids[most + 3 : most + 5])}",)),),
        profile="thorough",
        max_users=None if SOAK else 10,
        run=RunConfig(threads=1, trust_pickle=True, layout_options=tuple(options.items())),
    )
    own = {m.metric: m.value for m in report.measurements if m.role == "subject" and m.kind == "value"}
    for m in report.measurements:
        assert not math.isnan(m.value), m
        assert m.kind != "value" or m.value <= metrics()[m.metric].most, m
        assert m.role != "original" or m.kind != "value" or m.value == own[m.metric], m
    told = {card.name for metric in own if (card := card_of(metric)) is not None}
    why = {s.metric.split(".")[0]: s.reason for s in report.skipped if s.role == "subject"}
    missing = {name: why.get(name, "") for name in probes_of("thorough") if name not in told}
    assert set(missing) <= MAY_LACK, missing
    assert all(missing.values()), missing
    assert report.decision.verdict is not Verdict.PASS
    assert inconsistencies(report) == ()
    assert parse_report(report_bytes(report)) == report
    figure(f"probes of the thorough profile that read a layout: {layout}", len(told), of=len(told) + len(missing))


@pytest.mark.parametrize("layout", sorted(TABLES))
def test_a_table_without_a_model_is_refused_with_what_to_do(layout: str, tmp_path: Path) -> None:
    path, data = MAKERS[layout](tmp_path / "table"), foreign_fixtures.data(tmp_path / "data")
    with pytest.raises(RecEraseError) as refused:
        api.audit(path, api.ConceptSpec(("item:0",)), data)
    assert "there is no model in it to audit" in refused.value.message
    assert "recerase train" in refused.value.remedy
