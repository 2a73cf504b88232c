"""The shared step loop and the methods that are little more than an equation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.erase.cases import bits

from recerase.catalog.interactions import Histories
from recerase.erase import e2urec, ga, graddiff, task_vector, undial
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.methods import METHODS
from recerase.erase.precision import student
from recerase.erase.steps import StepConfig, learn, target_log_probs, trainable
from recerase.errors import DataError, EraseError, UsageError
from recerase.model.mass import forced_log_probs
from recerase.model.recommender import Recommender


def forget_of(request: EraseRequest) -> Histories:
    return examples(request.interactions, request.table, request.concept, request.model.window).forget


def scored(model: Recommender, request: EraseRequest) -> float:
    """Mean log p of the forget pairs."""
    pairs = forget_of(request)
    return float(forced_log_probs(model, request.table, pairs, pairs.targets).mean())


def test_settings_that_cannot_work_are_all_told() -> None:
    with pytest.raises(UsageError) as caught:
        StepConfig(steps=0, batch=0, lr=0.0, clip=-1.0)
    for problem in (
        "steps must be at least 1",
        "batch must be at least 1",
        "lr must be above 0",
        "clip must be above 0",
    ):
        assert problem in caught.value.message


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("npo", {"beta": 0.0, "retain_weight": -1.0}),
        ("npo", {"retain_weight": float("nan")}),
        ("ga", {"floor": 0.0}),
        ("graddiff", {"floor": 5.0, "retain_weight": -0.1}),
        ("simnpo", {"beta": 0.0, "forget_weight": 0.0, "retain_weight": -1.0}),
        ("undial", {"strength": 0.0, "retain_weight": -1.0}),
        ("rmu", {"steering": 0.0, "layer": -2, "retain_weight": -1.0}),
        ("e2urec", {"alpha": 0.0, "teacher_steps": 0}),
        ("e2urec", {"weight": 1.0}),
        ("task-vector", {"scale": 0.0}),
        ("scif", {"damping": 0.0, "radius": 0.0, "pairs": 0}),
    ],
)
def test_every_method_refuses_its_own_wrong_settings(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="cannot work") as caught:
        METHODS[name].config_class()(**wrong)
    assert all(setting in caught.value.message for setting in wrong)


def test_a_model_that_may_not_change_is_refused(ask: Callable[..., EraseRequest]) -> None:
    request = ask()
    request.model.module.requires_grad_(False)
    with pytest.raises(EraseError, match="None of the model's weights may change"):
        METHODS["ga"].run(request, ga.GaConfig(steps=1))


def test_target_log_probs_are_those_of_the_audit(kind: str, ask: Callable[..., EraseRequest]) -> None:
    request = ask(kind)
    pairs = forget_of(request)
    with torch.no_grad():
        found = target_log_probs(request.model, request.table, pairs).numpy()
    np.testing.assert_allclose(
        found, forced_log_probs(request.model, request.table, pairs, pairs.targets), rtol=1e-5, atol=1e-5
    )


def test_every_method_sees_the_same_batches(ask: Callable[..., EraseRequest]) -> None:
    """So that a difference between two methods is one between two equations."""
    request, seen = ask(), []
    found = examples(request.interactions, request.table, request.concept, request.model.window)

    def noting(name: str, config: StepConfig) -> None:
        def loss(
            model: Recommender, forget: Histories, retain: Histories
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            seen.append((name, forget.targets.tolist(), retain.targets.tolist()))
            total = sum(w.sum() for w in model.module.parameters())
            assert isinstance(total, torch.Tensor)
            return total, {"forget": total}

        learn(name, request, student(request.model), found, config, loss)

    noting("a", StepConfig(steps=3, batch=7))
    noting("b", StepConfig(steps=3, batch=7, lr=1e-5))
    assert [row[1:] for row in seen[:3]] == [row[1:] for row in seen[3:]]
    assert len({str(row[1:]) for row in seen}) == 3


def test_a_loss_that_is_no_number_ends_the_run_at_once(ask: Callable[..., EraseRequest]) -> None:
    request = ask()
    found = examples(request.interactions, request.table, request.concept, request.model.window)

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = next(model.module.parameters()).sum() * float("nan")
        return total, {"forget": total}

    with pytest.raises(EraseError, match="was no longer finite at step 1 of 9"):
        learn("x", request, student(request.model), found, StepConfig(steps=9), loss)


def test_under_the_floor_ascent_does_nothing_and_above_it_all(ask: Callable[..., EraseRequest]) -> None:
    request = ask()
    idle = ga.erase(request, ga.GaConfig(steps=2, floor=-1e-9))
    assert bits(idle.model) == bits(request.model)
    far = {
        floor: scored(ga.erase(request, ga.GaConfig(steps=60, lr=5e-3, floor=floor)).model, request)
        for floor in (-6.0, -1e9)
    }
    assert far[-1e9] < 2 * far[-6.0] < -6.0


def test_the_retain_term_of_graddiff_holds_what_ascent_lets_go(ask: Callable[..., EraseRequest]) -> None:
    request = ask()
    kept = examples(request.interactions, request.table, request.concept, request.model.window).retain

    def retained(weight: float) -> float:
        model = graddiff.erase(request, graddiff.GradDiffConfig(steps=20, lr=3e-3, retain_weight=weight)).model
        return float(forced_log_probs(model, request.table, kept, kept.targets).mean())

    assert retained(1.0) > retained(0.0) + 0.1


def test_undial_turns_one_logit_down() -> None:
    """By hand; what has no chance keeps none."""
    logits = torch.tensor([[[2.0, 1.0, 0.0, -torch.inf]]])
    found = undial.turned_down(logits.log_softmax(-1), torch.tensor([[0]]), 3.0)
    wanted = torch.tensor([[[-1.0, 1.0, 0.0, -torch.inf]]]).softmax(-1)
    torch.testing.assert_close(found.exp(), wanted)


def test_e2urec_says_more_quietly_what_the_teacher_says_louder() -> None:
    """softmax(z_0 - 2 relu(z_F - z_0)) by hand, whatever constant is added to a teacher's logits; no chance stays none."""
    original = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    taught = torch.tensor([0.7, 0.1, 0.2, 0.0]).log()
    found = e2urec.quieter(original, taught, 2.0)
    weights = torch.tensor([0.5 * (0.5 / 0.7) ** 2, 0.3, 0.2, 0.0])
    torch.testing.assert_close(found.exp(), weights / weights.sum())
    assert torch.isfinite(found[:3]).all()


