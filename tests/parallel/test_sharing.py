"""What a process makes of its part, with the other processes played by a ledger: parts add up to the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recerase.audit.readings import BLOCK, _blocks
from recerase.catalog.interactions import Histories
from recerase.erase import target as erasing
from recerase.erase.target import Target, Teacher
from recerase.erasure import _digest
from recerase.model import training
from recerase.model.batches import IGNORED
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.training import TrainConfig, _batches, _shared, sequence_loss
from recerase.parallel import Workers
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable


class Played(Workers):
    """One of several processes; what all of them add is written into a ledger first, and read from it in a second round."""

    def __init__(self, rank: int, size: int, ledger: list[list[Tensor]], read: bool) -> None:
        super().__init__(rank, size)
        object.__setattr__(self, "ledger", ledger)
        object.__setattr__(self, "read", read)
        object.__setattr__(self, "place", iter(range(10**6)))

    def summed(self, tensor: Tensor) -> Tensor:
        own: Any = self
        at = next(own.place)
        if own.read:
            return torch.stack(own.ledger[at]).sum(0)
        own.ledger.extend([] for _ in range(at + 1 - len(own.ledger)))
        own.ledger[at].append(tensor.clone())
        return tensor


@pytest.fixture
def table() -> SidTable:
    codes = np.array([[a, b] for a in range(4) for b in range(5)])
    return SidTable.build([f"i{n:02d}" for n in range(20)], codes, SidSchema.native([4, 5]))


@pytest.fixture
def sequences() -> Histories:
    rng = np.random.default_rng(3)
    return Histories.from_lists([rng.choice(20, n, replace=False).tolist() for n in (2, 3, 5, 2, 4, 6, 3)])


def make(kind: Any, table: SidTable) -> Recommender:
    return new_recommender(
        ModelConfig(kind=kind, width=16, layers=1, heads=2, feed_forward=16, window=6, dropout=0.0), table.schema
    )


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workers], None]:
    def become(who: Workers) -> None:
        monkeypatch.setattr(training, "workers", lambda: who)

    return become


def gradients_of(model: Recommender) -> dict[str, Tensor | None]:
    found = {name: None if p.grad is None else p.grad.clone() for name, p in model.module.named_parameters()}
    model.module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_gradients_and_losses_of_the_parts_are_those_of_the_batch(
    kind: str, size: int, table: SidTable, sequences: Histories, play: Callable[[Workers], None]
) -> None:
    """9 processes: more than there are rows in a batch of causal windows."""
    model, config = make(kind, table), TrainConfig(batch=7, seed=1)

    def part(who: Workers) -> tuple[float, int]:
        play(who)
        inputs = next(iter(_batches(model, table, sequences, config, 0)))
        if inputs is None:
            return _shared(model.module, 0.0, 0)
        loss = sequence_loss(model.module, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return _shared(model.module, float(loss.detach()), int((inputs["labels"] != IGNORED).sum()))

    loss, n = part(Workers())
    whole = gradients_of(model)
    ledger: list[list[Tensor]] = []
    for rank in range(size):
        part(Played(rank, size, ledger, read=False))
        model.module.zero_grad(set_to_none=True)
    for rank in range(size):
        shared, count = part(Played(rank, size, ledger, read=True))
        assert count == n
        assert shared == pytest.approx(loss, rel=1e-5)
        for name, found in gradients_of(model).items():
            wanted = whole[name]
            assert (found is None) == (wanted is None), name
            if found is not None and wanted is not None:
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_every_row_of_a_batch_is_somebodys_once(
    table: SidTable, sequences: Histories, play: Callable[[Workers], None]
) -> None:
    model, config = make("causal", table), TrainConfig(batch=3)

    def rows(who: Workers) -> list[list[tuple[int, ...]]]:
        play(who)
        found = _batches(model, table, sequences, config, 2)
        return [[] if b is None else [tuple(r[r != 0].tolist()) for r in b["input_ids"]] for b in found]

    whole, parts = rows(Workers()), [rows(Workers(rank, 4)) for rank in range(4)]
    assert [sorted(row for part in split for row in part) for split in zip(*parts, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert any(not batch for batch in parts[3])


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40, 200])
def test_blocks_hold_every_batch_in_order_and_are_enough_to_share(n: int) -> None:
    batches = [np.array([i]) for i in range(n)]
    blocks = _blocks(batches)
    assert np.concatenate(blocks).tolist() == list(range(n))
    assert max(map(len, blocks)) <= BLOCK
    assert len(blocks) >= min(n, 16)


class Threaded(Workers):
    """One of several processes, each played by a thread, so that what is exchanged can depend on what was before."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, size)
        object.__setattr__(self, "board", board)
        object.__setattr__(self, "barrier", barrier)

    def gathered(self, value: Any) -> list[Any]:
        own: Any = self
        own.board[self.rank] = value
        own.barrier.wait()
        found = list(own.board)
        own.barrier.wait()
        return found


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_targets_that_are_shared_are_those_of_one_process(
    kind: str, table: SidTable, sequences: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 histories: for 2 and 3 processes parts of different sizes, for 9 fewer than processes. Twice, as draws go on."""
    model, members = make(kind, table), np.isin(np.arange(20), [0, 1, 2, 3, 4, 7, 11])
    drawn = np.full(7, -1)
    local = threading.local()
    monkeypatch.setattr(erasing, "workers", lambda: getattr(local, "who", Workers()))

    def targets() -> list[Target]:
        teacher = Teacher(model, table, members, "output", seed=5)
        return [teacher.target(sequences, paths) for paths in (drawn, np.arange(12, 19), drawn)]

    wanted = targets()
    for size in (2, 3, 9):
        board, barrier = [None] * size, threading.Barrier(size, timeout=60)
        found: dict[int, list[Target]] = {}

        def work(
            rank: int, board: list[Any] = board, barrier: threading.Barrier = barrier, found: dict[int, Any] = found
        ) -> None:
            local.who = Threaded(rank, len(board), board, barrier)
            found[rank] = targets()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == size
        for rank in range(size):
            for one, same in zip(found[rank], wanted, strict=True):
                assert torch.equal(one.path, same.path)
                for name in ("log_probs", "closed", "mass"):
                    torch.testing.assert_close(getattr(one, name), getattr(same, name), rtol=1e-4, atol=1e-5)
    assert not torch.equal(wanted[0].path, wanted[2].path)


def test_weights_are_told_apart_with_their_dtypes(table: SidTable) -> None:
    model = make("causal", table)
    before = _digest(model)
    assert _digest(make("causal", table)) == before
    model.module.bfloat16()
    narrow = _digest(model)
    model.module.float()  # the same values as the narrow ones
    assert len({before, narrow, _digest(model)}) == 3
