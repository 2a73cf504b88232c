"""What ships about the power of metrics is of metrics that there are, and the default policy rests on what reaches the mark."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from recerase.__main__ import run
from recerase.audit import power
from recerase.audit.cards import PROBES, metrics
from recerase.audit.policy import default_policy
from recerase.audit.power import LEAST, TABLE_FACTS, Power, doubt_of, power_of_metric, power_of_probe, powers
from recerase.types import Rule

FACTS = ("aliasing.shared_sid",)
"""What the default policy gates on although no model can be told by it: read off the table, exactly."""
WEAK = Power(0.71, 0.45, 0.87, 0.71, "filter", (10, 10))


def test_shipped_figures_are_of_metrics_that_there_are() -> None:
    told = json.loads(files("recerase.audit").joinpath("power.json").read_text(encoding="utf-8"))
    assert told["schema"] == power.SCHEMA
    assert min(told["n"]) >= 10
    assert told["metrics"]
    assert set(told["metrics"]) | set(told["no_figure"]) <= set(metrics())
    assert not set(told["metrics"]) & set(told["no_figure"])


@pytest.mark.parametrize("name", sorted(powers()))
def test_shipped_figures_are_figures(name: str) -> None:
    found, spec = powers()[name], metrics()[name]
    assert 0.5 <= found.two_sided <= 1
    assert (found.auc is None) == (spec.better == "neither")
    assert found.pool == ("filter" if spec.layer in ("behaviour", "weights") else "with")
    if found.auc is not None:
        assert found.low is not None and found.high is not None  # noqa: PT018
        assert found.low <= found.auc <= found.high
        assert found.two_sided == pytest.approx(max(found.auc, 1 - found.auc))


@pytest.mark.parametrize(
    "rule", [rule for rule in default_policy().rules if not rule.optional], ids=lambda rule: rule.id
)
def test_the_default_policy_gates_on_what_tells_pools_apart(rule: Rule) -> None:
    if rule.metric in FACTS or metrics()[rule.metric].layer == "utility":
        return
    auc = powers()[rule.metric].auc
    assert auc is not None, rule.metric
    assert auc >= LEAST, f"{rule.metric}: {auc}"


def test_exceptions_are_named_with_a_reason() -> None:
    assert set(TABLE_FACTS) == set(FACTS) <= set(metrics())
    assert all(reason for reason in TABLE_FACTS.values())


def test_rules_without_power_are_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    neither = Power(None, None, None, 1.0, "filter", (10, 10))
    monkeypatch.setattr(power, "powers", lambda: {"natural.mass.old": WEAK, "nearest.random": neither})
    monkeypatch.setattr(power, "unmeasured", lambda: {"earlier.mass.old": "there is no earlier concept"})

    def doubt(metric: str, optional: bool = False) -> str:
        return doubt_of(Rule("mine", metric, max=0.1, optional=optional))

    assert "does not reach 0.9" in doubt("natural.mass.old")
    assert "AUC 0.71 [0.45, 0.87], filter against without, 10 + 10 models" in doubt("natural.mass.old")
    assert "no way of it is better" in doubt("nearest.random")
    assert doubt("earlier.mass.old").endswith("is not known: there is no earlier concept")
    assert doubt("saturated.mass.old").endswith("is not known: it was not tried")
    assert doubt("natural.mass.old", optional=True) == ""
    assert doubt("utility.ndcg@10") == doubt("aliasing.shared_sid") == ""


def test_a_figure_at_the_mark_is_not_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = Power(LEAST, 0.7, 0.97, LEAST, "filter", (10, 10))
    monkeypatch.setattr(power, "powers", lambda: {"natural.mass.old": enough})
    assert doubt_of(Rule("mine", "natural.mass.old", max=0.1)) == ""


def test_a_probe_tells_its_metrics_best_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = Power(1.0, 0.8, 1.0, 1.0, "filter", (10, 10))
    known = {"replay.exposure@5": WEAK, "replay.exposure@10": sure, "replay.mass.old": sure}
    monkeypatch.setattr(power, "powers", lambda: known)
    said = "AUC 1.00: replay.mass.old, replay.exposure@10; AUC 0.71: replay.exposure@5; no figure: replay.exposure@20"
    assert power_of_probe("replay") == said
    monkeypatch.setattr(power, "powers", lambda: dict.fromkeys(metrics(), sure))
    assert power_of_probe("replay") == "AUC 1.00: all its metrics"
    assert power_of_probe("free") == "AUC 1.00: free.old_concept"
    assert power_of_probe("utility") == "it has no metric about the concept"


def test_lists_tell_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "probes", "--json"]) == 0
    probes = json.loads(capsys.readouterr().out)["probes"]
    assert {name: card["tells apart"] for name, card in probes.items()} == {p: power_of_probe(p) for p in PROBES}
    assert run(["list", "metrics", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    assert all(words.endswith(power_of_metric(name)) for name, words in told.items())


def test_policy_check_warns_and_does_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "powers", lambda: {"natural.mass.old": WEAK})
    rules = '[[rule]]\nid = "weak"\nmetric = "natural.mass.old"\nmax = 0.1\n'
    (tmp_path / "mine.toml").write_text(f'schema = "recerase.policy/1"\n{rules}')
    assert run(["policy", "check", str(tmp_path / "mine.toml")]) == 0
    said = capsys.readouterr()
    assert "Rule 'weak' gates on natural.mass.old, but it does not reach 0.9" in " ".join(said.err.split())
    assert "all usable" in said.out
    (tmp_path / "mine.toml").write_text(f'schema = "recerase.policy/1"\n{rules}optional = true\n')
    assert run(["policy", "check", str(tmp_path / "mine.toml")]) == 0
    assert "gates on" not in capsys.readouterr().err


def test_the_shipped_policy_is_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "check"]) == 0
    assert "gates on" not in capsys.readouterr().err
