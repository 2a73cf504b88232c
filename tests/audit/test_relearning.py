"""Relearning: one attack for every model, twins of its parts, and what an original, a reference and a filter must show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit.attack import Attacker, attack_pairs, plan
from recerase.audit.probes import AuditConfig, AuditModel, AuditWorld, build_world
from recerase.audit.relearning import RelearnConfig, Relearned, relearn, relearn_score
from recerase.catalog.concept import Concept
from recerase.catalog.interactions import Catalogue, Histories, Interactions
from recerase.catalog.items import Items
from recerase.errors import CheckpointError, ConceptError, DataError, UsageError
from recerase.model.prompt import Prompt
from recerase.model.recommender import ModelConfig, Recommender, new_recommender, wrap
from recerase.model.training import TrainConfig, train
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import Silent

N, GROUP = 36, 12
KINDS = ("causal", "seq2seq")
QUICK = RelearnConfig(steps=(1, 2, 4, 6, 8, 12, 16), lr=4e-3, batch=16, histories=24)
IDS = np.array([f"i{i:02d}" for i in range(N)], dtype=object)
CODES = np.stack([np.arange(N) // GROUP, np.arange(N) % GROUP], axis=1).astype(np.int32)
SCHEMA = SidSchema.native((3, 16))
TABLE = SidTable(IDS, CODES, np.ones(N, bool), SCHEMA, np.zeros(N, bool))
MEMBERS = np.arange(N) < GROUP
CONFIG = AuditConfig(batch=32, saturated_items=8)


@cache
def walks() -> Interactions:
    """90 users who mostly stay in a group and go to its next item."""
    rng = np.random.default_rng(5)
    lists = []
    for _ in range(90):
        walk = [int(rng.integers(N))]
        for _ in range(int(rng.integers(4, 9))):
            group, place = divmod(walk[-1], GROUP)
            walk.append(group * GROUP + (place + 1) % GROUP if rng.random() < 0.9 else int(rng.integers(N)))
        lists.append(walk)
    items = np.concatenate([np.asarray(x, np.int32) for x in lists])
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    names = np.array([f"u{u:02d}" for u in range(len(lists))], dtype=object)
    return Interactions(names, offsets, items, np.arange(len(items), dtype=np.int64), "walks")


def world_of(members: np.ndarray = MEMBERS, **changes: Any) -> AuditWorld:
    titles = tuple(IDS.tolist())
    items = Items(IDS, titles, titles, (("all",),) * N, (None,) * N, np.full(N, np.nan), "items")
    concept = Concept("group=0", ("group=0",), members, "concept")
    return build_world(Catalogue(items, walks()), concept, config=replace(CONFIG, **changes))


@cache
def _trained(kind: Any, knows: bool) -> Recommender:
    shape = ModelConfig(kind, width=24, layers=1, heads=2, feed_forward=32, window=8, dropout=0.0)
    model = new_recommender(shape, SCHEMA, 1)
    split = walks().split() if knows else walks().split().without(MEMBERS)
    recipe = TrainConfig(epochs=12, batch=32, lr=2e-2, validate_every=12, validation_users=8, dropout=0.0)
    train(model, TABLE, split, recipe)
    return model


def original(kind: str = "causal", **changes: Any) -> AuditModel:
    return replace(AuditModel("original", _trained(kind, True), TABLE, TABLE, np.ones(N, bool)), **changes)


def reference(kind: str = "causal") -> AuditModel:
    return AuditModel("reference", _trained(kind, False), TABLE, TABLE, np.ones(N, bool), reads_concept=False)


@pytest.fixture
def world() -> AuditWorld:
    return world_of()


@cache
def attacked(kind: str, knows: bool, attack: Any) -> Relearned:
    return relearn(original(kind) if knows else reference(kind), world_of(), attack, QUICK)


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_is_there_before_any_step_and_a_model_that_never_knew_is_not(kind: str) -> None:
    knows, never = attacked(kind, True, "forget"), attacked(kind, False, "forget")
    assert knows.exposure[0] > 0.6
    assert knows.steps_to(knows.half) == 0
    assert 1 < never.steps_to(knows.half) < 16
    assert never.exposure[0] < 0.05 < 0.7 < never.exposure[-1]
    score = relearn_score(knows, [never], knows.half)
    assert (score.value, score.bound) == (0, "exact")


@pytest.mark.parametrize("kind", KINDS)
def test_benign_training_teaches_the_concept_to_nobody_who_never_knew_it(kind: str) -> None:
    knows, never = attacked(kind, True, "benign"), attacked(kind, False, "benign")
    assert knows.exposure[0] == attacked(kind, True, "forget").exposure[0]
    assert never.steps_to(knows.half) == np.inf
    assert never.told(knows.half) == "> 16"


def test_a_planted_oracle_is_there_and_one_of_another_group_is_not(
    planted: Callable[[int], Recommender], world: AuditWorld
) -> None:
    """The bigram model likes one group alone, whatever the history; steps too small to matter leave it there."""
    still = replace(QUICK, lr=1e-9)
    likes, dislikes = (
        relearn(AuditModel("subject", planted(group), TABLE, TABLE, np.ones(N, bool)), world, "forget", still)
        for group in (0, 1)
    )
    np.testing.assert_array_equal(likes.values, 1.0)
    np.testing.assert_array_equal(dislikes.values, 0.0)
    assert likes.steps_to(likes.half) == 0
    assert dislikes.steps_to(likes.half) == np.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", ["forget", "benign"])
def test_the_model_and_every_random_state_stay_as_they_are(kind: str, attack: Any, world: AuditWorld) -> None:
    model = original(kind)
    before = {name: value.clone() for name, value in model.recommender.module.state_dict().items()}
    codes, state, legacy = TABLE.codes.copy(), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    relearn(model, world, attack, QUICK)
    after = model.recommender.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.grad is None for weight in model.recommender.module.parameters())
    np.testing.assert_array_equal(codes, TABLE.codes)
    assert torch.equal(state, torch.get_rng_state())
    assert legacy == str(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_result_and_another_seed_another(kind: str, world: AuditWorld) -> None:
    first = attacked(kind, False, "forget")
    torch.rand(3)
    np.testing.assert_array_equal(first.values, relearn(reference(kind), world, "forget", QUICK).values)
    other = relearn(reference(kind), world_of(seed=1), "forget", QUICK)
    assert not np.array_equal(first.values, other.values)


def test_the_reading_depends_neither_on_its_batches_nor_on_the_other_histories() -> None:
    whole = attacked("causal", False, "forget")
    split = relearn(reference(), world_of(batch=5), "forget", QUICK)
    np.testing.assert_allclose(split.values, whole.values, atol=1e-12)
    fewer = relearn(reference(), world_of(), "forget", replace(QUICK, histories=10))
    np.testing.assert_array_equal(fewer.values, whole.values[:, :, :10])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_within_a_batch_does_not_matter(kind: str, world: AuditWorld) -> None:
    pairs = attack_pairs(world, TABLE, "forget", 8).take(np.arange(12))
    straight, turned = (Attacker(original(kind), TABLE, QUICK) for _ in range(2))
    assert straight.step(pairs) == pytest.approx(turned.step(pairs.take(np.arange(12)[::-1])), rel=1e-5)
    for one, other in zip(straight.model.module.parameters(), turned.model.module.parameters(), strict=True):
        # AdamW's first step is lr * sign(gradient): where the gradient is rounding alone, its sign is anything
        assert float(((one - other).abs() > 1e-5).float().mean()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_adamw_on_the_plain_forward_pass(kind: str, world: AuditWorld) -> None:
    """Twin: transformers' own forward on each history, one at a time, with the codes of its target behind it."""
    pairs = attack_pairs(world, TABLE, "forget", 8).take(np.arange(6))
    config, model = replace(QUICK, lr=1e-2), original(kind).recommender
    attacker = Attacker(original(kind), TABLE, config)
    module: Any = copy.deepcopy(model.module)
    lost = []
    for row in range(6):
        one = pairs.take([row])
        tokens, _ = model.tokens(one, TABLE)
        target = torch.from_numpy(TABLE.rows()[one.targets])
        if kind == "causal":
            logits = module(input_ids=torch.cat([tokens, target], 1)).logits[0, tokens.shape[1] - 1 : -1]
        else:
            begin = torch.full((1, 1), module.config.decoder_start_token_id)
            logits = module(input_ids=tokens, decoder_input_ids=torch.cat([begin, target[:, :-1]], 1)).logits[0]
        lost.append(torch.nn.functional.cross_entropy(logits, target[0]))
    loss = torch.stack(lost).mean()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    optimizer.step()
    assert attacker.step(pairs) == pytest.approx(loss.item(), rel=1e-4)
    moved = 0
    for mine, twin, old in zip(
        attacker.model.module.parameters(), module.parameters(), model.module.parameters(), strict=True
    ):
        moved += int(((mine - old).abs() > 5e-3).sum())
        assert float(((mine - twin).abs() > 1e-4).float().mean()) < 0.02
    assert moved > 500


