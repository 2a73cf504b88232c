"""Losses: each is a mean over histories, and those that replace a published one are bounded where that one is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recerase.erase import objectives

B = 8


def _log_probs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(3 * torch.randn(*shape, generator=generator, dtype=torch.float64), -1)


SAMPLES: dict[str, tuple[tuple[Tensor, ...], tuple[float, ...]]] = {
    "nll": ((_log_probs(B, 4)[:, 0],), ()),
    "ascent": ((_log_probs(B, 4)[:, 0],), ()),
    "npo": ((_log_probs(B, 4)[:, 0], _log_probs(B, 4, seed=1)[:, 0]), (0.1,)),
    "simnpo": ((_log_probs(B, 4)[:, 0],), (3, 4.5, 0.2)),
    "ranked": ((_log_probs(B, 5), _log_probs(B, 5, seed=1)), ()),
    "coherence_pairs": ((_log_probs(B, 5),), ()),
    "coherence_mass": ((_log_probs(B, 6)[:, :5],), ()),
    "distil": ((_log_probs(B, 3, 7), _log_probs(B, 3, 7, seed=1)), ()),
    "match": ((_log_probs(B, 5), _log_probs(B, 5, seed=1)), ()),
    "apart": ((_log_probs(B, 3, 7), _log_probs(B, 3, 7, seed=1)), ()),
}
FUNCTIONS = {
    name: f for name, f in inspect.getmembers(objectives, inspect.isfunction) if f.__module__ == objectives.__name__
}


def test_every_loss_is_sampled_here() -> None:
    assert set(FUNCTIONS) == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_batch_split_in_two_gives_the_same_loss(name: str, cut: int) -> None:
    function: Callable[..., Tensor] = FUNCTIONS[name]
    tensors, rest = SAMPLES[name]
    whole = function(*tensors, *rest)
    assert whole.shape == ()
    first, second = function(*(t[:cut] for t in tensors), *rest), function(*(t[cut:] for t in tensors), *rest)
    torch.testing.assert_close((cut * first + (B - cut) * second) / B, whole)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_order_of_histories_does_not_matter(name: str) -> None:
    tensors, rest = SAMPLES[name]
    order = torch.randperm(B, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(FUNCTIONS[name](*(t[order] for t in tensors), *rest), FUNCTIONS[name](*tensors, *rest))


def test_ascent_pushes_the_probability_down_without_end() -> None:
    """Equation 8, minimised: the gradient on log p is +1/B however small p is already."""
    for level in (-1.0, -50.0, -5000.0):
        log_p = torch.full((B,), level, requires_grad=True)
        objectives.ascent(log_p).backward()
        assert log_p.grad is not None
        torch.testing.assert_close(log_p.grad, torch.full((B,), 1 / B))
    assert float(objectives.ascent(torch.full((B,), -5000.0))) == -5000.0


def test_a_floor_lets_go_of_each_pair_under_it_and_of_no_other() -> None:
    log_p = torch.tensor([-1.0, -50.0, -19.0, -21.0], requires_grad=True)
    loss = objectives.ascent(log_p, -20.0)
    loss.backward()
    assert log_p.grad is not None
    assert log_p.grad.tolist() == [0.25, 0.0, 0.25, 0.0]
    assert float(loss.detach()) == pytest.approx((-1 - 20 - 19 - 20) / 4)


def test_simnpo_counts_codes_and_lets_go_of_what_is_unlikely() -> None:
    """(2/b) log(1 + exp((b/L) log p + margin)), whose pull on log p is 2/L sigmoid of the same."""
    log_p = torch.tensor([0.0, -1.0, -40.0], dtype=torch.float64, requires_grad=True)
    loss = objectives.simnpo(log_p, 4, 2.0, 0.5)
    loss.backward()
    inner = torch.tensor([0.5, 0.0, -19.5], dtype=torch.float64)
    assert float(loss.detach()) == pytest.approx(float(torch.log1p(inner.exp()).mean()))
    assert log_p.grad is not None
    torch.testing.assert_close(log_p.grad, 2 / 4 * torch.sigmoid(inner) / 3)


def test_ranking_wants_the_first_above_the_second_and_then_lets_go() -> None:
    high, low = torch.tensor([[-1.0, -60.0]], requires_grad=True), torch.tensor([[-1.0, -1.0]])
    loss = objectives.ranked(high, low)
    loss.backward()
    assert high.grad is not None
    torch.testing.assert_close(high.grad, torch.tensor([[-0.25, -0.5]]))
    assert float(objectives.ranked(low, high.detach() - 60)) < 1e-9


def test_hidden_states_of_two_shapes_are_never_broadcast() -> None:
    """METHODS 4: a (B,) beside a (B, 1) once made a (B, B) of it."""
    with pytest.raises(ValueError, match=r"\(8, 3, 7\) beside targets \(7,\)"):
        objectives.apart(torch.zeros(B, 3, 7), torch.zeros(7))
    assert float(objectives.apart(torch.zeros(B, 3, 7), torch.full((B, 3, 7), 2.0))) == 4.0


def test_npo_is_bounded_below_and_lets_go_of_what_is_gone() -> None:
    original = torch.full((B,), -2.0)
    gradients = []
    for below in (0.0, 20.0, 100.0, 1000.0):
        log_p = (original - below).requires_grad_()
        loss = objectives.npo(log_p, original, 0.1)
        loss.backward()
        assert float(loss.detach()) >= 0
        assert log_p.grad is not None
        gradients.append(float(log_p.grad.sum()))
    assert gradients == sorted(gradients, reverse=True)
    assert gradients[0] == pytest.approx(1.0)  # where p = p_0 it starts as ascent does: d/dlogp = 2 sigmoid(0)
    assert gradients[-1] < 1e-9
    assert float(objectives.npo(original, original, 0.1)) == pytest.approx(20 * torch.log(torch.tensor(2.0)).item())


def test_coherence_by_mass_is_content_with_one_neighbour() -> None:
    """-log of the neighbours' mass is 0 when one has it all; equation 9 then still pulls on the other four."""
    one = torch.full((B, 5), -40.0)
    one[:, 2] = 0.0
    assert float(objectives.coherence_mass(one)) == pytest.approx(0.0, abs=1e-6)
    assert float(objectives.coherence_pairs(one)) == pytest.approx(32.0)
    assert float(objectives.coherence_mass(SAMPLES["coherence_mass"][0][0])) > 0


