"""SCIF: the solver against a dense one, and products with the Hessian against differences of gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from recerase.erase import scif
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.precision import student
from recerase.erase.scif import ScifConfig, steihaug
from recerase.erase.steps import trainable


def _silent(_: float) -> None:
    return None


def _matrix(values: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.T


SLOPE = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)


def test_inside_the_radius_it_is_the_newton_step() -> None:
    matrix = _matrix([0.5, 1.0, 2.0, 4.0, 8.0])
    step, used, stopped = steihaug(SLOPE, lambda v: matrix @ v, 1e6, 50, 1e-9, _silent)
    torch.testing.assert_close(step, -torch.linalg.solve(matrix, SLOPE))
    assert used <= 6
    assert stopped == "converged"


def test_it_never_goes_beyond_the_radius() -> None:
    matrix = _matrix([0.5, 1.0, 2.0, 4.0, 8.0])
    step, _, stopped = steihaug(SLOPE, lambda v: matrix @ v, 0.1, 50, 1e-9, _silent)
    assert stopped == "radius"
    assert float(step.norm()) == pytest.approx(0.1)


def test_where_it_does_not_curve_upwards_it_still_goes_down() -> None:
    """And no less far than along the slope alone; (H + damping) of a network is like this matrix."""
    matrix = _matrix([-3.0, -0.5, 1.0, 2.0, 4.0])

    def model(x: torch.Tensor) -> float:
        return float(SLOPE @ x + x @ matrix @ x / 2)

    step, _, stopped = steihaug(SLOPE, lambda v: matrix @ v, 1.5, 50, 1e-9, _silent)
    assert stopped in ("negative curvature", "radius")
    assert float(step.norm()) == pytest.approx(1.5)
    slow = -SLOPE / SLOPE.norm()
    assert model(step) <= min(model(slow * t) for t in np.linspace(0, 1.5, 50)) + 1e-9


def test_without_a_slope_nothing_moves_and_iterations_end_it() -> None:
    matrix = _matrix([0.5, 1.0, 2.0, 4.0, 8.0])
    nothing, used, _ = steihaug(torch.zeros(5, dtype=torch.float64), lambda v: matrix @ v, 1.0, 50, 1e-9, _silent)
    assert (float(nothing.norm()), used) == (0.0, 0)
    told: list[float] = []
    _, used, stopped = steihaug(SLOPE, lambda v: matrix @ v, 1e6, 2, 1e-9, told.append)
    assert (used, stopped, len(told)) == (2, "iterations", 2)
    assert told[0] == 1.0


def test_products_are_differences_of_gradients(kind: str, ask: Callable[..., EraseRequest]) -> None:
    """(g(theta + e v) - g(theta - e v)) / 2e in float64, and parts of any size give the whole."""
    request = ask(kind)
    model = student(request.model)
    model.module.double()
    for part in model.module.modules():
        if hasattr(part, "act"):
            part.act = torch.nn.GELU()  # T5's ReLU has no second derivative where it bends
    pairs = examples(request.interactions, request.table, request.concept, 5).retain.take(np.arange(10))
    weights = trainable(model)
    with sdpa_kernel(SDPBackend.MATH):
        slope = scif._gradient(model, request.table, pairs, 4, weights)
        torch.testing.assert_close(
            slope, scif._gradient(model, request.table, pairs, 10, weights), rtol=1e-4, atol=1e-7
        )
        direction = torch.randn(len(slope), generator=torch.Generator().manual_seed(1)).double()
        direction /= direction.norm()
        found = scif._product(model, request.table, pairs, 4, weights, direction)
        step, sides = 1e-3, []
        for side in (step, -step):
            moved = student(model)
            with torch.no_grad():
                sizes = [w.numel() for w in weights]
                for weight, part in zip(trainable(moved), direction.split(sizes), strict=True):
                    weight += side * part.view_as(weight)
            sides.append(scif._gradient(moved, request.table, pairs, 10, trainable(moved)))
    wanted = (sides[0] - sides[1]) / (2 * step)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_the_step_is_no_longer_than_the_radius(kind: str, ask: Callable[..., EraseRequest]) -> None:
    request = ask(kind)
    erased = scif.erase(request, ScifConfig(iterations=5, pairs=40, curvature=20, radius=0.25))
    moved = sum(
        float((a - b).detach().double().square().sum())
        for a, b in zip(trainable(erased.model), trainable(request.model), strict=True)
    )
    assert 0 < moved**0.5 <= 0.25 * 1.001
    assert erased.summary["norm"] == pytest.approx(moved**0.5, rel=1e-3)
    assert erased.summary["stopped"] in ("radius", "negative curvature", "converged", "iterations")


def test_what_is_solved_for_takes_the_forget_pairs_slope_off(
    ask: Callable[..., EraseRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(g_R - g_F) / |D_R| with summed gradients, of all pairs where there are no more than `pairs`."""
    request, seen = ask(), []

    def still(slope: torch.Tensor, *rest: object) -> tuple[torch.Tensor, int, str]:
        seen.append(slope)
        return torch.zeros_like(slope), 0, "nothing to do"

    monkeypatch.setattr(scif, "steihaug", still)
    scif.erase(request, ScifConfig())
    found = examples(request.interactions, request.table, request.concept, request.model.window)
    weights = trainable(request.model)
    forget, retain = (
        len(h) * scif._gradient(request.model, request.table, h, 64, weights) for h in (found.forget, found.retain)
    )
    torch.testing.assert_close(seen[0], (retain - forget) / len(found.retain), rtol=1e-3, atol=1e-5)
