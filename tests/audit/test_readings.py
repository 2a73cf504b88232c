"""Readings are what the model says, whatever the batch, the order, or who asked first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit.cases import Case, concept_users, mass_users, natural_case, synthetic
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings, exposure
from recerase.errors import CheckpointError
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable


def with_batch(world: AuditWorld, batch: int) -> AuditWorld:
    return replace(world, config=replace(world.config, batch=batch, mass_batch=batch))


def test_batches_do_not_matter(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender, moved: SidTable
) -> None:
    model, case = audited(untrained, table=moved), natural_case(world)
    small, large = (Readings(model, with_batch(world, size)) for size in (3, 256))
    for side in ("new", "old"):
        np.testing.assert_array_equal(small.lists(case, side), large.lists(case, side))
        np.testing.assert_allclose(small.mass(case, side), large.mass(case, side), rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(small.free(case).rows, large.free(case).rows)


def test_the_order_of_users_does_not_matter(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    order = np.random.default_rng(0).permutation(len(world.histories))
    readings = Readings(audited(untrained), world)
    case, shuffled = natural_case(world), Case("shuffled", world.histories.take(order))
    np.testing.assert_array_equal(readings.lists(case)[order], readings.lists(shuffled))
    np.testing.assert_allclose(readings.mass(case)[order], readings.mass(shuffled), rtol=1e-5, atol=1e-12)


def test_old_mass_is_the_sum_over_old_sids_after_histories_in_the_new_table(
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    untrained: Recommender,
    moved: SidTable,
    table: SidTable,
) -> None:
    """Twin: the plain forward pass of transformers on each history followed by each old SID."""
    case = Case("some", world.histories.take(np.flatnonzero(concept_users(world))[:6]))
    fast = Readings(audited(untrained, table=moved), world).mass(case, "old")
    tokens, lengths = untrained.tokens(case.histories, moved)
    old = torch.as_tensor(table.rows()[world.members])  # [M, L]
    slow = []
    with torch.inference_mode():
        for row, length in zip(tokens, lengths, strict=True):
            prompts = torch.cat([row[:length].expand(len(old), -1), old], dim=1)
            log_p = untrained.module(input_ids=prompts).logits.float().log_softmax(-1)
            steps = [log_p[:, int(length) - 1 + j].gather(1, old[:, j : j + 1])[:, 0] for j in range(old.shape[1])]
            slow.append(float(sum(steps).exp().sum()))
    np.testing.assert_allclose(fast, slow, rtol=1e-4)


def test_a_model_whose_table_never_changed_reads_old_and_new_alike(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    readings, case = Readings(audited(untrained), world), natural_case(world)
    assert readings.lists(case, "old") is readings.lists(case, "new")
    assert readings.mass(case, "old", read="old") is readings.mass(case, "new")


def test_a_filter_shares_every_mass_and_no_list_with_its_original(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    cache: dict = {}
    original = audited(untrained, role="original")
    filtered = replace(original, role="filter", listed=~world.members)
    a, b, case = Readings(original, world, cache), Readings(filtered, world, cache), natural_case(world)
    assert a.mass(case) is b.mass(case)
    assert a.lists(case, "old") is b.lists(case, "old")
    assert not np.array_equal(a.lists(case), b.lists(case))


def test_other_weights_never_inherit_a_reading(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender, planted: Callable[[int], Recommender]
) -> None:
    cache: dict = {}
    case = natural_case(world)
    first = Readings(audited(untrained, digest="a"), world, cache).mass(case)
    second = Readings(audited(planted(0), digest="b"), world, cache).mass(case)
    assert not np.allclose(first, second)


def test_a_reference_reads_histories_without_the_concept(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    readings = Readings(audited(untrained, role="reference", reads_concept=False), world)
    seen = readings.histories(natural_case(world))
    assert len(seen) == len(world.histories)
    assert not world.members[seen.items].any()


def test_a_short_catalogue_leaves_slots_empty(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    few = np.arange(len(world.members)) < 3
    lists = Readings(audited(untrained, listed=few), world).lists(natural_case(world))
    assert (np.sort(lists[:, :3], axis=1) == [0, 1, 2]).all()
    assert (lists[:, 3:] == -1).all()
    nothing = Readings(audited(untrained, listed=few & False), world).lists(natural_case(world))
    assert (nothing == -1).all()


def test_no_sid_no_mass(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender, table: SidTable
) -> None:
    gone = replace(table, codes=np.where(world.members[:, None], -1, table.codes).astype(np.int32))
    readings = Readings(audited(untrained, table=gone), world)
    assert (readings.mass(natural_case(world), "new") == 0).all()
    assert (readings.mass(natural_case(world), "old") > 0).all()


def test_exposure_counts_slots_and_no_empty_ones() -> None:
    members = np.array([False, False, True])  # -1 must not wrap round to the last item
    np.testing.assert_allclose(exposure(np.array([[2, 0, -1, -1], [1, 0, 2, -1]]), members, 2), [0.5, 0.0])
    np.testing.assert_allclose(exposure(np.array([[2, 0, -1, -1], [1, 0, 2, -1]]), members, 4), [0.25, 0.25])


def test_mass_users_are_samples_of_everyone_and_of_the_concepts_users(world: AuditWorld) -> None:
    sample = mass_users(world)
    touched = np.flatnonzero(concept_users(world))
    assert len(sample.everyone) == min(40, len(world.histories))
    assert len(sample.of_concept) == min(40, len(touched))
    assert np.isin(sample.rows[sample.of_concept], touched).all()
    np.testing.assert_array_equal(sample.case.histories.users, world.histories.users[sample.rows])


def test_synthetic_histories_take_the_first_items_of_each_row() -> None:
    made = synthetic(np.array([[1, 2, 3], [4, 5, 6]]), np.array([1, 3]))
    np.testing.assert_array_equal(made.padded(3), [[1, -1, -1], [4, 5, 6]])
    assert made.targets.tolist() == [-1, -1]


@pytest.mark.parametrize("kind", ["lists", "list_scores", "mass", "best", "entropy", "free"])
def test_a_reading_is_made_once(
    kind: str, world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    readings, case = Readings(audited(untrained), world), natural_case(world)
    assert getattr(readings, kind)(case) is getattr(readings, kind)(case)


def test_a_model_that_says_nothing_is_refused_and_does_not_look_clean(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    with torch.no_grad():
        untrained.module.lm_head.weight.fill_(float("nan"))
    readings = Readings(audited(untrained), world)
    for kind in ("lists", "mass"):
        with pytest.raises(CheckpointError, match="no finite probability"):
            getattr(readings, kind)(natural_case(world))


class Kept(dict[str, bytes]):
    """A state in memory that counts what was found in it."""

    found = 0

    def read(self, name: str) -> bytes | None:
        self.found += name in self
        return self.get(name)

    def write(self, name: str, data: bytes) -> None:
        assert name not in self
        self[name] = data


@pytest.mark.parametrize("kind", ["lists", "list_scores", "mass", "best", "entropy", "free"])
def test_in_blocks_from_a_state_or_in_one_go_a_reading_has_the_same_bits(
    kind: str,
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    untrained: Recommender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """60 users in batches of 8: as one block, as blocks of one batch, and with every other block from a state."""
    small = replace(world, config=replace(world.config, batch=8, mass_batch=8))
    model, case = audited(untrained, digest="a"), natural_case(world)

    def read(state: Kept | None = None) -> list[np.ndarray]:
        found = getattr(Readings(model, small, state=state), kind)(case)
        return [found.rows, found.scores] if kind == "free" else [found]

    whole = read()
    monkeypatch.setattr("recerase.audit.readings.BLOCK", 1)
    kept = Kept()
    first = read(kept)
    blocks = len(kept)
    assert blocks == -(-len(case) // 8)
    for name in list(kept)[::2]:
        del kept[name]
    again = read(kept)
    assert kept.found == blocks // 2
    for a, b, c in zip(whole, first, again, strict=True):
        assert a.dtype == b.dtype == c.dtype
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_a_model_without_a_digest_leaves_nothing_to_be_found(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    kept = Kept()
    Readings(audited(untrained, digest=""), world, state=kept).mass(natural_case(world))
    assert not kept
