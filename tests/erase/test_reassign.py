"""q_phi, the gradient mask and the commit, each against its definition written out by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from tests.erase.conftest import CODES, N, World
from torch import Tensor

from recerase.erase.reassign import NEVER, CommitConfig, Quantiser, commit, gradient_mask, q_phi, quantiser
from recerase.errors import EraseError, TableError
from recerase.sid.codebooks import Codebooks
from recerase.sid.quantize import fit_codebooks
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

WIDE = CommitConfig(candidates=10_000, beam=10_000)
"""A search that leaves out nothing."""


def noise(quant: Quantiser, scale: float, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(d.shape, generator=generator, dtype=torch.float64) for d in quant.distances]


def zeros(quant: Quantiser) -> list[Tensor]:
    return [torch.zeros_like(d) for d in quant.distances]


def residuals_by_hand(books: Codebooks, embedding: np.ndarray, codes: tuple[int, ...]) -> list[np.ndarray]:
    """The residual entering each level under a path, one item at a time."""
    r = np.asarray(embedding, np.float64) - books.recipe.centre
    out = []
    for level, code in enumerate(codes):
        size = np.linalg.norm(r)
        r = r / size if size > 1e-6 else np.zeros_like(r)
        out.append(r)
        r = r - books.vectors[level][code].astype(np.float64)
    return out


@pytest.fixture(scope="module")
def quant(world: World) -> Quantiser:
    return quantiser(world.table, world.members, world.codebooks, world.embeddings)


# -- phi = 0 (METHODS 1a) ----------------------------------------------------------------------------------------------


def test_distances_are_float64_under_the_stored_path(world: World, quant: Quantiser) -> None:
    for m, item in enumerate(np.flatnonzero(world.members)):
        codes = tuple(int(c) for c in world.table.codes[item])
        for level, r in enumerate(residuals_by_hand(world.codebooks, world.embeddings[item], codes)):
            exact = ((r - world.codebooks.vectors[level].astype(np.float64)) ** 2).sum(1)
            assert quant.distances[level].dtype == torch.float64
            np.testing.assert_allclose(quant.distances[level][m].numpy(), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [0.005, 0.1])
def test_without_phi_the_stored_codes_are_the_likeliest_all_of_them(world: World, quant: Quantiser, tau: float) -> None:
    stored = torch.from_numpy(world.table.codes[world.members]).long()
    q = q_phi(quant, zeros(quant), tau)
    for level in range(3):
        assert torch.equal(q[level].argmax(1), stored[:, level])
        torch.testing.assert_close(q[level].sum(1), torch.ones(len(stored), dtype=torch.float64))
    assert world.table.resolved[world.members].any()  # also for an item whose code collision resolution changed


def test_without_phi_q_is_the_quantisers_softmax(world: World, quant: Quantiser) -> None:
    """Equation 5, wherever the stored code is the nearest and alone in that."""
    for level, q in enumerate(q_phi(quant, zeros(quant), 0.1)):
        nearest = quant.distances[level].sort(1).values
        stored = quant.distances[level].gather(1, quant.stored[:, level : level + 1])[:, 0]
        own = (stored == nearest[:, 0]) & (nearest[:, 1] > nearest[:, 0] + 1e-6)
        assert own.sum() >= 2
        torch.testing.assert_close(q[own], torch.softmax(-quant.distances[level][own] / 0.1, 1))


def test_phi_is_a_bonus_on_the_distance(quant: Quantiser) -> None:
    """Equation 6."""
    phi = noise(quant, 0.3)
    for level, q in enumerate(q_phi(quant, phi, 0.05)):
        logits = -quant.distances[level] + quant.pinned[level] + phi[level]
        torch.testing.assert_close(q, torch.softmax(logits / 0.05, 1))


def test_codebooks_of_another_recipe_are_refused(world: World) -> None:
    """Leaving out one normalisation is enough."""
    other = replace(world.codebooks, recipe=replace(world.codebooks.recipe, normalise_residuals=False))
    with pytest.raises(TableError, match="not 100 %"):
        quantiser(world.table, world.members, other, world.embeddings)


def test_codebooks_of_another_table_are_refused(world: World) -> None:
    shuffled = np.random.default_rng(0).permutation(N)
    with pytest.raises(TableError, match="do not belong together"):
        quantiser(world.table, world.members, world.codebooks, world.embeddings[shuffled])


def test_one_foreign_code_is_enough_to_refuse(world: World) -> None:
    item = int(np.flatnonzero(world.members & ~world.table.resolved)[0])
    codes = world.table.codes.copy()
    codes[item, 2] = world.codebooks.distances(world.embeddings, codes, 2)[item].argmax()
    foreign = SidTable(world.table.item_ids, codes, world.table.listed, world.table.schema, world.table.resolved)
    with pytest.raises(TableError, match="level 3"):
        quantiser(foreign, world.members, world.codebooks, world.embeddings)


def test_codebooks_fitted_to_a_foreign_table_are_pinned_to_it(world: World) -> None:
    """Codes made elsewhere are not the nearest to means of residuals; phi = 0 must give them all the same."""
    rng = np.random.default_rng(3)
    grid = rng.permutation(int(np.prod(CODES)))[:N]
    foreign = SidTable.build(world.table.item_ids, np.stack(np.unravel_index(grid, CODES), 1), world.table.schema)
    books = fit_codebooks(world.embeddings, foreign)
    assert books.fitted
    quant = quantiser(foreign, world.concept, books, world.embeddings)
    assert min(quant.agreement) < 1.0
    for level, q in enumerate(q_phi(quant, zeros(quant), 0.005)):
        assert (q.argmax(1).numpy() == foreign.codes[world.concept, level]).all()
        nearest = quant.distances[level].argmin(1).numpy() == foreign.codes[world.concept, level]
        pinned = quant.pinned[level].amax(1).numpy() > 0
        assert (pinned == ~nearest).all()


def test_equal_codewords_do_not_undo_the_stored_code(world: World) -> None:
    """Two codewords at one place: the tie is the stored code's, whichever of the two it is."""
    item = int(np.flatnonzero(world.members & ~world.table.resolved)[0])
    own = int(world.table.codes[item, 2])
    for twin in (k for k in range(CODES[2]) if k != own):
        words = world.codebooks.vectors[2].copy()
        words[twin] = words[own]
        books = replace(world.codebooks, vectors=(*world.codebooks.vectors[:2], words), fitted=True)
        only = np.arange(N) == item
        table = world.table
        codes = table.codes.copy()
        codes[39] = [0, 0, twin]  # so that the twin is in use
        quant = quantiser(replace(table, codes=codes), only, books, world.embeddings)
        assert int(q_phi(quant, zeros(quant), 0.005)[2].argmax(1)) == own


