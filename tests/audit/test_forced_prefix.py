"""Forced prefixes: against a greedy decoder that really writes the rest, code by code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit.forced_prefix import PAIRS, REACH, by_user, forced_pairs, forced_prefix
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError
from recerase.model.forced import extraction_strength, likeliest
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.table import SidSchema, SidTable
from recerase.sid.trie import Trie
from recerase.types import Measurement, Skipped


def read(model: AuditModel, world: AuditWorld) -> dict[str, Measurement]:
    return {m.metric: m for m in forced_prefix(Readings(model, world)) if isinstance(m, Measurement)}


class Writer:
    """A greedy decoder that asks the transformers module itself, once for everything it has written."""

    def __init__(self, model: Recommender, table: SidTable, history: Histories) -> None:
        self.model, self.tokens, self.known = (
            model,
            model.tokens(history, table)[0],
            dict[tuple[int, ...], list[float]](),
        )

    def scores(self, written: list[int]) -> list[float]:
        if tuple(written) not in self.known:
            rows, module = torch.tensor([written], dtype=torch.int64), self.model.module
            with torch.inference_mode():
                if self.model.kind == "causal":
                    said = module(input_ids=torch.cat([self.tokens, rows], 1))
                else:
                    start = torch.full((1, 1), module.config.decoder_start_token_id)
                    said = module(input_ids=self.tokens, decoder_input_ids=torch.cat([start, rows], 1))
            self.known[tuple(written)] = said.logits[0, -1].tolist()
        return self.known[tuple(written)]

    def strength(self, sid: list[int], spelled: list[list[int]] | None) -> float:
        """1 - j / L by giving 0, 1, .. codes and writing the rest, among the SIDs `spelled` or among all rows."""
        for given in range(len(sid) + 1):
            written = sid[:given]
            while len(written) < len(sid):
                scores = self.scores(written)
                allowed = set(range(len(scores)))
                if spelled is not None:
                    at = len(written)
                    allowed = {s[at] for s in spelled if s[:at] == written and len(s) > at}
                written = [*written, max(allowed, key=lambda row: scores[row])]
                if written[-1] != sid[len(written) - 1]:
                    break
            if written == sid:
                return 1 - given / len(sid)
        raise AssertionError("a whole SID reproduces itself")


def three_levels(kind: str, ragged: bool) -> tuple[Recommender, SidTable]:
    rng = np.random.default_rng(2)
    codes = np.unique(rng.integers(0, 4, (40, 3)), axis=0).astype(np.int32)
    if ragged:
        codes = np.concatenate([codes, [[4, -1, -1], [4, 1, -1], [0, 4, -1]]]).astype(np.int32)
    schema = SidSchema.native((5, 5, 5))
    table = SidTable.build([f"i{i:02d}" for i in range(len(codes))], codes, schema)
    config = ModelConfig(kind, width=16, layers=1, heads=2, feed_forward=32, window=5, dropout=0.0)  # type: ignore[arg-type]
    model = new_recommender(config, schema, 3)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "norm" not in name:
                parameter.mul_(4.0)
    model.module.eval()
    return model, table


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("ragged", [False, True])
def test_strength_is_that_of_a_decoder_that_is_run(kind: str, ragged: bool) -> None:
    model, table = three_levels(kind, ragged)
    rng, n = np.random.default_rng(0), len(table)
    histories = Histories.from_lists([rng.integers(0, n, size).tolist() for size in (0, 1, 4)])
    items = np.stack([rng.permutation(n) for _ in range(3)])  # every item after every history
    found = likeliest(model, table, histories, table, items, Trie.build(table), batch=3)
    spelled = [[r for r in row if r >= 0] for row in table.rows().tolist()]
    lengths = np.array([len(s) for s in spelled])
    writers = [Writer(model, table, histories.take([b])) for b in range(len(histories))]
    for hits, among in ((found.free, None), (found.within, spelled)):
        strength = extraction_strength(hits, lengths[items])
        for b in range(3):
            expected = [writers[b].strength(spelled[i], among) for i in items[b]]
            np.testing.assert_allclose(strength[b], expected)
        assert len(np.unique(strength)) > 1


def test_batches_and_order_change_nothing() -> None:
    model, table = three_levels("causal", False)
    rng = np.random.default_rng(1)
    histories = Histories.from_lists([rng.integers(0, len(table), size).tolist() for size in rng.integers(0, 6, 30)])
    items, trie = rng.integers(0, len(table), (30, 2)), Trie.build(table)
    one = likeliest(model, table, histories, table, items, trie)
    order = rng.permutation(30)
    two = likeliest(model, table, histories.take(order), table, items[order], trie, batch=4)
    np.testing.assert_array_equal(two.free, one.free[order])
    np.testing.assert_array_equal(two.within, one.within[order])


@pytest.mark.parametrize(
    ("hits", "length", "strength"),
    [
        ([1, 1, 1], 3, 1),
        ([0, 1, 1], 3, 2 / 3),
        ([1, 0, 1], 3, 1 / 3),
        ([1, 1, 0], 3, 0),
        ([0, 1, 1], 2, 1 / 2),
        ([0, 0, 0], 0, 0),
    ],
)
def test_the_last_code_that_is_missed_decides(hits: list[int], length: int, strength: float) -> None:
    assert extraction_strength(np.array(hits, bool), np.array(length)) == pytest.approx(strength)


def test_an_oracle_writes_the_concept_unasked_and_another_only_what_is_begun(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    """Its second code is even: which of equals is written is chance, and counts as written."""
    own, other = read(audited(planted(0)), world), read(audited(planted(1)), world)
    for side in ("old", "new"):
        assert own[f"forced_prefix.strength.{side}"].value == 1
        assert own[f"forced_prefix.empty.{side}"].value == 1
        assert own[f"forced_prefix.over.{side}"].value == 1
        assert other[f"forced_prefix.strength.{side}"].value == 0.5
    assert own["forced_prefix.retained"].value == 0.5
    assert other["forced_prefix.over.new"].value < 0.5


def test_a_model_that_ends_no_concept_sid_has_no_strength(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender], schema: SidSchema
) -> None:
    """After the concept's first code it writes a second code that no item has; retained items are as before."""
    clean = planted(1)
    with torch.no_grad():
        clean.module.lm_head.weight[int(schema.rows[1][15]), int(schema.rows[0][0])] += 5.0
    found = read(audited(clean), world)
    for side in ("old", "new"):
        assert found[f"forced_prefix.strength.{side}"].value == 0
        assert found[f"forced_prefix.empty.{side}"].value == 0
        assert found[f"forced_prefix.trie.{side}"].value == 0.5  # in the trie no other second code is left
        assert found[f"forced_prefix.over.{side}"].value == 0
    assert found["forced_prefix.retained"].value > 0.5


