"""Training: the same weights whether or not it was killed, pieces and pairs by brute force, the best epoch kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recerase.catalog.interactions import Histories, Interactions, Split
from recerase.errors import UsageError
from recerase.model import training
from recerase.model.batches import IGNORED, batch_rows, causal_inputs, pairs, seq2seq_inputs, windows
from recerase.model.decode import recommend
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.training import (
    PIECE,
    TrainConfig,
    learning_rate,
    left_out,
    progress_of,
    sequence_loss,
    train,
    validate,
)
from recerase.sid.table import SidTable
from recerase.types import Silent

CONFIG = TrainConfig(epochs=4, batch=8, lr=1e-2, patience=9, validate_every=1, validation_users=12, seed=5)
Make = Callable[..., Recommender]
ragged = st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=14), min_size=1, max_size=6)


@pytest.fixture(params=["causal", "seq2seq"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fresh(table: SidTable) -> Make:
    """fresh(kind, seed=0): an untrained recommender with dropout, so that random numbers matter."""

    def build(kind: str, seed: int = 0) -> Recommender:
        shape = ModelConfig(kind=kind, width=16, layers=1, heads=2, feed_forward=24, window=4, dropout=0.2)  # type: ignore[arg-type]
        return new_recommender(shape, table.schema, seed)

    return build


@pytest.fixture
def split() -> Split:
    """40 users of 2 to 9 interactions with any of the 26 items, two of which have no SID."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(2, 10, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(0, 26, int(lengths.sum())).astype(np.int32)
    users = np.array([f"u{i}" for i in range(40)], dtype=object)
    return Interactions(users, offsets, items, np.arange(len(items), dtype=np.int64), "interactions").split()


class Killer(Silent):
    """Stops a run in the middle of an epoch, or notes how it went on."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after
        self.steps = 0

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        if figures:
            self.steps += step
        if self.left is not None and figures:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def state(model: Recommender) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.module.state_dict().items()}


class Memory(dict[str, bytes]):
    """Pieces kept in memory."""

    def read(self, name: str) -> bytes | None:
        return self.get(name)

    def write(self, name: str, data: bytes) -> None:
        self[name] = data


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lists(histories: Histories) -> list[list[int]]:
    return [x.tolist() for x in np.split(histories.items, histories.offsets[1:-1])] if len(histories) else []


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_to_the_same_bits(kind: str, fresh: Make, table: SidTable, split: Split) -> None:
    """Killed in the middle of the third epoch and again in the fourth: weights, log and best epoch are those of a straight run."""
    straight, pieces = fresh(kind), Memory()
    whole = Killer()
    log = train(straight, table, split, CONFIG, whole)
    each = whole.steps // CONFIG.epochs
    for epochs, after in enumerate((2 * each + each // 2, each + 1), 2):
        with pytest.raises(KeyboardInterrupt):
            train(fresh(kind), table, split, CONFIG, Killer(after), pieces)
        assert progress_of(pieces[PIECE]).epoch == epochs
    resumed, last = fresh(kind), Killer()
    again = train(resumed, table, split, CONFIG, last, pieces)
    assert 0 < last.steps <= each + 1  # it did not start over
    assert same(state(resumed), state(straight))
    assert (again.epochs, again.best_epoch, again.validation) == (log.epochs, log.best_epoch, log.validation)
    assert again.history == log.history


def test_a_finished_run_is_not_run_again(kind: str, fresh: Make, table: SidTable, split: Split) -> None:
    config, pieces = replace(CONFIG, epochs=2), Memory()
    first, second, observer = fresh(kind), fresh(kind), Killer()
    train(first, table, split, config, state=pieces)
    train(second, table, split, config, observer, pieces)
    assert observer.steps == 0
    assert same(state(first), state(second))


def test_keeping_state_changes_nothing(kind: str, fresh: Make, table: SidTable, split: Split) -> None:
    config = replace(CONFIG, epochs=2)
    first, second = fresh(kind), fresh(kind)
    train(first, table, split, config, state=Memory())
    train(second, table, split, config)
    assert same(state(first), state(second))


def test_global_random_state_neither_matters_nor_changes(fresh: Make, table: SidTable, split: Split) -> None:
    config = replace(CONFIG, epochs=1)
    first, second = fresh("causal"), fresh("causal")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train(first, table, split, config)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    train(second, table, split, config)
    assert same(state(first), state(second))


# -- which weights are kept --------------------------------------------------------------------------------------------


def planted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[dict[str, torch.Tensor]]:
    """Validations that find these values in turn; returns the weights seen at each."""
    seen: list[dict[str, torch.Tensor]] = []

    def found(model: Recommender, *args: Any) -> dict[str, float]:
        seen.append(state(model))
        return {"recall@10": 0.5, "ndcg@10": values[len(seen) - 1]}

    monkeypatch.setattr(training, "validate", found)
    return seen


def test_the_best_epochs_weights_are_kept(
    kind: str, fresh: Make, table: SidTable, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = planted(monkeypatch, [0.1, 0.4, 0.2, 0.3])
    model = fresh(kind)
    log = train(model, table, split, CONFIG)
    assert len(seen) == log.epochs == 4
    assert same(state(model), seen[1])
    assert not same(seen[1], seen[3])
    assert (log.best_epoch, log.validation["ndcg@10"]) == (2, 0.4)
    assert [row["ndcg@10"] for row in log.history] == [0.1, 0.4, 0.2, 0.3]
    assert not model.module.training


def test_patience_ends_training(fresh: Make, table: SidTable, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first best of equals is kept, and two validations without a better one are enough."""
    seen = planted(monkeypatch, [0.1, 0.3, 0.3, 0.2, 0.9, 0.9])
    model = fresh("causal")
    log = train(model, table, split, replace(CONFIG, epochs=6, patience=2))
    assert log.epochs == 4
    assert log.best_epoch == 2
    assert same(state(model), seen[1])


