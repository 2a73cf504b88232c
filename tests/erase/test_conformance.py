"""What every method must do, whatever it is: a method that is added to the registry is held to this without a word here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.cases import ROWS_ONLY, Listening, bits, brief, otherwise, settings_of, shortest
from tests.erase.conftest import N

from recerase.erase.examples import examples
from recerase.erase.method import UNPRESSED, EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.errors import ConceptError, EraseError, UsageError
from recerase.model.mass import forced_log_probs
from recerase.model.prompt import Prompt
from recerase.model.recommender import wrap
from recerase.types import SILENT


def test_the_original_keeps_every_bit_of_its_weights_and_its_table(done: Any) -> None:
    request, erased, around = done
    assert bits(request.model) == around["weights"]
    assert erased.model is not request.model
    assert not {t.data_ptr() for t in erased.model.module.state_dict().values()} & {
        t.data_ptr() for t in request.model.module.state_dict().values()
    }


def test_no_global_random_state_is_used_or_changed(done: Any) -> None:
    assert done[2]["random"]
    assert done[2]["numpy"]


def test_two_runs_with_one_seed_give_the_same_bits_whatever_is_held_out(done: Any, case: str) -> None:
    """What the audit is to be made on was not seen. `retrain` validates as the original did, so its tests alone are changed."""
    request, erased, _ = done
    torch.manual_seed(99)  # must not matter
    seen = otherwise(request.interactions, 1 if case == "retrain" else 2)
    assert (seen.items != request.interactions.items).any()
    again = get_method(case)[0].run(
        dataclasses.replace(request, interactions=seen, observer=SILENT, state=None), settings_of(case)
    )
    assert bits(again.model) == bits(erased.model)
    assert again.table.digest == erased.table.digest
    assert {**again.summary, "seconds": 0} == {**erased.summary, "seconds": 0}


def test_everything_is_finite_and_the_summary_is_plain_json(done: Any) -> None:
    _, erased, _ = done
    assert all(torch.isfinite(t).all() for t in erased.model.module.state_dict().values() if t.is_floating_point())
    json.dumps(dict(erased.summary), allow_nan=False)
    assert {"seconds", "moved_items"} <= set(erased.summary)


def test_the_result_is_ready_to_be_used(done: Any) -> None:
    """In evaluation mode, without gradients left over, and with the shapes and dtypes that came in."""
    request, erased, _ = done
    assert not erased.model.module.training
    assert erased.model.kind == request.model.kind
    before, after = request.model.module.state_dict(), erased.model.module.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}


def test_retained_items_keep_their_sids_and_their_listing(done: Any) -> None:
    request, erased, _ = done
    kept = ~request.concept
    assert (erased.table.codes[kept] == request.table.codes[kept]).all()
    assert (erased.table.listed[kept] == request.table.listed[kept]).all()
    assert (erased.table.present == request.table.present).all()
    assert (erased.table.item_ids == request.table.item_ids).all()


def test_no_concept_item_has_a_retained_items_sid(done: Any, case: str) -> None:
    if case == "tracer/paper":
        pytest.skip("the paper's commit is an argmax a level, which may collide; its departure is the default preset")
    erased = done[1]
    codes = erased.table.codes[erased.table.present]
    assert len(np.unique(codes, axis=0)) == len(codes)


def test_changes_on_the_card_are_the_changes_made(done: Any, case: str) -> None:
    """Weights change iff the card says so, and SIDs iff it does."""
    request, erased, _ = done
    method, _ = get_method(case)
    assert (bits(request.model) != bits(erased.model)) == method.weights
    if "SIDs of" not in method.changes:
        assert (erased.table.codes == request.table.codes).all()
        assert erased.summary["moved_items"] == 0


def test_the_concept_becomes_less_likely(done: Any, case: str) -> None:
    """Where a training history leads to the concept, the old SID loses probability."""
    if not get_method(case)[0].weights:
        pytest.skip("this method changes no weight")
    request, erased, _ = done
    pairs = examples(request.interactions, request.table, request.concept, request.model.window).forget
    before = forced_log_probs(request.model, request.table, pairs, pairs.targets)
    after = forced_log_probs(erased.model, request.table, pairs, pairs.targets)
    assert after.mean() < before.mean() - 0.05


def test_progress_is_told_to_the_end(done: Any) -> None:
    observer = done[2]["observer"]
    assert not observer.open
    told = {task: observer.steps.get(task, 0) for task in observer.totals}
    assert {t: n for t, n in told.items() if t != "train"} == {t: n for t, n in observer.totals.items() if t != "train"}


def test_another_seed_gives_other_bits(done: Any, case: str, kind: str) -> None:
    """Of the run, or of the settings where a method says so: `retrain` repeats the recorded recipe, seed and all."""
    if not get_method(case)[0].gradients or kind != "causal":
        pytest.skip("this method draws nothing, or it was seen on the other kind")
    request, erased, _ = done
    config = settings_of(case)
    own = any(f.name == "seed" for f in dataclasses.fields(config))
    config = dataclasses.replace(config, seed=5) if own else config
    other = get_method(case)[0].run(dataclasses.replace(request, observer=SILENT, state=None, seed=5), config)
    assert bits(other.model) != bits(erased.model)


def test_an_empty_concept_is_refused(case: str, ask: Callable[..., EraseRequest]) -> None:
    with pytest.raises(ConceptError, match="holds no item") as caught:
        get_method(case)[0].run(ask("causal", concept=np.zeros(N, bool)), settings_of(case))
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    without_sid = np.arange(N) == 6
    with pytest.raises(ConceptError, match="No item of the concept has a SID"):
        get_method(case)[0].run(ask("causal", concept=without_sid), settings_of(case))


def test_weights_of_half_precision_stay_finite_and_stay_what_they_are(
    case: str, kind: str, ask: Callable[..., EraseRequest]
) -> None:
    request = ask(kind)
    request.model.module.to(torch.bfloat16)
    before = bits(request.model)
    config = shortest(settings_of(case))
    erased = get_method(case)[0].run(dataclasses.replace(request, training=brief(request.training)), config)
    assert {t.dtype for t in erased.model.module.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    assert all(torch.isfinite(t).all() for t in erased.model.module.state_dict().values())
    assert (bits(erased.model) != before) == get_method(case)[0].weights
    assert bits(request.model) == before


def test_weights_that_may_not_change_do_not(case: str, ask: Callable[..., EraseRequest]) -> None:
    """As where adapters are all that may."""
    method, _ = get_method(case)
    if "all of them" in method.changes or not method.weights:
        pytest.skip("this method makes all weights anew, or none")
    request = ask("seq2seq")
    for name, weight in request.model.module.named_parameters():
        weight.requires_grad_("SelfAttention.q" in name or ".wo." in name)
    free = {name for name, weight in request.model.module.named_parameters() if weight.requires_grad}
    before = bits(request.model)
    if case in ROWS_ONLY:
        with pytest.raises(EraseError, match="none of this model's may change"):
            method.run(request, settings_of(case))
        return
    after = bits(method.run(request, shortest(settings_of(case))).model)
    assert any(before[name] != after[name] for name in free)
    assert all(before[name] == after[name] for name in before.keys() - free)


def test_a_model_that_is_asked_inside_a_prompt_is_erased_from(case: str, ask: Callable[..., EraseRequest]) -> None:
    method, _ = get_method(case)
    if "all of them" in method.changes or not method.weights:
        pytest.skip("a model in a prompt is not trained here, or no weight changes")
    request = ask("causal")
    schema = request.model.schema
    prompt = Prompt((schema.bos, schema.eos), (schema.eos,), (schema.bos,), (schema.bos,))
    request = dataclasses.replace(request, model=wrap(request.model.module, schema, 5, prompt))
    erased = method.run(request, settings_of(case))
    assert erased.model.prompt == prompt
    pairs = examples(request.interactions, request.table, request.concept, 5).forget
    now, was = (forced_log_probs(m, request.table, pairs, pairs.targets) for m in (erased.model, request.model))
    assert now.mean() < was.mean()


def test_scope_influence_is_pressed_for_or_is_said_not_to_be(done: Any, case: str, kind: str) -> None:
    """A method that does the same whatever the scope says so: to the observer, in its summary and on its card."""
    if kind != "causal":
        pytest.skip("seen on the other kind")
    request, erased, _ = done
    method, observer = get_method(case)[0], Listening()
    config = settings_of(case)
    again = method.run(dataclasses.replace(request, scope="influence", observer=observer, state=None), config)
    presses = "influence" in getattr(config, "scopes", ())
    assert (bits(again.model) != bits(erased.model)) == presses
    assert (f"{method.name} {UNPRESSED}" in observer.notes) == (not presses)
    assert again.summary.get("scope") == (None if presses else UNPRESSED)
    assert "scope" not in erased.summary
    assert ("influence" in method.scope) >= presses
    assert method.facts["presses for"] == f"scope {method.scope}"


def test_a_diverged_run_is_an_error_and_never_a_result(case: str, ask: Callable[..., EraseRequest]) -> None:
    method, _ = get_method(case)
    config = settings_of(case)
    rates = {f.name: 1e30 for f in dataclasses.fields(config) if f.name in ("lr", "settle_lr")}
    if not rates:
        pytest.skip("this method has no learning rate of its own")
    with pytest.raises(EraseError, match="diverged"):
        method.run(ask("causal"), dataclasses.replace(config, **rates))


def test_an_unknown_setting_is_refused_with_the_nearest_name(case: str) -> None:
    method, preset = get_method(case)
    with pytest.raises(UsageError, match="no_such_setting is unknown"):
        make_config(method, preset, {"no_such_setting": "1"})
    for f in dataclasses.fields(method.config_class()):
        with pytest.raises(UsageError, match=f"did you mean {f.name}"):
            make_config(method, preset, {f"{f.name}x": "1"})


def test_a_value_of_the_wrong_kind_is_refused(case: str) -> None:
    method, preset = get_method(case)
    for f in dataclasses.fields(method.config_class()):
        if f.type == "str":
            continue  # any text is one
        with pytest.raises(UsageError, match=f"{f.name}=perhaps is not"):
            make_config(method, preset, {f.name: "perhaps"})


def test_the_card_is_whole(case: str) -> None:
    method, _ = get_method(case)
    kind = method.config_class()
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    may_be_empty = ("gradients", "presets", "moves", "refuses", "objective", "strength", "weights", "prepares")
    assert all(getattr(method, f.name) for f in dataclasses.fields(method) if f.name not in may_be_empty)