def brute_pairs(members: np.ndarray | None, dropped: np.ndarray | None, window: int) -> list[tuple[list[int], int]]:
    """Every (history, next item) of the training parts, one user at a time."""
    found, data = [], walks()
    for user in range(data.n_users):
        items = data.items[data.offsets[user] : data.offsets[user + 1]].tolist()[:-2]
        kept = [i for i in items if dropped is None or not dropped[i]]
        found += [(kept[max(0, at - window) : at], kept[at]) for at in range(1, len(kept))]
    return [pair for pair in found if members is None or members[pair[1]]]


def as_lists(pairs: Histories) -> list[tuple[list[int], int]]:
    return [
        (pairs.items[pairs.offsets[b] : pairs.offsets[b + 1]].tolist(), int(pairs.targets[b]))
        for b in range(len(pairs))
    ]


def test_pairs_are_those_of_the_training_sequences(world: AuditWorld) -> None:
    """Twin: user by user. Benign pairs hold no concept item at all; held-out interactions are in none."""
    forget, benign = (attack_pairs(world, TABLE, kind, 4) for kind in ("forget", "benign"))
    assert as_lists(forget) == brute_pairs(MEMBERS, None, 4)
    assert as_lists(benign) == brute_pairs(None, MEMBERS, 4)
    assert MEMBERS[forget.targets].all()
    assert not MEMBERS[forget.items].all()
    assert not MEMBERS[benign.targets].any()
    assert not MEMBERS[benign.items].any()