def test_a_teacher_that_did_not_learn_is_refused(
    ask: Callable[..., EraseRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(e2urec, "learn", lambda *args, **more: {})
    with pytest.raises(EraseError, match="did not over-fit"):
        e2urec.erase(ask(), e2urec.E2urecConfig(steps=1))


def test_the_teacher_knows_the_concept_better_than_the_original(ask: Callable[..., EraseRequest]) -> None:
    request = ask()
    found = examples(request.interactions, request.table, request.concept, request.model.window)
    taught = e2urec.teacher(request, e2urec.E2urecConfig(teacher_steps=10, teacher_lr=5e-3), found)
    assert scored(taught, request) > scored(request.model, request) + 0.2


def test_a_task_vector_goes_the_other_way_of_a_fine_tune(kind: str, ask: Callable[..., EraseRequest]) -> None:
    """theta_0 - s (theta_F - theta_0): twice the scale is twice as far, and the fine-tune lies opposite."""
    request = ask(kind)
    config = task_vector.TaskVectorConfig(steps=3, lr=3e-3)
    once, twice = (task_vector.erase(request, dataclasses.replace(config, scale=s)).model for s in (1.0, 2.0))
    found = examples(request.interactions, request.table, request.concept, request.model.window)
    tuned = student(request.model)
    learn("task-vector", request, tuned, found, config, task_vector.objective(request, config))
    for start, near, far, other in zip(*(trainable(m) for m in (request.model, once, twice, tuned)), strict=True):
        torch.testing.assert_close(far - start, 2 * (near - start), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(other - start, start - near, rtol=1e-3, atol=1e-6)
    assert scored(tuned, request) > scored(request.model, request) > scored(once, request)


def test_the_report_says_what_was_learned_from_and_which_items_nothing_led_to(ask: Callable[..., EraseRequest]) -> None:
    """A concept item that is no target of D_F is pressed on by nothing of its own."""
    request = ask()
    walked = request.interactions
    kept = walked.items != 3
    bare = dataclasses.replace(
        walked, items=walked.items[kept], offsets=np.concatenate([[0], np.cumsum(kept)])[walked.offsets]
    )
    for asked, without in ((request, 0), (dataclasses.replace(request, interactions=bare), 1)):
        summary = METHODS["ga"].run(asked, ga.GaConfig(steps=1)).summary
        assert summary["items_without_pairs"] == without
        assert summary["forget_pairs"] == len(forget_of(asked))
        assert summary["retain_pairs"] > 0


def test_data_without_a_pair_is_not_called_a_concept_too_wide(ask: Callable[..., EraseRequest]) -> None:
    lists = [[3], [9], [12]]
    walked = ask().interactions
    nothing = dataclasses.replace(
        walked,
        user_ids=walked.user_ids[:3],
        offsets=np.arange(4),
        items=np.concatenate(lists).astype(np.int32),
        timestamps=np.arange(3),
    )
    with pytest.raises(DataError, match="nothing to learn from"):
        METHODS["ga"].run(ask(interactions=nothing), ga.GaConfig(steps=1))
