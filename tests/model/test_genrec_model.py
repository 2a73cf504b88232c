"""genrec's Tiger on the tree of next codes is its own forward, whatever the batch, the padding and the beams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.layouts import genrec_twin as twin
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.model.decode import recommend
from recerase.model.genrec import BUCKETS, GenrecTiger, Tiger, TigerConfig, _bucket
from recerase.model.mass import catalogue_log_probs, concept_mass
from recerase.model.recommender import wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

CLOSE = {"rtol": 0.0, "atol": 2e-5}
USER = 3
N = 30


@pytest.fixture(scope="module")
def table() -> SidTable:
    schema = SidSchema(
        codes=(twin.K,) * 3,
        rows=tuple(level * twin.K + np.arange(twin.K, dtype=np.int64) for level in range(3)),
        vocabulary=3 * twin.K + 1,
        pad=3 * twin.K,
        bos=-1,
        eos=-1,
        collisions="allowed",
    )
    return SidTable.build([str(i) for i in range(N)], twin.sids()[:N].astype(np.int32), schema)


@pytest.fixture(scope="module")
def stand_in() -> twin.Tiger:
    return twin.tiger()


@pytest.fixture(scope="module")
def model(stand_in: twin.Tiger, table: SidTable) -> GenrecTiger:
    module = Tiger(TigerConfig(16, 24, 20, 3, 2, 2, 3, twin.K, twin.USERS, 3 * twin.WINDOW, USER))
    module.load_state_dict(stand_in.state_dict())
    found = wrap(module, table.schema, twin.WINDOW)
    assert isinstance(found, GenrecTiger)
    return found


LISTS = [[0, 1, 5, 2], [], [8], list(range(20)), [3, 7, 3, 7], [11, 21], [24, 25, 1, 0, 4, 6]]


def slow(stand_in: twin.Tiger, table: SidTable, lists: list[list[int]], paths: Tensor) -> Tensor:
    """float64 [B, P, L, V] log-probabilities along paths of codes [P, L], by the stand-in's whole forward."""
    codes = table.codes.tolist()
    ids, types, mask = twin.collated([[codes[i] for i in items[-twin.WINDOW :]] for items in lists])
    out = []
    with torch.inference_mode():
        for path in paths:
            users = torch.full((len(lists),), USER + 5 * twin.USERS)  # taken by its remainder
            out.append(stand_in(users, ids, types, mask, path[:-1].expand(len(lists), -1)).double().log_softmax(-1))
    return torch.stack(out, 1)


def test_every_node_is_the_whole_forward_of_its_path(model: GenrecTiger, stand_in: twin.Tiger, table: SidTable) -> None:
    rng = np.random.default_rng(1)
    paths = torch.from_numpy(rng.integers(0, twin.K, (9, 3)))
    paths[5:, 0], paths[7:, 1] = paths[4, 0], paths[4, 1]  # kin
    truth = slow(stand_in, table, LISTS, paths).float()
    tokens, lengths = model.tokens(Histories.from_lists(LISTS), table)
    assert lengths.tolist() == [1 + 3 * min(len(items), twin.WINDOW) for items in LISTS]
    with torch.inference_mode():
        root = model.start(tokens, lengths)
        torch.testing.assert_close(root.log_probs, truth[:, 0, 0], **CLOSE)
        one = model.advance(root, paths[:, 0], None)
        torch.testing.assert_close(one.log_probs, truth[:, :, 1], **CLOSE)
        parents = torch.from_numpy(rng.permutation(9))
        two = model.advance(one, paths[parents, 1] + twin.K, parents)
        torch.testing.assert_close(two.log_probs, truth[:, parents, 2], **CLOSE)
        own = torch.stack([torch.from_numpy(rng.permutation(9)) for _ in LISTS])  # other beams a history
        two = model.advance(one, paths[own, 1] + twin.K, own)
        wanted = truth[:, :, 2].gather(1, own[..., None].expand(-1, -1, truth.shape[3]))
        torch.testing.assert_close(two.log_probs, wanted, **CLOSE)


def test_a_history_reads_the_same_in_any_batch(model: GenrecTiger, table: SidTable) -> None:
    histories = Histories.from_lists(LISTS)
    with torch.inference_mode():
        tokens, lengths = model.tokens(histories, table)
        together = model.start(tokens, lengths).log_probs
        wider = torch.cat([tokens, torch.zeros(len(tokens), 4, dtype=torch.int64)], 1)
        torch.testing.assert_close(model.start(wider, lengths).log_probs, together, **CLOSE)
        for row in range(len(LISTS)):
            alone = model.start(*model.tokens(histories.take(np.array([row])), table)).log_probs
            torch.testing.assert_close(alone[0], together[row], **CLOSE)


def test_mass_and_catalogue_are_sums_over_whole_forwards(
    model: GenrecTiger, stand_in: twin.Tiger, table: SidTable
) -> None:
    histories = Histories.from_lists(LISTS)
    paths = torch.from_numpy(table.codes.astype(np.int64))
    rows = torch.from_numpy(table.rows())
    along = slow(stand_in, table, LISTS, paths).gather(3, rows.expand(len(LISTS), -1, -1)[..., None])[..., 0].sum(2)
    for batch in (2, 64):
        found = catalogue_log_probs(model, table, histories, batch=batch)
        np.testing.assert_allclose(found, along.numpy(), atol=5e-5)
    members = np.arange(N) % 4 == 1
    mass = concept_mass(model, table, members, histories, batch=3).mass
    np.testing.assert_allclose(mass, along.exp().numpy()[:, members].sum(1), rtol=1e-4)


def test_beams_as_wide_as_the_catalogue_find_the_best(model: GenrecTiger, table: SidTable) -> None:
    histories = Histories.from_lists(LISTS)
    ranked = recommend(model, table, histories, k=5, beam=N)
    best = np.argsort(-catalogue_log_probs(model, table, histories), 1)[:, :5]
    assert [list(map(int, row)) for row in ranked.items] == best.tolist()


def test_the_user_is_read_and_not_learned(model: GenrecTiger, table: SidTable) -> None:
    tokens, lengths = model.tokens(Histories.from_lists([[1, 2], []]), table)
    module = model.module
    model.start(tokens, lengths).log_probs[:, 5].sum().backward()
    users = module.user_id_embedding["emb"].weight
    assert users.grad is None
    assert module.sem_id_embedding["emb"].weight.grad is not None
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        before = model.start(tokens, lengths).log_probs
        users[USER] += 1
        after = model.start(tokens, lengths).log_probs
        users[USER] -= 1
    assert (before - after).abs().amax(1).min() > 1e-3


def test_soft_tokens_reach_the_embedding_they_stand_for(model: GenrecTiger, table: SidTable) -> None:
    tokens, lengths = model.tokens(Histories.from_lists(LISTS), table)
    with torch.inference_mode():
        hard = model.start(tokens, lengths).log_probs
        torch.testing.assert_close(model.start(tokens, lengths, model.embed(tokens)).log_probs, hard, **CLOSE)
        moved = model.embed(tokens).roll(1, 2)
        assert (model.start(tokens, lengths, moved).log_probs - hard).abs().max() > 1e-2


def test_distances_fall_into_the_buckets_of_the_stand_in() -> None:
    distances = torch.arange(-200, 201)
    assert torch.equal(_bucket(distances), twin.bucket(-distances))
    assert _bucket(distances).unique().numel() == BUCKETS - 1  # nothing stands after a key at no distance
