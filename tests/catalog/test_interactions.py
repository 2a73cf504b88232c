from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.catalog import Catalogue, Histories, Items, load_catalogue
from recerase.catalog.columns import INTERACTION_SCHEMA
from recerase.catalog.interactions import Interactions, interactions_from_table
from recerase.errors import DataError

Write = Callable[..., Path]
N = 9
ragged = st.lists(st.lists(st.integers(0, N - 1), max_size=7), max_size=8)
concepts = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)


def lists(histories: Histories) -> list[list[int]]:
    return [h.tolist() for h in np.split(histories.items, histories.offsets[1:-1])] if len(histories) else []


def made(sequences: list[list[int]], items: Items) -> Interactions:
    rows = [(f"u{u}", "abcdefghi"[i], t, None) for u, row in enumerate(sequences) for t, i in enumerate(row)]
    columns = list(zip(*rows, strict=True))
    return interactions_from_table(pa.table([list(c) for c in columns], schema=INTERACTION_SCHEMA), items)


def test_users_are_in_file_order_and_their_items_in_time_order(catalogue: Catalogue) -> None:
    seen = catalogue.interactions
    assert seen.user_ids.tolist() == ["u1", "u2", "u0"]
    assert seen.lengths.tolist() == [4, 2, 3]
    assert seen.items.tolist() == [1, 3, 0, 2, 4, 5, 6, 0, 0], "equal times keep the file's order"
    assert seen.timestamps.tolist() == [1, 2, 5, 5, 1, 2, 1, 3, 9]
    assert (seen.n_users, len(seen)) == (3, 9)


def test_the_split_leaves_the_last_two_out(catalogue: Catalogue) -> None:
    split = catalogue.interactions.split()
    assert lists(split.train) == [[1, 3], [4, 5], [6]]
    assert split.train.targets.tolist() == [-1, -1, -1]
    assert (lists(split.valid), split.valid.targets.tolist()) == ([[1, 3], [6]], [0, 0])
    assert (lists(split.test), split.test.targets.tolist()) == ([[1, 3, 0], [6, 0]], [2, 0])
    assert split.valid.users.tolist() == split.test.users.tolist() == [0, 2]


@given(ragged.filter(lambda x: any(x)), concepts)
def test_the_split_of_any_catalogue_holds_each_interaction_once(
    items: Items, sequences: list[list[int]], concept: np.ndarray
) -> None:
    for interactions in (made(sequences, items), made(sequences, items).without(concept)):
        split = interactions.split()
        whole = lists(Histories(interactions.items, interactions.offsets, np.arange(interactions.n_users), None))
        train = dict(zip(split.train.users.tolist(), lists(split.train), strict=True))
        valid = dict(zip(split.valid.users.tolist(), split.valid.targets.tolist(), strict=True))
        test = dict(zip(split.test.users.tolist(), split.test.targets.tolist(), strict=True))
        for user, sequence in enumerate(whole):
            held = [valid[user], test[user]] if user in test else []
            assert train.get(user, []) + held == sequence
            assert (len(held) == 2) == (len(sequence) >= 3)
        assert (split.train.lengths > 0).all()


@given(ragged, concepts, st.integers(0, 8), st.randoms())
def test_every_view_of_histories_agrees_with_plain_lists(sequences: list[list[int]], concept, h, random) -> None:
    histories = Histories.from_lists(sequences, targets=list(range(len(sequences))))
    assert lists(histories) == sequences
    assert histories.lengths.tolist() == [len(s) for s in sequences]
    rows = [random.randrange(len(sequences)) for _ in range(5)] if sequences else []
    taken = histories.take(rows)
    assert (lists(taken), taken.targets.tolist()) == ([sequences[r] for r in rows], rows)
    assert lists(histories.last(h)) == [s[-h:] if h else [] for s in sequences]
    kept = histories.without(concept)
    assert lists(kept) == [[i for i in s if not concept[i]] for s in sequences]
    assert kept.targets.tolist() == histories.targets.tolist()
    assert histories.touches(concept).tolist() == [any(concept[i] for i in s) for s in sequences]
    assert not kept.touches(concept).any()
    recent = [s[-h:] if h else [] for s in sequences]
    assert histories.padded(h).tolist() == [s + [-1] * (h - len(s)) for s in recent]


