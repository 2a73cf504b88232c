"""What is read beside the audit's figures: U-CAN's seven against their definition, relearning's bookkeeping, likeness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.comparing.conftest import QUICK, Compare, Shop

from recerase.assembly import open_checkpoint_for
from recerase.audit.equivalence import LEGS
from recerase.audit.probes import AuditConfig
from recerase.audit.ucan_metrics import Said, ucan_metrics
from recerase.auditing import audit_model
from recerase.catalog import load_catalogue, parse_concept
from recerase.catalog.demo import DEMO_CONCEPT
from recerase.comparing import ucan
from recerase.comparing.alike import AUC, EQUIVALENT, equivalents, told_apart
from recerase.comparing.cells import READINGS, Bench
from recerase.comparing.reading import FEATURES, Reading, packed, unpacked
from recerase.comparing.relearned import resistance
from recerase.earlier import gone_from
from recerase.model.mass import catalogue_log_probs
from recerase.report.compared import Comparison
from recerase.report.compared_markdown import comparison_markdown
from recerase.runtime import RunConfig

USERS = 60


@pytest.fixture(scope="module")
def everything(compare: Compare, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """One method with all that can be read, and two references (the second is the original, which nobody is like)."""
    out = tmp_path_factory.mktemp("extras") / "out"
    fields: dict[str, Any] = {"methods": ("ga",), "overrides": QUICK[2:], "relearn": True, "ucan": 20}
    return compare(out, {"references": [shop.gold, shop.model]}, **fields), out


def test_every_figure_is_in_its_row_and_its_table(everything: tuple[Comparison, Path], shop: Shop) -> None:
    made, _ = everything
    rows = {row.name: row.figures for row in made.rows}
    for kind in ("forget", "benign"):
        assert 0 <= rows["ga"][f"relearn.{kind}.steps"].value <= 2
        assert rows["ga"][f"relearn.{kind}.reached"].value in (0, 1)
        assert f"relearn.{kind}.steps ratio/reference" in rows["ga"]
        assert f"relearn.{kind}.steps ratio/reference" not in rows["reference"]
        assert rows["reference"][f"relearn.{kind}.steps"].seeds == 2
    assert "ucan.kl" not in rows["original"]
    assert rows["ga"]["ucan.kl"].value > 0
    assert rows["ga"]["ucan.kl"].n == rows["original"]["ucan.forget.recall@10"].n == 20
    text = comparison_markdown(made)
    for words in ("Relearning", "U-CAN's figures on retained pairs", "history influence", "MRR@5"):
        assert words in text
    assert "that concept items in a history move nothing else was not measured" not in text


def test_nothing_is_read_twice(
    everything: tuple[Comparison, Path], compare: Compare, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = everything
    written = {path.name for path in (out / READINGS).iterdir()}
    monkeypatch.setattr(Bench, "opened", lambda *given: pytest.fail("a model was opened again"))
    fields: dict[str, Any] = {"methods": ("ga",), "overrides": QUICK[2:], "relearn": True, "ucan": 20}
    again = compare(out, {"references": [shop.gold, shop.model]}, **fields)
    assert again.rows == made.rows
    assert {path.name for path in (out / READINGS).iterdir()} == written
    plain = compare(out, methods=("ga",), overrides=QUICK[2:])
    assert not [name for row in plain.rows for name in row.figures if name.startswith(("ucan", "relearn", AUC))]


def test_blocks_of_pairs_give_the_figures_of_the_whole(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = load_catalogue(shop.data)
    run = RunConfig(threads=1, device="cpu")
    before, after = (open_checkpoint_for(path, catalogue, run) for path in (shop.model, shop.gold))
    concept = parse_concept([DEMO_CONCEPT], catalogue.items)
    bench = Bench(catalogue, concept, before, gone_from([], (), catalogue, before.table), AuditConfig(), run, shop.home)
    pairs = ucan.pairs_of(bench, 23)
    assert concept.members[pairs.forget.targets].all()
    assert not concept.members[pairs.retain.targets].any()
    assert len(pairs.forget) == len(pairs.retain) <= 23
    monkeypatch.setattr(ucan, "CHUNK", 7)
    models = {role: audit_model(role, x, before.table) for role, x in (("original", before), ("subject", after))}
    original = ucan.read(models["original"], concept.members, pairs, None)
    subject = ucan.read(models["subject"], concept.members, pairs, original)
    found = ucan.metrics(subject, original)
    whole = [
        Said(catalogue_log_probs(x.recommender, x.table, given), given.targets, x.table.levels)
        for given in (pairs.forget, pairs.retain)
        for x in models.values()
    ]
    wanted = ucan_metrics(*whole)
    wanted["perplexity"] = wanted.pop("perplexity.after")
    assert wanted.pop("perplexity.before") == pytest.approx(ucan.metrics(original, original)["perplexity"], rel=1e-5)
    assert {name: value for name, value in wanted.items() if value is not None} == pytest.approx(found, rel=1e-5)


def test_a_reading_comes_back_as_it_was() -> None:
    given = Reading({"a": np.arange(3.0), "b": np.ones((2, 3), np.float32), f"{FEATURES}c": np.array([1])}, "why")
    found = unpacked(packed(given))
    assert found.failure == "why"
    assert {name: x.dtype for name, x in found.values.items()} == {
        "a": np.float64,
        "b": np.float32,
        f"{FEATURES}c": np.float64,
    }
    assert found.under(FEATURES)["c"].tolist() == [1]


def curve(*exposure: float, moved: bool = False) -> Reading:
    """Exposures after 0, 1, 2 .. steps on two histories."""
    values = np.repeat(np.array(exposure)[None, :, None], 2, axis=2)
    steps = np.arange(len(exposure), dtype=float)
    return Reading({"values": values, "steps": steps, "pairs": np.array([4.0]), "moved": np.array([float(moved)])})


def test_the_quicker_table_counts_and_who_never_comes_back_counts_to_the_end() -> None:
    gold = [(curve(0, 0.2, 0.4, 0.4),), (curve(0, 0.4, 0.4, 0.4),)]
    slow, quick = curve(0, 0, 0, 0.1, moved=True), curve(0, 0.4, 0.4, 0.4)
    found = resistance("forget", [(slow, quick), (slow,)], gold, 0.4)
    assert found["relearn.forget.steps"].value == pytest.approx((1 + 3) / 2)
    assert found["relearn.forget.reached"].value == 0.5
    assert found["relearn.forget.steps ratio/reference"].value == pytest.approx((1 / 2 + 3 / 2) / 2)
    assert (found["relearn.forget.steps"].n, found["relearn.forget.steps"].seeds) == (2, 2)
    assert "relearn.benign.steps ratio/reference" not in resistance("benign", [(slow,)], (), 0.4)
    assert resistance("forget", [(Reading({}, "no"),)], gold, 0.4) == {}
    assert resistance("forget", [(slow,)], gold, 0.0) == {}


def masses(level: float, seed: int) -> Reading:
    wave = level * np.exp(0.3 * np.random.default_rng(seed).standard_normal(USERS))
    return Reading({own: wave for own, _ in LEGS})


def test_equivalence_is_at_the_references_own_spread() -> None:
    gold = [masses(level, 1) for level in (1.0e-5, 1.1e-5, 1.3e-5)]
    like, unlike = (equivalents([masses(level, 1)], gold, AuditConfig()) for level in (1.1e-5, 1e-7))
    assert like[EQUIVALENT].value == 1
    assert unlike[EQUIVALENT].value == 0
    assert unlike["natural.mass.old equivalent/reference"].interval.high < 0.1
    assert equivalents([masses(1e-5, 1)], gold[:2], AuditConfig()) == {}
    assert told_apart([masses(1e-5, 1)], gold, "output", AuditConfig()) == {}  # nothing to tell by was read