def test_distil_is_the_kl_divergence_of_each_node() -> None:
    (found, target), _ = SAMPLES["distil"]
    by_hand = sum(
        float((target[b, level].exp() * (target[b, level] - found[b, level])).sum())
        for b in range(B)
        for level in range(3)
    )
    assert float(objectives.distil(found, target)) == pytest.approx(by_hand / B)
    assert float(objectives.distil(target, target)) == pytest.approx(0.0)


def test_distil_survives_a_target_of_nothing() -> None:
    """A deleted code has target log-probability log 1e-30: it adds nothing, and no NaN."""
    target = torch.log(torch.tensor([[[1.0, 1e-30]]]))
    found = torch.log(torch.tensor([[[0.25, 0.75]]])).requires_grad_()
    loss = objectives.distil(found, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(4.0)).item())
    assert found.grad is not None
    assert torch.isfinite(found.grad).all()


@pytest.mark.parametrize("miss", [0.5, 1.0, 6.0, 60.0])
def test_match_is_two_sided_and_its_gradient_is_bounded(miss: float) -> None:
    """Over-forgetting costs what under-forgetting does, and neither pulls harder than `slope`."""
    target = torch.full((B, 3), -9.0)
    pulls, losses = [], []
    for side in (miss, -miss):
        found = (target + side).requires_grad_()
        loss = objectives.match(found, target)
        loss.backward()
        assert found.grad is not None
        pulls.append(float(found.grad.sum()))
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] > 0
    assert pulls[0] == pytest.approx(-pulls[1])
    assert 0 < pulls[0] <= 2.0 + 1e-6
    assert float(objectives.match(target, target)) == 0.0