def test_codes_without_a_codeword_or_a_row_have_no_probability(world: World) -> None:
    """The schema spells one more code than there are codewords at level 2, and code 7 of level 3 has no row."""
    wide = SidSchema.native((CODES[0], CODES[1] + 1, CODES[2]))
    rows = (*wide.rows[:2], np.where(np.arange(CODES[2]) == 7, -1, wide.rows[2]))
    codes = world.table.codes.copy()
    codes[(codes == 7).any(1)] = -1
    table = SidTable.build(world.table.item_ids, codes, replace(wide, rows=rows), resolved=world.table.resolved)
    quant = quantiser(table, world.concept, world.codebooks, world.embeddings)
    assert [d.shape[1] for d in quant.distances] == [CODES[0], CODES[1] + 1, CODES[2]]
    for q in (q_phi(quant, zeros(quant), 0.1), q_phi(quant, noise(quant, 1.0), 0.1)):
        assert float(q[1][:, CODES[1]].max()) == 0.0
        assert float(q[2][:, 7].max()) == 0.0
    new = commit(table, world.concept, world.codebooks, world.embeddings, quant, noise(quant, 1.0), WIDE)
    assert (new.codes[:, 1] < CODES[1]).all()
    assert (new.codes[:, 2] != 7).all()


# -- the mask (equation 11, METHODS 1c) --------------------------------------------------------------------------------


def share_by_hand(world: World, level: int, code: int) -> float:
    kept = [i for i in range(N) if world.retained[i]]
    return sum(int(world.table.codes[i, level]) == code for i in kept) / len(kept)