def test_a_plan_goes_through_all_pairs_before_any_again_and_shots_are_few_pairs() -> None:
    config = RelearnConfig(steps=(3, 10), batch=4)
    rows = plan(np.random.default_rng(0), 12, config)
    assert rows.shape == (10, 4)
    assert sorted(rows[:3].flatten()) == sorted(rows[3:6].flatten()) == list(range(12))
    assert rows[:3].tolist() != rows[3:6].tolist()
    few = plan(np.random.default_rng(0), 12, replace(config, shots=3))
    assert few.shape == (10, 3)
    assert len(set(few.flatten())) == 3
    assert all(len(set(step)) == 3 for step in few.tolist())
    assert set(few.flatten()) != set(plan(np.random.default_rng(1), 12, replace(config, shots=3)).flatten())


def test_repeats_are_other_attacks_from_the_same_weights(world: AuditWorld) -> None:
    config = replace(QUICK, repeats=3, shots=10)
    found = relearn(reference(), world, "forget", config)
    assert found.values.shape == (3, 8, 24)
    assert found.pairs == 10
    assert (found.values[:, 0] == found.values[0, 0]).all()
    assert not np.array_equal(found.values[0], found.values[1])
    np.testing.assert_allclose(found.per_history.mean(1), found.exposure)
    alone = relearn(reference(), world, "forget", replace(config, repeats=1))
    np.testing.assert_array_equal(alone.values[0], found.values[0])


def test_a_filter_of_any_sort_is_no_obstacle_to_who_holds_the_weights(world: AuditWorld) -> None:
    known = attacked("causal", True, "forget")
    unlisted = original(role="filter", listed=~MEMBERS)
    retrieval = original(role="subject", table=TABLE.filtered(MEMBERS).unlisted(MEMBERS), listed=~MEMBERS)
    for hidden in (unlisted, retrieval):
        np.testing.assert_array_equal(relearn(hidden, world, "forget", QUICK).values, known.values)