def test_the_last_epoch_is_always_validated(fresh: Make, table: SidTable, split: Split) -> None:
    log = train(fresh("causal"), table, split, replace(CONFIG, epochs=3, validate_every=2))
    assert ["ndcg@10" in row for row in log.history] == [False, True, True]


def test_users_with_nothing_held_out_leave_the_last_weights(fresh: Make, table: SidTable, split: Split) -> None:
    """Without a validation user there is no best epoch: all epochs are trained, and nothing is not a number."""
    nobody = replace(split, valid=split.valid.take([]))
    model = fresh("causal")
    log = train(model, table, nobody, replace(CONFIG, epochs=3, patience=1))
    assert log.epochs == 3
    assert log.validation == {}
    assert all(np.isfinite(v) for row in log.history for v in row.values())


def test_learning_lowers_the_loss(kind: str, fresh: Make, table: SidTable, split: Split) -> None:
    log = train(fresh(kind), table, split, replace(CONFIG, epochs=4))
    losses = [row["loss"] for row in log.history]
    assert losses[-1] < losses[0] - 0.1


def test_nothing_to_train_on_is_refused(fresh: Make, table: SidTable, split: Split) -> None:
    empty = replace(split, train=Histories.from_lists([[3], [5, 11, 4], []]))  # 5 and 11 have no SID
    with pytest.raises(UsageError, match="nothing to train on"):
        train(fresh("causal"), table, empty, CONFIG)


