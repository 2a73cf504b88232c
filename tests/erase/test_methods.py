"""The registry: names and presets are found or offered, settings are parsed or refused all at once."""

from __future__ import annotations

import dataclasses

import pytest

from recerase.erase.methods import METHODS, get_method, make_config
from recerase.erase.tracer_config import RenormaliseConfig, TracerConfig
from recerase.errors import UsageError


def test_names_are_keys_and_the_flagship_is_first() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert next(iter(METHODS)) == "tracer"


def test_a_name_may_carry_a_preset() -> None:
    assert get_method("tracer") == (METHODS["tracer"], None)
    assert get_method("tracer/paper") == (METHODS["tracer"], "paper")


@pytest.mark.parametrize("name", ["tracr", "tracr/paper"])
def test_an_unknown_method_is_answered_with_the_nearest_and_all(name: str) -> None:
    with pytest.raises(UsageError, match="no method 'tracr'") as caught:
        get_method(name)
    assert "Did you mean tracer?" in caught.value.remedy
    assert all(known in caught.value.remedy for known in METHODS)


def test_an_unknown_preset_is_refused_wherever_it_is_given() -> None:
    for ask in (
        lambda: get_method("tracer/papers"),
        lambda: make_config(METHODS["tracer"], None, {"preset": "papers"}),
        lambda: make_config(METHODS["tracer"], "papers", {}),
    ):
        with pytest.raises(UsageError, match="no preset 'papers'") as caught:
            ask()
        assert "paper" in caught.value.remedy
    with pytest.raises(UsageError, match="no preset 'paper'"):
        make_config(METHODS["npo"], None, {"preset": "paper"})


def test_settings_are_laid_over_the_preset() -> None:
    config = make_config(METHODS["tracer"], "paper", {"batch": "7", "lr": "2e-3", "mask": "FALSE", "coherence": "mass"})
    paper = TracerConfig.preset("paper")
    assert config == dataclasses.replace(paper, batch=7, lr=2e-3, mask=False, coherence="mass")
    assert make_config(METHODS["tracer"], None, {"preset": "paper"}) == paper
    assert make_config(METHODS["tracer"], "default", {}) == TracerConfig() == make_config(METHODS["tracer"], None, {})
    assert make_config(METHODS["renormalise"], None, {}) == RenormaliseConfig()


def test_all_wrong_settings_are_told_at_once() -> None:
    wrong = {"batch": "7.5", "lr": "fast", "mask": "1", "coherence": "triples", "forget_wait": "1", "tau_end": "nan"}
    with pytest.raises(UsageError) as caught:
        make_config(METHODS["tracer"], None, wrong)
    for part in (
        "batch=7.5 is not a whole number",
        "lr=fast is not a number",
        "mask=1 is not true or false",
        "coherence=triples is not one of mass, pairs",
        "forget_wait is unknown (did you mean forget_weight?)",
        "tau_end=nan is not a number",
    ):
        assert part in caught.value.message


def test_paper_preset_is_the_published_ports_settings() -> None:
    """METHODS 1: tau .005, K 5, lr 1e-4, phi lr 1e-2, l = 1 / 1 / 1e-3, SGD, 500 steps; mask and argmax; no second phase."""
    paper = TracerConfig.preset("paper")
    assert (paper.tau_start, paper.tau_end, paper.neighbours) == (0.005, 0.005, 5)
    assert (paper.lr, paper.phi_lr, paper.optimizer, paper.reassign_steps) == (1e-4, 1e-2, "sgd", 500)
    assert (paper.forget_weight, paper.coherence_weight, paper.reg_weight) == (1.0, 1.0, 1e-3)
    assert (paper.forget_loss, paper.coherence, paper.commit, paper.mask) == ("ascent", "pairs", "argmax", True)
    assert (paper.settle_steps, paper.clip) == (0, 0.0)
