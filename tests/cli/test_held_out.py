"""`recerase audit --held-out SPEC`: items of the concept's kind that the request left out are told of, and named in the report."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.doctor import planting

from recerase.__main__ import run
from recerase.audit import probes
from recerase.catalog import load_catalogue
from recerase.report.schema import read_report
from recerase.types import Report

METRICS = {"spill.held_out.mass", *(f"spill.held_out.exposure@{k}" for k in (5, 10, 20))}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planting, "USERS", 80)
        patch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, mass_users=80))
        patch.setattr("recerase.audit.run.probes_of", lambda profile: ("spill",))
        place = tmp_path_factory.mktemp("shop")
        planting.plant(place)
        yield place


@pytest.fixture(scope="module")
def halves(shop: Path) -> tuple[str, str]:
    """The planted concept's items as two specs."""
    items = load_catalogue(shop / "data").items
    own = [str(i) for i, words in zip(items.item_ids, items.categories, strict=True) if "Planted" in words]
    assert len(own) > 3
    return f"item:{','.join(own[::2])}", f"item:{','.join(own[1::2])}"


def audited(shop: Path, out: Path, concept: str, *more: str) -> Report:
    assert run(["audit", f"{shop}/leaky", "--data", f"{shop}/data", "--concept", concept, "--threads", "1", "-q", "-o",
                str(out), *more]) in (0, 1, 5)  # fmt: skip
    return read_report(out)


def test_what_the_request_left_out_is_told(shop: Path, halves: tuple[str, str], tmp_path: Path) -> None:
    asked, left = halves
    report = audited(shop, tmp_path / "audit.json", asked, "--held-out", left, "--held-out", asked)
    told = {m.metric: m for m in report.measurements if m.role == "subject" and m.metric in METRICS}
    assert set(told) == METRICS
    assert told["spill.held_out.mass"].value > 0.001  # a model that was never erased
    n = len(left.split(","))
    assert any(
        f"Held out: {n} items" in limit for limit in report.limits
    )  # what the concept has of them does not count
    assert len(report.inputs["held out"]) == 64


def test_without_it_nothing_is_told(shop: Path, halves: tuple[str, str], tmp_path: Path) -> None:
    report = audited(shop, tmp_path / "audit.json", halves[0])
    assert {s.metric for s in report.skipped if s.role == "subject"} & METRICS == METRICS
    assert "held out" not in report.inputs
    assert not any("Held out" in limit for limit in report.limits)


def test_a_held_out_half_is_as_likely_as_it_is_under_its_own_name(
    shop: Path, halves: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The brute-force twin: ask for the other half as a concept, and read its mass after the same histories."""
    asked, left = halves
    report = audited(shop, tmp_path / "a.json", asked, "--held-out", left)
    monkeypatch.setattr("recerase.audit.run.probes_of", lambda profile: ("natural",))
    other = audited(shop, tmp_path / "b.json", left)
    (mass,) = [m.value for m in report.measurements if (m.metric, m.role) == ("spill.held_out.mass", "subject")]
    (same,) = [m.value for m in other.measurements if (m.metric, m.role) == ("natural.mass.old", "subject")]
    assert np.isclose(mass, same, rtol=1e-5)  # everybody is read


def test_a_spec_that_names_nothing_else_is_refused(
    shop: Path, halves: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["audit", f"{shop}/leaky", "--data", f"{shop}/data", "--concept", halves[0], "--held-out", halves[0], "-q"]
    assert run([*line, "-o", str(tmp_path / "audit.json")]) == 2
    assert "all of them are in the concept" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