def test_moved_sids_are_new_to_the_weights_and_the_old_table_brings_the_concept_back_at_once(world: AuditWorld) -> None:
    free = np.array([(1 + i // 4, 12 + i % 4) if i < 8 else (0, 12 + i % 4) for i in range(GROUP)], dtype=np.int32)
    model = original(role="subject", table=TABLE.replace(np.arange(GROUP), free))
    half = attacked("causal", True, "forget").half
    new, old = (relearn(model, world, "forget", replace(QUICK, side=side)) for side in ("new", "old"))
    assert old.steps_to(half) == 0
    np.testing.assert_array_equal(old.values, attacked("causal", True, "forget").values)
    assert new.steps_to(half) > 0


def test_half_precision_is_attacked_in_single(world: AuditWorld) -> None:
    given = reference()
    module = copy.deepcopy(given.recommender.module).to(torch.bfloat16)
    half = replace(given, recommender=given.recommender.around(module))
    found = relearn(half, world, "forget", replace(QUICK, lr=1e-3, steps=(48,)))
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
    rounded = given.recommender.around(copy.deepcopy(module).float())
    wide = relearn(replace(given, recommender=rounded), world, "forget", replace(QUICK, lr=1e-3, steps=(48,)))
    np.testing.assert_array_equal(found.values, wide.values)
    assert found.exposure[-1] > found.exposure[0] + 0.3


def test_weights_that_may_not_change_are_attacked_all_the_same(world: AuditWorld) -> None:
    given = reference()
    frozen = given.recommender.around(copy.deepcopy(given.recommender.module).requires_grad_(False))
    found = relearn(replace(given, recommender=frozen), world, "forget", QUICK)
    np.testing.assert_array_equal(found.values, attacked("causal", False, "forget").values)
    assert not any(weight.requires_grad for weight in frozen.module.parameters())


def test_a_model_that_is_asked_inside_a_prompt_is_attacked_inside_it(world: AuditWorld) -> None:
    """The prompt that spells what a model without one reads gives the bits of that model; another one gives others."""
    given, bos = reference(), (SCHEMA.bos,)
    made = []
    for separator in ((), bos):
        prompt = Prompt(prefix=bos, separator=separator, suffix=(), empty=bos)
        inside = wrap(given.recommender.module, SCHEMA, 8, prompt)
        made.append(relearn(replace(given, recommender=inside), world, "forget", QUICK))
    np.testing.assert_array_equal(made[0].values, attacked("causal", False, "forget").values)
    assert not np.array_equal(made[1].values, made[0].values)


def test_the_observer_hears_of_every_step(world: AuditWorld) -> None:
    class Listening(Silent):
        def __init__(self) -> None:
            self.told: list[tuple[str, Any]] = []

        def start(self, task: str, total: int | None) -> None:
            self.told.append((task, total))

        def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
            self.told.append((task, figures["loss"]))

        def finish(self, task: str) -> None:
            self.told.append((task, "done"))

    observer = Listening()
    relearn(reference(), world, "benign", replace(QUICK, repeats=2, steps=(2, 3)), observer)
    assert observer.told[0] == ("relearn benign", 6)
    assert observer.told[-1] == ("relearn benign", "done")
    assert len(observer.told) == 8


def test_without_training_interactions_to_use_there_is_one_clear_sentence(world: AuditWorld) -> None:
    clean = Catalogue(world.catalogue.items, walks().without(MEMBERS))
    with pytest.raises(DataError, match=r"^No training interaction leads to the concept"):
        relearn(original(), replace(world, catalogue=clean), "forget", QUICK)
    with pytest.raises(DataError, match=r"^No user has two training interactions without the concept"):
        relearn(original(), world_of(np.ones(N, bool)), "benign", QUICK)


def test_a_concept_without_sids_is_refused(world: AuditWorld) -> None:
    codes = TABLE.codes.copy()
    codes[MEMBERS] = -1
    model = original(table=replace(TABLE, codes=codes, listed=~MEMBERS))
    with pytest.raises(ConceptError, match="nothing to relearn"):
        relearn(model, world, "forget", QUICK)


def test_weights_that_are_no_numbers_are_refused(world: AuditWorld) -> None:
    given = original()
    module = copy.deepcopy(given.recommender.module)
    with torch.no_grad():
        module.get_input_embeddings().weight.fill_(torch.nan)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="no finite"):
        relearn(replace(given, recommender=given.recommender.around(module)), world, "forget", QUICK)
    attacker = Attacker(replace(given, recommender=given.recommender.around(module)), TABLE, QUICK)
    with pytest.raises(CheckpointError, match="no finite loss at step 1"):
        attacker.step(attack_pairs(world, TABLE, "forget", 8).take(np.arange(3)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", ()),
        ("steps", (0, 1)),
        ("steps", (2, 2)),
        ("steps", (3, 1)),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("clip", -1.0),
        ("batch", 0),
        ("shots", 0),
        ("repeats", 0),
        ("histories", 0),
        ("k", 0),
        ("beam", 0),
    ],
)
def test_settings_with_which_nothing_could_be_measured_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        RelearnConfig(**{name: value})


def curve(*exposure: float, steps: tuple[int, ...] | None = None, kind: Any = "forget") -> Relearned:
    """A model with these mean exposures: two histories, one of them half as exposed as the other."""
    mean = np.asarray(exposure)
    values = np.stack([mean * 2 / 3, mean * 4 / 3], axis=1)[None]
    return Relearned(kind, np.arange(len(mean)) if steps is None else np.asarray(steps), values, 9)


def test_steps_to_a_level_twin() -> None:
    """Twin: walk the broken line in hundredths of a step until it is there."""
    rng = np.random.default_rng(4)
    fine = 100
    never = 0
    for _ in range(40):
        steps = np.concatenate([[0], np.cumsum(rng.integers(1, 6, 5))])
        found = Relearned("forget", steps, rng.random((2, 6, 3)) * rng.random((1, 6, 1)), 4)
        level, slow = float(rng.uniform(0.05, 0.5)), np.inf
        for tick in range(int(steps[-1]) * fine + 1):
            if np.interp(tick / fine, steps, found.exposure) >= level:
                slow = tick / fine
                break
        fast = found.steps_to(level)
        never += int(slow == np.inf)
        assert fast == slow or slow - 1.5 / fine <= fast <= slow
    assert 3 < never < 37


def test_steps_to_a_level_by_hand() -> None:
    found = curve(0.0, 0.2, 0.6, 0.1, 0.9, steps=(0, 1, 3, 8, 20))
    assert found.steps_to(0.1) == pytest.approx(0.5)
    assert found.steps_to(0.2) == 1
    assert found.steps_to(0.5) == pytest.approx(2.5)
    assert found.steps_to(0.6) == pytest.approx(3)  # it falls again, and was there
    assert found.steps_to(0.7) == pytest.approx(8 + 12 * 0.75)
    assert found.steps_to(0.95) == np.inf
    assert (found.told(0.5), found.told(0.95)) == ("2.5", "> 20")
    for nothing in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="nothing to relearn"):
            found.steps_to(nothing)


def test_scores_say_what_was_not_seen() -> None:
    """Half is .5 and the horizon 4: a model reaches it after 2 steps, another after 1, one has it, one never gets it."""
    two, one, has, never = (
        curve(0, 0.25, 0.5, 0.5, 0.5),
        curve(0, 0.5, 0.5, 0.5, 0.5),
        curve(0.5, 0, 0, 0, 0),
        curve(0, 0, 0, 0, 0.4),
    )

    def score(subject: Relearned, *references: Relearned) -> tuple[float, str]:
        found = relearn_score(subject, references, 0.5)
        return found.value, found.bound

    assert score(two, one) == (2.0, "exact")
    assert score(one, two) == (0.5, "exact")
    assert score(never, two) == (2.0, "at least")
    assert score(two, never) == (0.5, "at most")
    assert score(never, never) == (1.0, "neither reached")
    assert score(has, one) == (0.0, "exact")
    assert score(has, has) == (1.0, "exact")
    assert score(two, has) == (np.inf, "exact")
    assert score(two, one, never, has) == (0.5, "at most")
    several = relearn_score(two, [one, two, never], 0.5)
    assert several.each == (2.0, 1.0, 0.5)
    assert several.references == (1.0, 2.0, np.inf)
    assert several.steps == 2.0


def test_only_the_same_attack_is_compared() -> None:
    own = curve(0, 0.5)
    others = [
        [],
        [curve(0, 0.5, kind="benign")],
        [curve(0, 0.5, 0.5)],
        [curve(0, 0.5, steps=(0, 2))],
        [own, replace(own, pairs=8)],
    ]
    for wrong in others:
        with pytest.raises(UsageError, match="same attack"):
            relearn_score(own, wrong, 0.5)