def test_a_mask_selects_histories() -> None:
    histories = Histories.from_lists([[1], [], [2, 3]])
    assert lists(histories.take(np.array([True, False, True]))) == [[1], [2, 3]]
    assert lists(histories.take([])) == []
    with pytest.raises(ValueError, match="1 targets"):
        Histories.from_lists([[1], [2]], targets=[1])


def test_the_retain_view_keeps_users_and_drops_the_concept(catalogue: Catalogue) -> None:
    concept = np.isin(np.arange(N), [0, 6])
    kept = catalogue.interactions.without(concept)
    assert kept.user_ids.tolist() == catalogue.interactions.user_ids.tolist()
    assert kept.lengths.tolist() == [3, 2, 0]
    assert not concept[kept.items].any()
    assert len(kept.timestamps) == len(kept)
    assert kept.digest != catalogue.interactions.digest
    unchanged = catalogue.interactions.without(np.zeros(N, bool))
    assert unchanged.digest == catalogue.interactions.digest


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"item_id": ["a", "zz", "yy"]}, "lacks: zz, yy"),
        ({"user_id": ["u", None, "u"]}, "no user_id in row 1"),
        ({"timestamp": [1, 2, None]}, "no timestamp in row 2"),
        ({"timestamp": [1.0, 2.5, 3.0]}, "timestamp"),
        ({"timestamp": ["1", "2", "3"]}, "timestamp"),
        ({"rating": ["good", "bad", "ugly"]}, "rating"),
        ({"timestamp": None}, "no column timestamp"),
        (
            {"user_id": ["u", "v", "u"], "item_id": ["a", "a", "a"], "timestamp": [1, 1, 1]},
            "user u, item a, timestamp 1",
        ),
    ],
)
def test_broken_interactions_are_refused(write_data: Write, columns: dict[str, object], says: str) -> None:
    good = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "timestamp": [1, 1, 1], "rating": [1, 2, 3]}
    table = pa.table({name: column for name, column in (good | columns).items() if column is not None})
    with pytest.raises(DataError, match=says) as error:
        load_catalogue(write_data(interactions=table))
    assert error.value.remedy
    assert "interactions.parquet" in error.value.message


def test_ratings_may_be_integers_and_may_be_absent(write_data: Write) -> None:
    rated = pa.table({"user_id": [1, 1], "item_id": ["a", "b"], "timestamp": [1, 1], "rating": [1, 5]})
    digests = {load_catalogue(write_data(interactions=t)).interactions.digest for t in (rated, rated.drop(["rating"]))}
    assert len(digests) == 1


def test_a_missing_directory_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data directory"):
        load_catalogue(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [("amazon_industrial", 8317, 4344, 58492), ("ml-100k", 943, 1682, 100000)],
)
def test_real_data_reads_whole(data_directory: Path, name: str, users: int, items: int, interactions: int) -> None:
    read = load_catalogue(data_directory / name)
    assert (read.interactions.n_users, len(read.items), len(read.interactions)) == (users, items, interactions)
    split = read.interactions.split()
    assert len(split.train.items) + 2 * len(split.test) == interactions


def test_the_retain_view_of_a_split_never_moves_a_held_out_target_into_training() -> None:
    """Dropping a concept after the split: nothing of it is left, and what was held out stays held out."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 8, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(0, 12, offsets[-1]).astype(np.int32)
    whole = Interactions(
        np.array([f"u{i}" for i in range(60)], dtype=object), offsets, items, np.arange(offsets[-1]), "digest"
    )
    concept = np.zeros(12, bool)
    concept[[1, 4, 7]] = True
    before, after = whole.split(), whole.split().without(concept)
    assert not concept[after.train.items].any()
    assert (after.train.lengths > 0).all()
    for part, kept in ((before.valid, after.valid), (before.test, after.test)):
        assert not concept[kept.items].any()
        assert not concept[kept.targets].any()
        assert set(kept.users) == set(part.users[~concept[part.targets]])
        assert (kept.targets == part.targets[np.isin(part.users, kept.users)]).all()
    trained = {int(u): int(n) for u, n in zip(after.train.users, after.train.lengths, strict=True)}
    for user, sequence in zip(
        before.train.users, np.split(before.train.items, before.train.offsets[1:-1]), strict=True
    ):
        assert trained.get(int(user), 0) == int((~concept[sequence]).sum())
