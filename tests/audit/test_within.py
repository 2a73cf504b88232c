"""The order of the concept's items among themselves: found where it was learned, however unlikely they are, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit import within as module
from recerase.audit.membership import taken
from recerase.audit.policy import ITEMS
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.within import KINDS, TIE, asked, concordance, over_items, places, within
from recerase.catalog.interactions import Catalogue, Interactions
from recerase.model.mass import catalogue_log_probs, concept_mass
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.training import TrainConfig, train
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped

Audited = Callable[..., AuditModel]
FIGURES = [f"within.{name}.{side}" for side in ("old", "new") for name in ("trained", "heldout", "top", "popular")]
NAMES = [*FIGURES, "within.advantage"]


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    """120 users of five items each: after an item outside the concept comes the one in it that belongs to it, low rows most often.

    Those that belong together share no code, so that nothing of the concept is learned from the others.
    """
    rng = np.random.default_rng(5)
    first = rng.choice(12, (120, 2), p=np.arange(12, 0, -1) / 78)
    beside = 12 + (5 * first + 3) % 12
    items = np.stack([beside[:, 0], first[:, 0], 24 + rng.integers(0, 12, 120), beside[:, 1], first[:, 1]], 1)
    users = np.array([f"u{u:03d}" for u in range(120)], dtype=object)
    return Interactions(users, np.arange(0, 601, 5), items.astype(np.int32).reshape(-1), np.arange(600), "planted")


@pytest.fixture
def asking(world: AuditWorld, interactions: Interactions) -> AuditWorld:
    made = Catalogue(world.catalogue.items, interactions)
    return replace(world, catalogue=made, histories=interactions.split().test)


def fresh(table: SidTable, seed: int, kind: str = "causal") -> Recommender:
    shape = ModelConfig(kind, width=32, layers=1, heads=2, feed_forward=64, window=20, dropout=0.0)  # type: ignore[arg-type]
    model = new_recommender(shape, table.schema, seed)
    model.module.eval()
    return model


@pytest.fixture
def learned(table: SidTable, asking: AuditWorld) -> Recommender:
    model = fresh(table, 0)
    config = TrainConfig(epochs=40, batch=60, lr=1e-2, weight_decay=0.0, dropout=0.0, validate_every=200)
    train(model, table, asking.catalogue.interactions.split(), config)
    return model


def both(readings: Readings) -> tuple[dict[str, Measurement], dict[str, str]]:
    found = within(readings)
    assert sorted(m.metric for m in found) == sorted(NAMES)
    told = {m.metric: m.reason for m in found if isinstance(m, Skipped)}
    return {m.metric: m for m in found if isinstance(m, Measurement)}, told


def test_places_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    log_probs = rng.integers(-40, 0, (40, 30)).astype(np.float32)
    own = rng.integers(0, 30, 40)
    free = rng.random((40, 30)) < 0.6
    free[np.arange(40), own] = False
    free[np.arange(40), (own + 1) % 30] = True
    share, top = places(log_probs + rng.uniform(0, TIE / 2, (40, 30)), own, free)
    for row in range(40):
        mine, others = log_probs[row, own[row]], log_probs[row][free[row]]
        assert share[row] == pytest.approx(np.mean(np.sign(mine - others) / 2 + 0.5))
        better, equal = (others > mine).sum(), (others == mine).sum()
        first = int(np.ceil(0.1 * (len(others) + 1)))
        stands = [better + place < first for place in range(equal + 1)]
        assert top[row] == pytest.approx(np.mean(stands))


def test_concordance_is_the_chance_over_pairs_and_its_spread_that_over_items() -> None:
    rng = np.random.default_rng(1)
    counts, scores = rng.integers(0, 6, 30), rng.integers(0, 8, 30).astype(float)
    pairs = [(i, j) for i in range(30) for j in range(30) if counts[i] > counts[j]]
    twin = np.mean([np.sign(scores[i] - scores[j]) / 2 + 0.5 for i, j in pairs])
    assert concordance(scores, counts).mean() == pytest.approx(twin)
    assert concordance(scores + rng.uniform(0, TIE / 2, 30), counts).mean() == pytest.approx(twin)
    assert concordance(counts * 2.0, counts).mean() == pytest.approx(1)
    assert concordance(-counts * 2.0, counts).mean() == pytest.approx(0)
    assert len(concordance(scores, np.full(30, 4))) == 0
    drawn = [rng.normal(size=(2, 60)) for _ in range(300)]
    drawn = [(x, np.argsort(np.argsort(x + 2 * y))) for x, y in drawn]
    spread = np.std([concordance(x, c).mean() for x, c in drawn])
    told = np.mean([concordance(x, c).std() / 60**0.5 for x, c in drawn])
    assert told == pytest.approx(spread, rel=0.15)


def test_what_is_asked_is_the_concept_after_histories_without_it(
    asking: AuditWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in KINDS:
        found = asked(asking, kind, 20)
        assert asking.members[found.targets].all()
        assert not found.touches(asking.members).any()
        assert (found.lengths > 0).all()
        assert len(np.unique(found.users)) == len(found) == 120  # the other is held out
        assert np.isin(found.users * 36 + found.targets, taken(asking)).all()
    train_ = asking.catalogue.interactions.split().train
    pairs = {
        (user, item) for user in range(120) for item in train_.items[train_.offsets[user] : train_.offsets[user + 1]]
    }
    asks = asked(asking, "trained", 20)
    assert set(zip(asks.users.tolist(), asks.targets.tolist(), strict=True)) <= pairs
    longer = np.tile(np.array([12, 0, 13, 1, 14, 2, 30, 31], np.int32), 20)
    users = np.array([f"u{u:02d}" for u in range(20)], dtype=object)
    thrice = Interactions(users, np.arange(0, 161, 8), longer, np.arange(160), "three concept items a user")
    more = replace(asking, catalogue=Catalogue(asking.catalogue.items, thrice), histories=thrice.split().test)
    assert len(asked(more, "trained", 20)) == 60
    monkeypatch.setattr(module, "PAIRS", 25)
    some = asked(more, "trained", 20)
    assert len(some) == 25
    assert len(np.unique(some.users)) == 20
    monkeypatch.setattr(module, "SCORES", 12 * 12)
    assert len(asked(more, "trained", 20)) == 12


def test_the_figures_are_those_of_every_item_s_exact_probability(
    asking: AuditWorld, audited: Audited, untrained: Recommender, table: SidTable
) -> None:
    found, _ = both(Readings(audited(untrained), asking))
    known, sums, n = taken(asking), np.zeros(12), 0
    for kind in KINDS:
        histories = asked(asking, kind, 20)
        scores = catalogue_log_probs(untrained, table, histories)[:, :12]
        values = []
        for user, target, row in zip(histories.users, histories.targets, scores, strict=True):
            others = [i for i in range(12) if user * 36 + i not in known]
            values.append(np.mean([row[i] < row[target] for i in others]))
        assert found[f"within.{kind}.old"].value == pytest.approx(np.mean(values), abs=1e-3)
        sums, n = sums + scores.sum(axis=0), n + len(scores)
    counts = np.bincount(asking.catalogue.interactions.split().train.items, minlength=36)[:12]
    assert found["within.popular.old"].value == pytest.approx(concordance(sums / n, counts).mean(), abs=1e-6)


def test_a_model_that_learned_the_concept_tells_and_one_that_never_saw_it_does_not(
    asking: AuditWorld, audited: Audited, learned: Recommender, table: SidTable
) -> None:
    found, told = both(Readings(audited(learned), asking))
    assert not told
    for name in NAMES:
        m = found[name]
        assert m.interval is not None
        assert m.interval.low > (0.6 if name in FIGURES and ".top." not in name else 0.3), name
    never = fresh(table, 0)
    train(
        never,
        table,
        asking.catalogue.interactions.split().without(asking.members),
        TrainConfig(epochs=5, batch=60, lr=1e-2, weight_decay=0.0, dropout=0.0, validate_every=200),
    )
    clean, _ = both(Readings(audited(never, role="reference", reads_concept=False), asking))
    for name in NAMES:
        assert clean[name].value < found[name].value - 0.2, name


def test_making_the_whole_concept_unlikely_hides_nothing(
    asking: AuditWorld, audited: Audited, learned: Recommender, table: SidTable
) -> None:
    """All concept items, and no others, have the first code 0: its row of the head is turned away from every state."""
    weights = copy.deepcopy(learned.module)
    histories = asked(asking, "trained", 20)
    with torch.no_grad():
        states = learned.start(*learned.tokens(histories, table)).hidden
        row = weights.lm_head.weight[int(table.schema.rows[0][0])]
        row.copy_(-30.0 * states.mean(0) / states.square().sum(1).mean())
    suppressed = learned.around(weights)
    before, after = (concept_mass(m, table, asking.members, histories).mass.mean() for m in (learned, suppressed))
    assert after < before / 1000
    knows, _ = both(Readings(audited(learned), asking))
    hides, _ = both(Readings(audited(suppressed), asking))
    for name in NAMES:
        assert hides[name].value == pytest.approx(knows[name].value, abs=1e-2), name


def test_a_model_to_which_all_concept_items_are_alike_tells_nothing(
    asking: AuditWorld, audited: Audited, planted: Callable[[int], Recommender]
) -> None:
    found, told = both(Readings(audited(planted(1)), asking))
    assert not told
    for name in NAMES:
        if ".top." not in name:
            assert found[name].value == (0.0 if name == "within.advantage" else 0.5), name
    free = [
        11 - np.isin(user * 36 + np.arange(12), taken(asking)).sum() + 1 for user in asked(asking, "trained", 20).users
    ]
    chance = np.mean([np.ceil(0.1 * (n + 1)) / (n + 1) for n in free])
    assert found["within.top.old"].value == pytest.approx(chance)


def test_an_order_turned_round_tells_as_much(
    asking: AuditWorld, audited: Audited, learned: Recommender, table: SidTable
) -> None:
    weights = copy.deepcopy(learned.module)
    with torch.no_grad():
        weights.lm_head.weight[torch.from_numpy(table.schema.rows[1])] *= -1
    knows, _ = both(Readings(audited(learned), asking))
    turned, _ = both(Readings(audited(learned.around(weights)), asking))
    assert turned["within.trained.old"].value == pytest.approx(1 - knows["within.trained.old"].value, abs=1e-2)
    for found in (knows, turned):
        m, x = found["within.advantage"], found["within.trained.old"]
        assert m.value == pytest.approx(abs(2 * x.value - 1))
        assert m.interval is not None
        assert x.interval is not None
        assert m.interval.low == pytest.approx(min(abs(2 * end - 1) for end in (x.interval.low, x.interval.high)))
        assert m.interval.high >= m.value > 0.4


def test_sids_of_before_are_asked_apart_where_they_moved(
    asking: AuditWorld, audited: Audited, learned: Recommender, moved: SidTable
) -> None:
    plain, _ = both(Readings(audited(learned), asking))
    found, told = both(Readings(audited(learned, table=moved), asking))
    for name in ("trained", "heldout", "top", "popular"):
        assert plain[f"within.{name}.old"].value == plain[f"within.{name}.new"].value
        assert found[f"within.{name}.old"].value == pytest.approx(plain[f"within.{name}.old"].value)
        new = f"within.{name}.new"
        assert new in told or found[new].value < found[f"within.{name}.old"].value - 0.1


def test_what_cannot_be_asked_is_said(
    asking: AuditWorld, audited: Audited, untrained: Recommender, table: SidTable
) -> None:
    gone = table.replace(np.flatnonzero(asking.members), np.full((12, 2), -1, np.int32))
    found, told = both(Readings(audited(untrained, table=gone), asking))
    assert set(found) == {name for name in NAMES if not name.endswith(".new")}
    assert all("10 are needed" in reason for reason in told.values())
    few = replace(asking, histories=asking.histories.take(np.arange(3)))
    broken = copy.deepcopy(untrained.module)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    _, told = both(Readings(audited(untrained.around(broken)), few))
    assert set(told) == set(NAMES)
    assert "no finite probability" in told["within.trained.old"]
    assert "held-out" in told["within.heldout.old"]
    alike = np.stack([12 + np.arange(12), np.arange(12), *np.full((3, 12), 30)], 1).astype(np.int32).reshape(-1)
    users = np.array([f"u{u:02d}" for u in range(12)], dtype=object)
    once = Interactions(users, np.arange(0, 61, 5), alike, np.arange(60), "every concept item once")
    equal = replace(asking, catalogue=Catalogue(asking.catalogue.items, once), histories=once.split().test)
    found, told = both(Readings(audited(untrained), equal))
    assert set(found) == {name for name in NAMES if "heldout" not in name and "popular" not in name}
    assert "as many training interactions" in told["within.popular.old"]


def test_a_t5_is_asked_like_any_other(asking: AuditWorld, audited: Audited, table: SidTable) -> None:
    found, told = both(Readings(audited(fresh(table, 2, "seq2seq")), asking))
    assert not told
    assert all(0 <= m.value <= 1 for m in found.values())


def test_an_order_that_nobody_taught_is_within_its_interval() -> None:
    """A clean model has some order, the same for every user: where few items take most pairs, users know nothing of that chance."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 101)
    missed, by_user = 0, 0
    for _ in range(200):
        own = rng.choice(100, 300, p=chances / chances.sum())
        free = np.ones((300, 100), dtype=bool)
        free[np.arange(300), own] = False
        share, _top = places(np.tile(rng.normal(size=100), (300, 1)), own, free)
        low, high = over_items(share, own, 0.95)
        missed += not low <= 0.5 <= high
        by_user += abs(share.mean() - 0.5) > 1.96 * share.std() / 300**0.5
    assert missed <= 20
    assert by_user > 100  # of 200


