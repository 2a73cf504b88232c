"""RQ-VAE finds structure, uses its codes, says when it does not, and gives the same bytes every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.errors import DataError, TableError, UsageError
from recerase.sid.codebooks import Codebooks
from recerase.sid.quantize import TokenizeConfig, spell
from recerase.sid.rqvae import Encoder, Learned, RqVaeConfig, rq_vae
from recerase.types import Silent

SMALL = TokenizeConfig(levels=3, codes=16, iterations=8)
NETS = RqVaeConfig(latent=8, hidden=(32,), epochs=60, batch=128)


def clusters(n: int = 800, groups: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres, group = 3 * rng.normal(size=(groups, 20)), rng.integers(0, groups, n)
    return (centres[group] + 0.3 * rng.normal(size=(n, 20))).astype(np.float32), group


@pytest.fixture(scope="module")
def learned() -> Learned:
    return rq_vae(clusters()[0], SMALL, NETS)


def unexplained(points: np.ndarray, codes: np.ndarray) -> float:
    """Share of the variance of points that no sum of one vector a code can explain."""
    ones = np.concatenate([np.eye(16)[column] for column in codes.T], axis=1)
    centred = points - points.mean(axis=0)
    fitted = ones @ np.linalg.lstsq(ones, centred, rcond=None)[0]
    return float(np.square(centred - fitted).sum() / np.square(centred).sum())


def test_codes_say_more_of_items_than_random_ones_and_are_used_evenly(learned: Learned) -> None:
    x, _ = clusters()
    codes = learned.codebooks.encode(learned.latents)
    shuffled = np.random.default_rng(1).permutation(codes)
    assert unexplained(x, codes) < 0.3
    assert unexplained(x, shuffled) > 0.9
    assert learned.error < 0.4
    assert min(learned.perplexity) > 12  # of 16
    assert learned.warnings == ()
    near = np.square(learned.latents - learned.codebooks.point(codes)).sum(1).mean()
    assert near < 0.2 * np.square(learned.latents - learned.codebooks.point(shuffled)).sum(1).mean()


def test_training_gains_over_the_start(learned: Learned) -> None:
    assert learned.error < 0.5 * rq_vae(clusters()[0], SMALL, replace(NETS, epochs=1)).error


def test_what_is_stored_gives_the_codes_again(learned: Learned) -> None:
    """The promise that TRACER and the audit rest on: nearest codewords of the stored latents are the stored codes."""
    books = Codebooks.from_tensors(learned.codebooks.to_tensors(), learned.codebooks.metadata())
    before = learned.codebooks.encode(learned.latents)
    table, report = spell(learned.latents, [f"i{i}" for i in range(800)], before, learned.codebooks, SMALL)
    kept = ~table.resolved
    assert 50 < kept.sum() < 800
    np.testing.assert_array_equal(books.nearest(learned.latents, table.codes)[kept], table.codes[kept])
    assert report.collision_after == 0
    encoder = Encoder.from_tensors(learned.encoder.to_tensors())
    np.testing.assert_array_equal(encoder.encode(clusters()[0]), learned.latents)
    one_by_one = np.concatenate([encoder.encode(row[None]) for row in clusters()[0][:20]])
    np.testing.assert_allclose(one_by_one, learned.latents[:20], rtol=1e-6, atol=1e-7)
    assert np.linalg.norm(learned.latents, axis=1).mean() == pytest.approx(1, abs=1e-4)


def test_same_seed_same_bytes_another_seed_others_and_nothing_set_outside(learned: Learned) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = rq_vae(clusters()[0], SMALL, NETS)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert again.latents.tobytes() == learned.latents.tobytes()
    for a, b in zip(again.codebooks.vectors, learned.codebooks.vectors, strict=True):
        assert a.tobytes() == b.tobytes()
    assert again.to_json() == learned.to_json()
    assert rq_vae(clusters()[0], replace(SMALL, seed=1), NETS).latents.tobytes() != learned.latents.tobytes()


def test_dead_codes_are_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codewords that start far from every item would never be used: with revival they are."""
    from recerase.sid import rqvae

    def far(model: rqvae._Model, x: torch.Tensor, config: TokenizeConfig) -> None:
        with torch.no_grad():
            for words in model.words:
                words[:] = 1e3 + torch.arange(len(words))[:, None]

    monkeypatch.setattr(rqvae, "_start", far)
    assert min(rq_vae(clusters()[0], SMALL, replace(NETS, epochs=15)).perplexity) > 8
    monkeypatch.setattr(rqvae, "_revive", lambda *_: None)
    collapsed = rq_vae(clusters()[0], SMALL, replace(NETS, epochs=15))
    assert min(collapsed.perplexity) < 2
    assert any("collapsed" in line for line in collapsed.warnings)
    assert any("variance" in line for line in collapsed.warnings)


def test_training_ends_when_nothing_gains_and_tells_how_long(learned: Learned) -> None:
    class Counter(Silent):
        seen: list[dict]

        def __init__(self) -> None:
            self.seen = []

        def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
            self.seen.append(figures)

    counter = Counter()
    done = rq_vae(clusters(200)[0], SMALL, replace(NETS, lr=1e-9, epochs=50, patience=3), counter)
    assert done.epochs == len(counter.seen) < 30
    assert set(counter.seen[0]) == {"error", "perplexity"}
    assert done.error == min(float(figures["error"]) for figures in counter.seen)


@pytest.mark.parametrize("points", [np.ones((1, 4)), np.ones((30, 4)), np.eye(3)[np.arange(300) % 3]])
def test_odd_catalogues_get_sids_and_collapse_is_said(points: np.ndarray) -> None:
    made = rq_vae(points, SMALL, replace(NETS, epochs=3))
    before = made.codebooks.encode(made.latents)
    table, report = spell(made.latents, [f"i{i}" for i in range(len(points))], before, made.codebooks, SMALL)
    assert report.collision_after == 0
    assert table.present.all()
    assert len(points) == 1 or any("Level 1 has collapsed" in line for line in made.warnings)


def test_what_cannot_be_used_is_refused(learned: Learned) -> None:
    for wrong in ({"latent": 0}, {"epochs": 0}, {"hidden": (0,)}, {"lr": float("nan")}, {"commitment": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            RqVaeConfig(**wrong)
    bad = clusters()[0]
    bad[3, 3] = np.inf
    with pytest.raises(DataError, match="item 3"):
        rq_vae(bad, SMALL, NETS)
    with pytest.raises(TableError, match="width 20"):
        learned.encoder.encode(bad[:, :5])
    tensors = learned.encoder.to_tensors()
    spoilt = [
        {name: v for name, v in tensors.items() if name != "bias.1"},
        {**tensors, "more": tensors["centre"]},
        {**tensors, "weight.0": tensors["weight.0"].T},
        {**tensors, "bias.0": tensors["bias.0"] * np.float32(np.nan)},
        {**tensors, "scale": np.zeros(1, np.float32)},
        {},
    ]
    for broken in spoilt:
        with pytest.raises(TableError, match="encoder cannot be used"):
            Encoder.from_tensors(broken)
