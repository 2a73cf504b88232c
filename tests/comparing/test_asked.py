"""What a comparison is asked: methods and settings that exist, and a grid that gives nobody more chances."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from recerase.comparing.asked import (
    Contender,
    check_seeds,
    contenders,
    read_seeds,
    runnable,
    seeded,
    settings,
    steps_of,
)
from recerase.comparing.run import CompareConfig
from recerase.erase.methods import METHODS, make_config
from recerase.errors import UsageError


@pytest.mark.parametrize(
    ("methods", "overrides", "said"),
    [
        ([""], [], "No method"),
        (["npo", "npo"], [], "twice"),
        (["tracer", "tracer/default"], [], "twice"),
        (["filter"], [], "control"),
        (["npoo"], [], "npo"),
        (["tracer/papr"], [], "paper"),
        (["npo"], ["npo.stepz=3"], "steps"),
        (["npo"], ["steps=3"], "METHOD.KEY=VALUE"),
        (["npo"], ["npo.steps"], "METHOD.KEY=VALUE"),
        (["npo"], ["ga.steps=3"], "not compared"),
        (["npo"], ["npo.steps=3", "npo.steps=4"], "twice"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(methods: list[str], overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        contenders(methods, overrides)


def test_settings_go_to_the_method_they_name() -> None:
    npo, paper = contenders([" npo", "tracer/paper"], ["npo.lr=0.5", "tracer/paper.reassign_steps=7"])
    assert (npo.config.lr, npo.given) == (0.5, ("lr",))
    assert (paper.config.reassign_steps, paper.config.settle_steps, paper.preset) == (7, 0, "paper")


@pytest.mark.parametrize("name", [name for name, card in METHODS.items() if card.strength])
def test_the_grid_of_every_card_can_be_run(name: str) -> None:
    card = METHODS[name]
    base = make_config(card, None, {})
    assert set(card.strength) <= set(asdict(base))
    (contender,) = contenders([name])
    tried = settings(contender, 1000, 0)
    assert tried[0].config == base
    assert len({repr(x.config) for x in tried}) == len(tried) > 2
    for x in tried[1:]:
        assert x.changed
        assert replace(base, **x.changed) == x.config
    assert "strength" in card.facts


def test_everybody_gets_the_same_number_of_settings_and_its_own_first() -> None:
    for contender in contenders(["npo", "tracer", "scif"]):
        tried = settings(contender, 5, 0)
        assert len(tried) == 5
        assert (tried[0].config, tried[0].changed) == (contender.config, {})
        assert tried == settings(contender, 5, 0)
        assert [x.changed for x in tried] == [x.changed for x in settings(contender, 9, 0)[:5]]
    assert [x.changed for x in settings(contender, 5, 0)] != [x.changed for x in settings(contender, 5, 1)]
    assert len(settings(contender, 0, 0)) == 1


def test_what_was_given_by_hand_or_is_nought_is_not_searched() -> None:
    (npo,) = contenders(["npo"], ["npo.lr=0.01"])
    assert {key for x in settings(npo, 50, 0) for key in x.changed} == {"steps"}
    (paper,) = contenders(["tracer/paper"])
    assert {key for x in settings(paper, 50, 0) for key in x.changed} == {"reassign_steps", "forget_weight"}
    assert all(isinstance(x.config.reassign_steps, int) for x in settings(paper, 50, 0))


def test_seeds_are_a_list_of_different_numbers() -> None:
    assert read_seeds("3, 1") == (3, 1)
    for wrong in ("", "a", "1,,2", "1.5"):
        with pytest.raises(UsageError, match="0,1,2"):
            read_seeds(wrong)
    for seeds in ((), (1, 1), (-1,), (2**31,)):
        with pytest.raises(UsageError, match="different"):
            check_seeds(seeds)


@pytest.mark.parametrize(
    "fields",
    [
        {"search": -1},
        {"max_drop": 2.0},
        {"training_seconds": 0.0},
        {"scope": "none"},
        {"seeds": (1, 1)},
        {"beam": 9},
        {"ucan": -1},
    ],
)
def test_a_configuration_that_says_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CompareConfig(("npo",), **fields)  # type: ignore[arg-type]


def test_a_retraining_takes_the_seed_of_its_cell_and_others_have_none() -> None:
    (again, npo) = contenders(["retrain", "npo"])
    assert seeded(again.config, 4).seed == 4
    assert seeded(replace(again.config, seed=9), 4).seed == 9
    assert seeded(npo.config, 4) is npo.config
    assert (steps_of(npo.config), steps_of(again.config)) == (100, None)


def test_all_is_every_method_but_those_that_stand_elsewhere_once() -> None:
    names = [x.name for x in contenders(["all"])]
    assert set(names) == set(METHODS) - {"filter", "retrain"}
    mixed = contenders(["npo", "all", "tracer/paper"], ["ga.steps=3"])
    assert next(x.name for x in mixed) == "npo"
    assert sorted(x.name for x in mixed) == sorted([*names, "tracer/paper"])
    assert {x.name for x in mixed if x.called} == {"npo", "tracer/paper"}
    assert {x.name: x.given for x in mixed}["ga"] == ("steps",)
    same = [x.name for x in contenders(["tracer/default", "all"])]  # beside itself nobody would be alone
    assert sorted(same) == sorted({*names, "tracer/default"} - {"tracer"})
    with pytest.raises(UsageError, match="twice"):
        contenders(["all", "all"])


def test_of_all_who_cannot_run_is_left_out_with_the_reason_and_who_is_named_is_not() -> None:
    def refusing(entrants: tuple[Contender, ...]) -> tuple[Contender, ...]:
        return tuple(replace(x, card=replace(x.card, refuses=f"{__name__}:refuse")) for x in entrants)

    nothing = SimpleNamespace(table=None, codebooks=None, embeddings=None)
    npo, ga = (replace(x, called=x.name == "npo") for x in contenders(["npo", "ga"]))
    kept, out = runnable(refusing((npo, ga)), nothing)  # type: ignore[arg-type]
    assert [x.name for x in kept] == ["npo"]
    assert out == {"ga": "These SIDs will not do."}
    with pytest.raises(UsageError, match="No method"):
        runnable(refusing((ga,)), nothing)  # type: ignore[arg-type]


def refuse(*given: object) -> None:
    raise UsageError("These SIDs will not do.", "Make others.")
