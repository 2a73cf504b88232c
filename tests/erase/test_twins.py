"""Virgin twins: drawn among the codes that no item has there, as much together as all drawings have on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.conftest import World

from recerase.catalog.interactions import Histories
from recerase.erase import twins
from recerase.erase.frontier import Frontier, Walk, besides, frontier
from recerase.erase.paths import start
from recerase.erase.twins import Unseen, drawn_twins
from recerase.model.recommender import Recommender

Loud = Callable[..., Recommender]


def drawn(model: Recommender, world: World, batch: Histories, seed: int) -> tuple[Frontier, Unseen]:
    found = frontier(world.table, world.members)
    clean = batch.without(world.members)

    def lent(seen: Walk) -> torch.Tensor:
        return torch.zeros(len(clean), found.closed)

    with torch.no_grad():
        return found, drawn_twins(model, world.table, found, clean, lent, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_twins_are_unused_codes_and_what_is_below_a_prefix_adds_up(
    world: World, loud: Loud, kind: str, batch: Histories
) -> None:
    found, unseen = drawn(loud(kind), world, batch, 0)
    depth_of = []
    for depth, (rank, twin) in enumerate(zip(found.ranks, unseen.twins, strict=True)):
        some = rank.virgin.sum(1) > 0
        assert (twin[~some] == -1).all()
        assert (rank.virgin[some].gather(1, twin[some][:, None]) > 0).all()
        depth_of += [depth + 1] * len(rank.closed)
    whole = torch.tensor(depth_of) == world.table.levels
    assert (unseen.continued[whole] == 0).all()
    assert (unseen.continued[~whole] < 0).all()
    below = [items for rank in found.ranks for items in rank.below]
    for items in below:
        assert float(unseen.part[torch.from_numpy(items)].exp().sum()) == pytest.approx(1.0, abs=1e-4)
    outside = np.setdiff1d(np.arange(len(world.table)), np.concatenate(below))
    assert (unseen.part[torch.from_numpy(outside)] == 0).all()


def test_the_drawing_kept_has_about_the_mean_of_all(world: World, loud: Loud, batch: Histories) -> None:
    """Beside the mean over every unused code of every prefix: closer than a drawing taken blindly."""
    model, blind, kept = loud("causal"), [], []
    for seed in range(6):
        found, unseen = drawn(model, world, batch, seed)
        with torch.no_grad():
            near = besides(model, start(model, world.table, batch.without(world.members)), found)
        weights = unseen.continued.exp().split([len(rank.closed) for rank in found.ranks])

        def total(codes: list[torch.Tensor]) -> float:
            given = zip(near, codes, weights, strict=True)  # noqa: B023
            return float(sum((n.gather(1, c.clamp(min=0)[:, None])[:, 0] * (c >= 0) * w).sum() for n, c, w in given))

        mean = float(sum(((n * r.virgin).sum(1) * w).sum() for n, r, w in zip(near, found.ranks, weights, strict=True)))
        kept.append(abs(np.log(total(list(unseen.twins)) / mean)))
        torch.manual_seed(seed)
        some = [torch.where(r.virgin.sum(1) > 0, torch.multinomial(r.virgin + 1e-9, 1)[:, 0], -1) for r in found.ranks]
        blind.append(abs(np.log(total(some) / mean)))
    assert max(kept) < 0.05
    assert np.mean(blind) > 4 * np.mean(kept)


def test_a_seed_draws_the_same_twins_and_another_others(world: World, loud: Loud, batch: Histories) -> None:
    model = loud("causal")
    first, again, other = (drawn(model, world, batch, seed)[1] for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.twins, again.twins, strict=True))
    assert torch.equal(first.continued, again.continued)
    assert not all(torch.equal(a, b) for a, b in zip(first.twins, other.twins, strict=True))


def test_histories_are_read_a_few_at_a_time_and_every_part_has_its_own_drawings(
    world: World, loud: Loud, batch: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = loud("causal"), frontier(world.table, world.members)
    clean = batch.without(world.members)
    assert len(clean) > 5
    read: list[list[torch.Tensor]] = []
    real = twins._continued

    def noted(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(given[4])
        return real(*given)

    def lent(seen: Walk) -> torch.Tensor:
        return torch.cat([x[:, rank.closed] for x, rank in zip(seen.joint, found.ranks, strict=True)], 1)

    monkeypatch.setattr(twins, "_continued", noted)
    picks = twins._picks(found, 64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = twins._means(model, world.table, found, clean, lent, picks)
        monkeypatch.setattr(twins, "_AT_ONCE", 5)
        cut = twins._means(model, world.table, found, clean, lent, picks)
    for i in (0, *range(3, len(whole))):  # what precedes a twin, and what stands beside it
        torch.testing.assert_close(cut[i], whole[i], rtol=1e-4, atol=1e-8)
    depth = max(range(len(picks)), key=lambda d: picks[d].numel())
    used = [part[depth][: twins._SETS] for part in read[1:]]
    assert len(used) == -(-len(clean) // 5)
    assert all(torch.equal(a, picks[depth][i * twins._SETS :][: twins._SETS]) for i, a in enumerate(used))