def test_validation_is_recall_and_ndcg_by_hand(fresh: Make, table: SidTable, split: Split) -> None:
    model = fresh("causal")
    model.module.eval()
    known = [b for b in range(len(split.valid)) if table.present[split.valid.targets[b]]]
    held = split.valid.take(known)
    items = recommend(model, table, held, k=10).items.tolist()
    places = [row.index(t) if t in row else None for row, t in zip(items, held.targets.tolist(), strict=True)]
    found = validate(model, table, split.valid, 1000, 0)
    assert found["recall@10"] == pytest.approx(np.mean([p is not None for p in places]))
    assert found["ndcg@10"] == pytest.approx(np.mean([0 if p is None else 1 / np.log2(p + 2) for p in places]))
    few = [validate(model, table, split.valid, 9, seed) for seed in (0, 0, 1)]
    assert few[0] == few[1]
    assert len({round(9 * f["recall@10"], 6) % 1 for f in few}) == 1  # nine users


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(2.0, step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert rates[55] == pytest.approx(1.0)
    assert learning_rate(2.0, 0, 1, 0.05) == 2.0
    assert all(0 <= learning_rate(2.0, step, 100, 0.1) < 0.01 for step in range(100, 104))  # epochs differ by a batch


# -- pieces, pairs, batches --------------------------------------------------------------------------------------------


@given(ragged=ragged, size=st.integers(2, 6), seed=st.integers(0, 99))
def test_windows_are_the_sequences_cut_into_pieces(ragged: list[list[int]], size: int, seed: int) -> None:
    """Each sequence's pieces are consecutive, at most `size` long, whole in all but pieces of one item; short ones stay whole."""
    found = windows(Histories.from_lists(ragged), size, np.random.default_rng(seed))
    first = np.random.default_rng(seed).integers(1, size + 1, len(ragged))
    expected = []
    for sequence, head in zip(ragged, first.tolist(), strict=True):
        if len(sequence) <= size:
            cuts = [0, len(sequence)]
        else:
            cuts = sorted({0, *range(head, len(sequence), size), len(sequence)})
        expected += [sequence[a:b] for a, b in itertools.pairwise(cuts) if b - a >= 2]
    assert lists(found) == expected
    assert (found.targets == -1).all()


def test_windows_keep_their_users_and_every_cut_occurs() -> None:
    sequences = replace(Histories.from_lists([[0, 1, 2], list(range(10))]), users=np.array([7, 9]))
    cuts = set()
    for seed in range(60):
        found = windows(sequences, 4, np.random.default_rng(seed))
        assert found.users.tolist() == [7] + [9] * (len(found) - 1)
        cuts.add(lists(found)[1][0] if len(lists(found)[1]) == 4 else -len(lists(found)[1]))
    assert {0, 1, -2, -3} <= cuts  # a first piece of 1 (dropped), 2, 3 or 4 items


@given(ragged=ragged, window=st.integers(1, 6))
def test_pairs_are_every_history_and_next_item(ragged: list[list[int]], window: int) -> None:
    found = pairs(Histories.from_lists(ragged), window)
    expected = [(x[max(0, t - window) : t], x[t]) for x in ragged for t in range(1, len(x))]
    assert list(zip(lists(found), found.targets.tolist(), strict=True)) == expected


def test_sequences_without_items_have_no_pairs() -> None:
    found = pairs(Histories.from_lists([[], [1, 2], [], [3]]), 4)
    assert lists(found) == [[1]]
    assert found.targets.tolist() == [2]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_batches_hold_every_row_once_and_are_of_nearly_equal_length(lengths: list[int], batch: int, seed: int) -> None:
    sizes = np.array(lengths)
    groups = batch_rows(sizes, batch, np.random.default_rng(seed))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    assert max(map(len, groups)) <= batch
    spans = sorted((int(sizes[g].min()), int(sizes[g].max())) for g in groups)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def inputs_of(model: Recommender, table: SidTable, some: Histories) -> dict[str, torch.Tensor]:
    return (causal_inputs if model.kind == "causal" else seq2seq_inputs)(model, table, some)


def test_labels_are_the_codes_to_come(make: Make, table: SidTable) -> None:
    """Causal: after every token the next one, nothing after the last. Seq2seq: the target's codes, shifted right by the start."""
    histories = Histories.from_lists([[0, 1, 2], [8]], targets=[3, 4])
    found = causal_inputs(make("causal"), table, histories)
    first = [1, *table.rows()[[0, 1, 2]].flatten().tolist()]
    second = [1, *table.rows()[8].tolist()]
    assert found["input_ids"].tolist() == [first, second + [0] * 6]
    assert found["labels"].tolist() == [[*first[1:], IGNORED], [*second[1:], *[IGNORED] * 7]]
    found = seq2seq_inputs(make("seq2seq"), table, histories)
    target = table.rows()[[3, 4]]
    assert found["labels"].tolist() == target.tolist()
    assert found["decoder_input_ids"].tolist() == np.concatenate([[[0], [0]], target[:, :-1]], 1).tolist()
    assert found["attention_mask"].sum(1).tolist() == [10, 4]


def test_the_loss_of_a_batch_is_that_of_its_parts(kind: str, make: Make, table: SidTable) -> None:
    """Weighted by labelled codes, whatever is padded beside what."""
    model = make(kind)
    histories = Histories.from_lists([[0, 1, 2, 3, 4, 6], [8], [9, 10], [20, 21, 22, 23]], targets=[3, 4, 6, 8])
    with torch.no_grad():
        whole = float(sequence_loss(model.module, inputs_of(model, table, histories)))
        total, codes = 0.0, 0
        for rows in ([1], [0, 3], [2]):
            part = inputs_of(model, table, histories.take(rows))
            n = int((part["labels"] != IGNORED).sum())
            total, codes = total + n * float(sequence_loss(model.module, part)), codes + n
    assert whole == pytest.approx(total / codes, rel=1e-5)


def test_the_loss_is_the_mean_log_probability_of_the_codes(kind: str, make: Make, table: SidTable, plain: Any) -> None:
    """Against plain forwards of transformers on single histories."""
    model = make(kind)
    if kind == "seq2seq":
        histories = Histories.from_lists([[0, 1, 2], [8]], targets=[3, 4])
        chains = [([0, 1, 2], 3), ([8], 4)]
    else:
        histories = Histories.from_lists([[0, 1, 2], [8, 9]])
        chains = [([], 0), ([0], 1), ([0, 1], 2), ([], 8), ([8], 9)]
    by_hand = []
    for history, item in chains:
        path = torch.from_numpy(table.rows()[[item]])
        by_hand.append(plain(model, table, history, path).gather(2, path[..., None]))
    with torch.no_grad():
        found = float(sequence_loss(model.module, inputs_of(model, table, histories)))
    assert found == pytest.approx(-float(torch.cat(by_hand).mean()), rel=1e-4)


def test_what_is_left_out_is_left_out_of_every_place_and_only_meanwhile(fresh: Make) -> None:
    """With all of it left out, what is left of a causal model is its norm of nothing; afterwards it is what it was."""
    model = fresh("causal")
    tokens = torch.arange(1, 9)[None]
    model.module.eval()
    before = model.module(input_ids=tokens).logits
    hooked = sum(len(part._forward_hooks) for part in model.module.modules())
    with left_out(model, 0.5):
        assert torch.equal(model.module(input_ids=tokens).logits, before)  # evaluation is never touched
        model.module.train()
        torch.manual_seed(0)
        parts = dict(model.module.named_modules())
        seen: dict[str, float] = {}
        for name in ("model.embed_tokens", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"):
            parts[name].register_forward_hook(
                lambda part, given, made, name=name: seen.update({name: float((made == 0).float().mean())})
            )
        model.module(input_ids=tokens.repeat(8, 1))
        assert len(seen) == 3
        assert all(0.35 < share < 0.65 for share in seen.values())
    model.module.eval()
    assert torch.equal(model.module(input_ids=tokens).logits, before)
    assert sum(len(part._forward_hooks) for part in model.module.modules()) == hooked + 3  # those of this test
    with pytest.raises(RuntimeError), left_out(model, 0.5):
        raise RuntimeError
    assert sum(len(part._forward_hooks) for part in model.module.modules()) == hooked + 3


def test_a_t5_keeps_to_its_own_dropout(fresh: Make) -> None:
    model = fresh("seq2seq")
    with left_out(model, 0.5):
        assert not any(part._forward_hooks for part in model.module.modules())