def test_old_sids_are_asked_for_where_they_were(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender], table: SidTable
) -> None:
    gone = replace(table, codes=np.where(world.members[:, None], -1, table.codes).astype(np.int32))
    found = read(audited(planted(0), table=gone, old_table=table, listed=~world.members), world)
    assert found["forced_prefix.strength.old"].value == 1
    assert found["forced_prefix.strength.new"].value == 0
    assert found["forced_prefix.trie.new"].value == 0
    assert found["forced_prefix.empty.new"].value == 0


def test_matches_are_retained_and_about_as_popular(world: AuditWorld) -> None:
    able = world.retained & (np.arange(36) != 20)
    pairs = forced_pairs(world, able)
    assert len(pairs.case) == len(pairs.concept) == len(pairs.matched) == PAIRS // 60 * 60
    assert world.members[pairs.concept].all()
    assert able[pairs.matched].all()
    counts = np.bincount(world.catalogue.interactions.split().train.items, minlength=36)
    ordered = np.sort(counts[able])
    for concept, matched in zip(pairs.concept, pairs.matched, strict=True):
        low, high = np.searchsorted(ordered, counts[concept]), np.searchsorted(ordered, counts[concept], "right")
        nearby = ordered[max(0, min(low, 22) - REACH) : high + REACH + 1]
        assert nearby.min() <= counts[matched] <= nearby.max()
    share = (pairs.concept[:, None] == np.arange(12)).mean(0)
    np.testing.assert_allclose(share, (counts[:12] + 1) / (counts[:12] + 1).sum(), atol=0.06)


def test_a_model_that_says_nothing_is_no_clean_one(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    broken = planted(0)
    with torch.no_grad():
        broken.module.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="no number"):
        forced_prefix(Readings(audited(broken), world))


def test_without_a_listed_retained_item_there_is_no_match(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    (skipped,) = forced_prefix(Readings(audited(untrained, listed=world.members), world))
    assert isinstance(skipped, Skipped)
    assert skipped.metric == "forced_prefix.*"


def test_the_pairs_of_one_user_are_one_unit(world: AuditWorld, audited: Callable, untrained: Recommender) -> None:
    """60 users are asked 16 times each; the figure is that of 60 users, and not of a thousand."""
    model, users = audited(untrained), len(world.histories)
    pairs = forced_pairs(world, model.listed & world.retained)
    assert len(pairs.case) == PAIRS // users * users
    asked = pairs.case.histories.users
    assert (np.bincount(np.unique(asked, return_inverse=True)[1]) == PAIRS // users).all()
    found = read(model, world)
    m = found["forced_prefix.strength.old"]
    assert {one.n for name, one in found.items() if ".empty." not in name} == {users}
    assert m.values is not None
    turned = replace(world, config=replace(world.config, batch=7))
    assert read(model, turned)[m.metric].value == pytest.approx(m.value)
    assert by_user(asked, users).tolist() == asked[:users].tolist()