@pytest.mark.parametrize("without_current", [False, True])
@pytest.mark.parametrize("tau", [0.005, 0.05, 0.5])
def test_the_mask_is_equation_11(world: World, quant: Quantiser, tau: float, without_current: bool) -> None:
    """One item, level and code at a time: rho(k) > E_q rho, and dL_F/dphi > 0."""
    q = q_phi(quant, noise(quant, 0.2), tau)
    gradient = noise(quant, 1.0, seed=1)
    masks = gradient_mask(quant, q, gradient, without_current)
    open_cells = 0
    for level, size in enumerate(CODES):
        rho = [share_by_hand(world, level, k) for k in range(size)]
        for m in range(len(q[level])):
            chances = q[level][m].tolist()
            if without_current:
                chances[int(np.argmax(chances))] = 0.0
            mean = sum(p * r for p, r in zip(chances, rho, strict=True)) / max(sum(chances), 1e-300)
            for k in range(size):
                if abs(rho[k] - mean) < 1e-12:
                    continue
                expected = rho[k] > mean and float(gradient[level][m, k]) > 0
                open_cells += expected
                assert bool(masks[level][m, k]) == expected
    assert open_cells > 10


def test_shares_are_of_the_retained_items(world: World, quant: Quantiser) -> None:
    for level, size in enumerate(CODES):
        assert quant.share[level].dtype == torch.float64
        for k in range(size):
            assert float(quant.share[level][k]) == pytest.approx(share_by_hand(world, level, k))


def test_without_the_current_code_the_mean_is_over_the_others_in_float64() -> None:
    """q = (1, 1e-80, 3e-80): float32 has no such numbers, and with the current code rhobar is its own rho."""
    share = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    logits = torch.tensor([[0.0, -80 * np.log(10), -80 * np.log(10) + np.log(3)]], dtype=torch.float64)
    q, up = [torch.softmax(logits, 1)], [torch.ones(1, 3, dtype=torch.float64)]
    fake = Quantiser((), (), torch.zeros(1, 1), (share,), (1.0,))
    with_it = gradient_mask(fake, q, up, without_current=False)[0]
    assert with_it.tolist() == [[0.0, 0.0, 0.0]]  # rhobar = .5 to the last bit: no code may gain
    without = gradient_mask(fake, q, up, without_current=True)[0]
    assert without.tolist() == [[1.0, 0.0, 1.0]]  # rhobar = (.1 + 3 * .4) / 4 = .325


def test_the_mask_keeps_q_as_it_is(quant: Quantiser) -> None:
    q = q_phi(quant, zeros(quant), 0.05)
    before = [x.clone() for x in q]
    gradient_mask(quant, q, noise(quant, 1.0), without_current=True)
    assert all(torch.equal(a, b) for a, b in zip(before, q, strict=True))


# -- the commit (METHODS 1d, 1e) ---------------------------------------------------------------------------------------


def forbidden(table: SidTable, members: np.ndarray) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """SIDs somebody has, and prefixes that only concept items have."""
    codes = [tuple(int(c) for c in row) for row in table.codes]
    used = {codes[i] for i in np.flatnonzero(table.present)}
    mine = {codes[i][:d] for i in np.flatnonzero(table.present & members) for d in (1, 2, 3)}
    theirs = {codes[i][:d] for i in np.flatnonzero(table.present & ~members) for d in (1, 2, 3)}
    return used, mine - theirs


def test_every_concept_item_gets_a_sid_that_nobody_had(world: World, quant: Quantiser) -> None:
    used, exclusive = forbidden(world.table, world.members)
    kept = ~world.members
    for seed in range(5):
        new = commit(
            world.table,
            world.members,
            world.codebooks,
            world.embeddings,
            quant,
            noise(quant, 0.5, seed),
            CommitConfig(),
        )
        assert (new.codes[kept] == world.table.codes[kept]).all()
        given_out = [tuple(int(c) for c in row) for row in new.codes[world.members]]
        assert len(set(given_out)) == len(given_out)
        assert not set(given_out) & used
        assert not any(sid[:d] in exclusive for sid in given_out for d in (1, 2))
        assert new.resolved[world.members].all()  # nearest codes no longer say where these items are
    assert any(len(prefix) < 3 for prefix in exclusive)  # there was something to keep out of


