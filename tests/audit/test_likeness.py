"""What a model does with a user is read as it is, and erased models are told from references as references from one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit.cases import concept_users, concept_users_case, mass_users, natural_case
from recerase.audit.influence import history_influence
from recerase.audit.likeness import (
    Features,
    columns,
    features_of,
    likeness,
    overlap,
    retained,
    user_features,
)
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.errors import CheckpointError, UsageError
from recerase.model.mass import catalogue_log_probs
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable

SMALL = 160


def some(seed: int, *, shift: float = 0.0, n: int = SMALL, agree: float = 0.8) -> Features:
    """Made-up features: users differ much, models little; `shift` moves the masses, `agree` is how much lists are the same."""
    who, own = np.random.default_rng(99), np.random.default_rng(seed)
    mass = 10.0 ** (who.normal(-6, 1, n) + own.normal(0, 0.3, n) + shift)
    usual = np.argsort(who.random((n, 40)), axis=1)[:, :10]
    lists = np.where(own.random((n, 10)) < agree, usual, 40 + np.arange(10) + 10 * seed)
    place = np.full(n, 21.0)
    return Features(
        users=np.arange(n) * 3,
        touched=np.arange(n) % 3 == 0,
        mass={"old": mass, "new": mass},
        best={"old": np.log(mass / 2), "new": np.log(mass / 2)},
        place={"old": place, "new": place},
        entropy=who.gamma(2, 1, n) + own.normal(0, 0.1, n),
        list_entropy=who.gamma(2, 1, n) + own.normal(0, 0.1, n),
        lists=lists,
    )


@pytest.fixture(scope="module")
def gold() -> list[Features]:
    return [some(seed) for seed in (1, 2, 3)]


def test_a_further_retrained_model_is_told_apart_no_better_than_references(gold: list[Features]) -> None:
    found = likeness([some(4)], gold, "influence")
    assert found.references is not None
    assert found.erased == pytest.approx(found.references, abs=0.08)
    assert found.difference == pytest.approx(found.erased - found.references)
    assert found.interval is not None
    assert found.interval.low <= 0.0 <= found.interval.high
    assert not found.notes


@pytest.mark.parametrize("shift", [-1.5, 1.5])
def test_too_much_mass_gives_away_and_so_does_too_little(gold: list[Features], shift: float) -> None:
    found = likeness([some(4, shift=shift)], gold, "output")
    assert found.difference is not None
    assert found.difference > 0.15
    assert found.within() is False
    assert (found.tells["mass"] > 0.7) == (shift > 0)
    assert found.tells["entropy"] == pytest.approx(0.5, abs=0.05)


def test_other_lists_give_away_by_the_overlap_with_a_third_model(gold: list[Features]) -> None:
    found = likeness([some(4, agree=0.3)], gold, "influence")
    assert found.erased > 0.9
    assert found.tells["overlap"] < 0.1


def test_the_table_that_gives_away_counts(gold: list[Features]) -> None:
    """Only the new SIDs are too likely."""
    clean, leaking = some(4), some(4, shift=2.0)
    mixed = replace(
        clean,
        **{
            part: {"old": getattr(clean, part)["old"], "new": getattr(leaking, part)["new"]}
            for part in ("mass", "best")
        },
    )
    found = likeness([mixed], gold, "output")
    assert set(found.sides) == {"old", "new"}
    assert found.erased == found.sides["new"] > found.sides["old"] + 0.1
    assert set(likeness([clean], gold, "output").sides) == {"old"}, "one table is read once"


def test_a_table_that_spells_no_concept_item_is_said_and_not_compared(gold: list[Features]) -> None:
    clean = some(4)
    without = replace(clean, **{part: {"old": getattr(clean, part)["old"]} for part in ("mass", "best", "place")})
    found = likeness([without], gold, "output")
    assert set(found.sides) == {"old"}
    assert any("new table" in note for note in found.notes)


def test_every_seed_counts_and_the_interval_holds_them_all(gold: list[Features]) -> None:
    found = likeness([some(4), some(5, shift=1.5)], gold, "output")
    assert len(found.seeds) == 2
    assert found.seeds[1] > found.seeds[0] + 0.1
    assert found.difference == pytest.approx(np.mean(found.seeds))
    assert found.interval is not None
    assert found.interval.low <= min(found.seeds)
    assert found.interval.high >= max(found.seeds)


def test_two_references_have_no_third_and_one_has_no_pair(gold: list[Features]) -> None:
    two = likeness([some(4)], gold[:2], "output")
    assert two.references is not None
    assert two.difference is not None
    assert "overlap" not in two.tells
    assert any("third" in note for note in two.notes)
    one = likeness([some(4)], gold[:1], "output")
    assert (one.references, one.difference, one.interval, one.within()) == (None, None, None, None)
    assert 0.5 <= one.erased <= 1.0
    assert len(one.notes) == 2


def test_what_the_list_shows_counts_for_everyone_only_under_influence() -> None:
    features, third = some(1), some(2)
    scoped = {"place", "entropy", "list_entropy", "overlap"}
    for scope, blank in (("output", features.touched), ("influence", np.zeros(SMALL, dtype=bool))):
        found = columns(features, "old", scope, third)  # type: ignore[arg-type]
        assert set(found) == scoped | {"mass", "best"}
        for name, x in found.items():
            np.testing.assert_array_equal(np.isnan(x), blank if name in scoped else np.zeros(SMALL, dtype=bool))


def test_lists_of_concept_users_tell_under_influence_and_not_under_output(gold: list[Features]) -> None:
    own, odd = some(4), some(4, agree=0.0)
    mixed = replace(own, lists=np.where(own.touched[:, None], odd.lists, own.lists))
    straight = likeness([own], gold, "output")
    assert likeness([mixed], gold, "output") == straight
    assert likeness([mixed], gold, "influence").erased > straight.erased + 0.05


def test_the_order_of_users_does_not_matter_and_the_seed_decides_all(gold: list[Features]) -> None:
    order = np.random.default_rng(0).permutation(SMALL)

    def shuffled(x: Features) -> Features:
        return features_of({name: values[order] for name, values in x.arrays().items()})

    straight = likeness([some(4)], gold[:2], "output", seed=2)
    assert likeness([some(4)], gold[:2], "output", seed=2) == straight
    other = likeness([shuffled(some(4))], [shuffled(x) for x in gold[:2]], "output", seed=2)
    assert other.erased == pytest.approx(straight.erased, abs=1e-12)
    assert other.difference == pytest.approx(straight.difference, abs=1e-12)


def test_other_users_or_nobody_is_refused(gold: list[Features]) -> None:
    with pytest.raises(UsageError, match="same users"):
        likeness([replace(some(4), users=np.arange(SMALL))], gold, "output")
    for own, base in (([], gold), ([some(4)], [])):
        with pytest.raises(UsageError, match="one of each"):
            likeness(own, base, "output")


def test_overlap_and_retained_by_hand() -> None:
    a, b = np.array([[1, 2, 3], [1, -1, -1], [-1, -1, -1]]), np.array([[3, 1, 7], [1, 2, 3], [-1, -1, -1]])
    np.testing.assert_allclose(overlap(a, b), [2 / 3, 1 / 2, 1.0])
    members = np.array([True, False, False, True])
    items, scores = retained(
        np.array([[0, 2, 3, 1], [1, -1, -1, -1]]), np.array([[-1.0, -2, -3, -4], [-1, -9, -9, -9]]), members
    )
    np.testing.assert_array_equal(items, [[2, 1, -1, -1], [1, -1, -1, -1]])
    np.testing.assert_array_equal(scores, [[-2, -4, -np.inf, -np.inf], [-1, -np.inf, -np.inf, -np.inf]])


def test_features_survive_a_file() -> None:
    whole = some(1)
    without = replace(whole, **{part: {"old": getattr(whole, part)["old"]} for part in ("mass", "best", "place")})
    for features in (whole, without):
        again = features_of(features.arrays())
        assert again.arrays().keys() == features.arrays().keys()
        for name, values in features.arrays().items():
            np.testing.assert_array_equal(again.arrays()[name], values)
            assert values.dtype == np.float64


@pytest.fixture
def subject(audited: Callable[..., AuditModel], untrained: Recommender, moved: SidTable) -> AuditModel:
    return audited(untrained, table=moved)


def test_features_are_what_scoring_the_whole_catalogue_gives(world: AuditWorld, subject: AuditModel) -> None:
    """Twin: every item's probability under the current table, no beam, no sub-trie."""
    wide = replace(world, config=replace(world.config, beam=100))
    found, sample = user_features(Readings(subject, wide)), mass_users(world)
    everything = catalogue_log_probs(subject.recommender, subject.table, sample.case.histories)
    concept = np.where(world.members, everything, -np.inf)
    others = np.sort(np.where(world.members, -np.inf, everything), axis=1)[:, ::-1]
    present = subject.table.present & world.members
    np.testing.assert_allclose(found.mass["new"], np.exp(everything[:, present].astype(float)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.best["new"], concept.max(axis=1), rtol=1e-5)
    in_list = (np.sort(everything, axis=1)[:, ::-1][:, :20] > concept.max(axis=1)[:, None]).sum(axis=1)
    known = in_list < 20  # places of items that are in the list are exact
    np.testing.assert_array_equal(found.place["new"][known], 1 + in_list[known])
    top = others[:, :10].astype(float)
    share = np.exp(top) / np.exp(top).sum(axis=1, keepdims=True)
    full = (found.lists >= 0).all(axis=1)
    assert full.any()
    np.testing.assert_allclose(found.list_entropy[full], -(share * np.log(share)).sum(axis=1)[full], rtol=1e-4)
    np.testing.assert_array_equal(found.touched, concept_users(world)[sample.rows])
    assert not world.members[found.lists[found.lists >= 0]].any()


def test_the_entropy_is_that_of_the_first_code(world: AuditWorld, subject: AuditModel) -> None:
    """Twin: the plain forward pass of transformers."""
    case = natural_case(world)
    found = Readings(subject, world).entropy(case)
    tokens, lengths = subject.recommender.tokens(case.histories, subject.table)
    with torch.inference_mode():
        log_p = subject.recommender.module(input_ids=tokens).logits.double().log_softmax(-1)
    last = log_p[torch.arange(len(tokens)), torch.as_tensor(lengths) - 1]
    np.testing.assert_allclose(found, -(last.exp() * last).sum(-1).numpy(), rtol=1e-4)


def test_batches_do_not_matter_to_features(world: AuditWorld, subject: AuditModel) -> None:
    read: list[dict[str, Any]] = []
    for size in (3, 256):
        read.append(
            user_features(
                Readings(subject, replace(world, config=replace(world.config, batch=size, mass_batch=size)))
            ).arrays()
        )
    for name, values in read[0].items():
        np.testing.assert_allclose(values, read[1][name], rtol=1e-4, atol=1e-9, err_msg=name)


def test_a_reference_is_read_without_the_concept_and_an_erased_model_as_is(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    """The same weights in both roles: they agree on users who never touched the concept, and not on the others."""
    own = user_features(Readings(audited(untrained), world))
    base = user_features(Readings(audited(untrained, role="reference", reads_concept=False), world))
    clean = ~own.touched
    assert 0 < clean.sum() < len(clean)
    for name, values in own.arrays().items():
        np.testing.assert_allclose(values[clean], base.arrays()[name][clean], rtol=1e-4, err_msg=name)
    assert (own.entropy[~clean] != base.entropy[~clean]).any()


def test_a_table_without_concept_items_has_no_side(world: AuditWorld, subject: AuditModel) -> None:
    gone = replace(subject.table, codes=np.where(world.members[:, None], -1, subject.table.codes).astype(np.int32))
    assert set(user_features(Readings(replace(subject, table=gone), world)).mass) == {"old"}


def test_history_influence_is_what_dropping_the_concept_moves(
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    untrained: Recommender,
    planted: Callable[[int], Recommender],
) -> None:
    model = audited(untrained)
    found = history_influence(Readings(model, world))
    case = concept_users_case(world)
    assert len(found) == len(case)
    assert 0.0 < found.mean() <= 1.0
    reference = replace(model, role="reference", reads_concept=False)
    np.testing.assert_allclose(history_influence(Readings(reference, world)), found)  # the same weights move as much
    deaf = history_influence(
        Readings(audited(planted(1)), world)
    )  # it looks at the last code only, and all SIDs' are alike
    np.testing.assert_array_equal(deaf, 0.0)


def test_a_model_that_says_nothing_has_no_entropy(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    with torch.no_grad():
        untrained.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="no finite probability"):
        Readings(audited(untrained), world).entropy(natural_case(world))