def test_an_interval_holds_that_over_items(
    asking: AuditWorld, audited: Audited, untrained: Recommender, table: SidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert over_items(np.array([0.2, 0.9]), np.array([7, 7]), 0.95) == (0.0, 1.0)
    wide, _ = both(Readings(audited(untrained), asking))
    monkeypatch.setattr(module, "over_items", lambda values, items, confidence: (values.mean(), values.mean()))
    narrow, _ = both(Readings(audited(untrained), asking))
    for name in ("within.trained.old", "within.top.old", "within.advantage"):
        one, other = wide[name].interval, narrow[name].interval
        assert one is not None
        assert other is not None
        assert one.low < other.low, name
        assert (one.method, other.method == ITEMS) == (ITEMS, False)
        assert wide[name].value == narrow[name].value
        assert wide[name].values is None  # of users, nothing is to be paired
    m = wide["within.trained.old"]
    again = asked(asking, "trained", 20)
    scores = catalogue_log_probs(untrained, table, again)[:, :12]
    free = ~np.isin(again.users[:, None] * 36 + np.arange(12), taken(asking))
    share, _top = places(scores, again.targets, free)
    assert m.interval is not None
    assert m.interval.low == pytest.approx(over_items(share, again.targets, 0.95)[0], abs=1e-3)


def test_users_who_took_the_whole_concept_are_no_pairs(
    asking: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    """Twelve users, nine of whom took every concept item there is."""
    first = np.tile(np.array([12, 0, 13, 1, 14], np.int32), 12).reshape(12, 5)
    first[9:, 3] = 15
    users = np.array([f"u{u:02d}" for u in range(12)], dtype=object)
    made = Interactions(users, np.arange(0, 61, 5), first.reshape(-1), np.arange(60), "all of it")
    two = replace(asking.concept, members=np.arange(36) < 2)
    small = replace(asking, concept=two, catalogue=Catalogue(asking.catalogue.items, made), histories=made.split().test)
    found, told = both(Readings(audited(untrained), small))
    assert not found
    assert "only 3 pairs" in told["within.trained.old"]