def test_the_commit_is_the_cheapest_assignment_with_residuals_of_each_candidates_own_path(
    world: World, quant: Quantiser
) -> None:
    """All 240 SIDs for each item by hand, and scipy's dense assignment; with residuals of the old path it differs."""
    phi = noise(quant, 0.3, seed=4)
    items = np.flatnonzero(world.members)
    used, exclusive = forbidden(world.table, world.members)
    sids = list(itertools.product(*map(range, CODES)))
    legal = [sid for sid in sids if sid not in used and not any(sid[:d] in exclusive for d in (1, 2))]
    crowd = {sid[:2]: sum(tuple(c[:2]) == sid[:2] for c in world.table.codes[world.retained].tolist()) for sid in sids}

    def cost(m: int, item: int, sid: tuple[int, ...], path: tuple[int, ...]) -> float:
        out = WIDE.sharing * np.log1p(crowd[sid[:2]])
        for level, r in enumerate(residuals_by_hand(world.codebooks, world.embeddings[item], path)):
            d = ((r - world.codebooks.vectors[level].astype(np.float64)) ** 2).sum(1)
            logits = (phi[level][m].numpy() + quant.pinned[level][m].numpy() - d) / WIDE.tau
            out += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[sid[level]]
        return float(out)

    new = commit(world.table, world.members, world.codebooks, world.embeddings, quant, phi, WIDE)
    own = np.array([[cost(m, i, sid, sid) for sid in legal] for m, i in enumerate(items)])
    found = [legal.index(tuple(int(c) for c in new.codes[i])) for i in items]
    row, column = linear_sum_assignment(own)
    assert own[np.arange(len(items)), found].sum() == pytest.approx(own[row, column].sum())
    stored = [tuple(int(c) for c in world.table.codes[i]) for i in items]
    stale = np.array([[cost(m, i, sid, stored[m]) for sid in legal] for m, i in enumerate(items)])
    _, wrong = linear_sum_assignment(stale)
    assert own[row, wrong].sum() > own[row, column].sum() + 1.0


def test_a_narrow_search_finds_an_assignment_that_is_no_better(world: World, quant: Quantiser) -> None:
    """The beam only leaves candidates out: with the defaults nearly all items get what the whole search gives them."""
    phi = noise(quant, 0.3, seed=4)
    args = (world.table, world.members, world.codebooks, world.embeddings, quant, phi)
    wide, narrow = commit(*args, WIDE), commit(*args, CommitConfig())
    same = (wide.codes == narrow.codes).all(1)[world.members]
    assert same.mean() >= 0.5


def test_sharing_keeps_items_away_from_crowded_prefixes(world: World, quant: Quantiser) -> None:
    crowd = {}
    for sharing in (0.0, 50.0):
        config = replace(WIDE, sharing=sharing)
        new = commit(world.table, world.members, world.codebooks, world.embeddings, quant, zeros(quant), config)
        retained = [tuple(c[:2]) for c in world.table.codes[world.retained].tolist()]
        crowd[sharing] = sum(retained.count(tuple(c[:2])) for c in new.codes[world.members].tolist())
    assert crowd[0.0] > 0
    assert crowd[50.0] == 0


def test_a_level_that_only_tells_twins_apart_is_derived_again(world: World) -> None:
    """Two codebooks and a third code without one, as published tables have it."""
    books = replace(world.codebooks, vectors=world.codebooks.vectors[:2], agreement=(1.0, 1.0))
    codes = np.concatenate([books.encode(world.embeddings), np.zeros((N, 1), np.int32)], 1)
    seen: dict[tuple[int, ...], int] = {}
    for row in codes:
        row[2] = seen.setdefault(tuple(row[:2]), 0)
        seen[tuple(row[:2])] += 1
    table = SidTable.build(world.table.item_ids, codes, SidSchema.native((*CODES[:2], 12)))
    quant = quantiser(table, world.concept, books, world.embeddings)
    assert torch.equal(q_phi(quant, zeros(quant), 0.1)[2].argmax(1), quant.stored[:, 2])
    new = commit(table, world.concept, books, world.embeddings, quant, noise(quant, 0.3), CommitConfig())
    used, exclusive = forbidden(table, world.concept)
    moved = [tuple(int(c) for c in row) for row in new.codes[world.concept]]
    assert len(set(moved)) == len(moved)
    assert not set(moved) & used
    assert not any(sid[:d] in exclusive for sid in moved for d in (1, 2))


@pytest.mark.parametrize("free", [0, 3, 8, 9, 12])
def test_too_few_free_sids_are_an_error_and_just_enough_are_not(free: int) -> None:
    """9 concept items and 50 SIDs in all, of which so many are free."""
    rng = np.random.default_rng(1)
    sizes, m = (2, 25), 9
    books = Codebooks(
        tuple(rng.normal(size=(k, 4)).astype(np.float32) for k in sizes),
        _recipe(4),
        fitted=True,
        agreement=(0.5, 0.5),
    )
    all_sids = np.array(list(itertools.product(range(2), range(25))), np.int32)
    codes = all_sids[: 50 - free]
    members = np.zeros(len(codes), bool)
    members[5 : 5 + m] = True
    table = SidTable.build([f"i{i}" for i in range(len(codes))], codes, SidSchema.native(sizes))
    embeddings = rng.normal(size=(len(codes), 4)).astype(np.float32)
    quant = quantiser(table, members, books, embeddings)
    if free < m:
        with pytest.raises(EraseError, match=rf"leave {free}\."):
            commit(table, members, books, embeddings, quant, zeros(quant), WIDE)
        return
    new = commit(table, members, books, embeddings, quant, zeros(quant), WIDE)
    moved = {tuple(c) for c in new.codes[members].tolist()}
    assert len(moved) == m
    assert moved <= {tuple(c) for c in all_sids[50 - free :].tolist()}


def test_items_that_all_want_the_same_few_sids_are_an_error(world: World) -> None:
    """Nine items at one place with four candidates each: no SID may be given twice, whatever the solver returns."""
    rng = np.random.default_rng(2)
    sizes, m = (3, 4, 5), 9
    books = Codebooks(tuple(rng.normal(size=(k, 4)).astype(np.float32) for k in sizes), _recipe(4), True, (0.5,) * 3)
    codes = np.stack(np.unravel_index(rng.permutation(60)[:20], sizes), 1)
    table = SidTable.build([f"i{i}" for i in range(20)], codes, SidSchema.native(sizes))
    members = np.arange(20) < m
    embeddings = rng.normal(size=(20, 4)).astype(np.float32)
    embeddings[:m] = embeddings[0]
    quant = quantiser(table, members, books, embeddings)
    level = [torch.zeros_like(d) for d in quant.distances]
    same = replace(quant, pinned=tuple(level))
    with pytest.raises(EraseError, match="too few candidates"):
        commit(table, members, books, embeddings, same, level, CommitConfig(candidates=4))
    new = commit(table, members, books, embeddings, same, level, CommitConfig(candidates=12, beam=20))
    assert len(np.unique(new.codes, axis=0)) == 20


def _recipe(width: int) -> Any:
    from recerase.sid.codebooks import Recipe

    return Recipe(np.zeros(width, np.float32), False, False)


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.5))
def test_whatever_the_table_new_sids_are_unique_free_and_outside_exclusive_prefixes(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    sizes, n = (4, 5, 6), 30
    books = Codebooks(tuple(rng.normal(size=(k, 3)).astype(np.float32) for k in sizes), _recipe(3), True, (0.5,) * 3)
    codes = np.stack(np.unravel_index(rng.permutation(120)[:n], sizes), 1).astype(np.int32)
    codes[rng.random(n) < 0.05] = -1
    table = SidTable.build([f"i{i}" for i in range(n)], codes, SidSchema.native(sizes))
    members = rng.random(n) < share
    if not (members & table.present).any() or not (~members & table.present).any():
        return
    embeddings = rng.normal(size=(n, 3)).astype(np.float32)
    quant = quantiser(table, members, books, embeddings)
    used, exclusive = forbidden(table, members)
    new = commit(table, members, books, embeddings, quant, noise(quant, 1.0, seed), CommitConfig())
    moved = [tuple(int(c) for c in row) for row in new.codes[members & table.present]]
    assert len(set(moved)) == len(moved)
    assert not set(moved) & used
    assert not any(sid[:d] in exclusive for sid in moved for d in (1, 2))
    assert (new.codes[~members] == table.codes[~members]).all()
    assert all(float(d.max()) <= NEVER for d in quant.distances)
