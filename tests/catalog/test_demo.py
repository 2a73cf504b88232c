from __future__ import annotations

import numpy as np
import pytest

from recerase.catalog import Catalogue, Histories, parse_concept, preview, text_embeddings
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.interactions import interactions_from_table
from recerase.catalog.items import items_from_table
from recerase.errors import UsageError
from recerase.types import BoolArray, FloatArray, IntArray


@pytest.fixture(scope="module")
def shop() -> Catalogue:
    items_table, interactions_table = demo_catalogue()
    items = items_from_table(items_table)
    return Catalogue(items, interactions_from_table(interactions_table, items))


@pytest.fixture(scope="module")
def vaping(shop: Catalogue) -> BoolArray:
    return parse_concept([DEMO_CONCEPT], shop.items).members


@pytest.fixture(scope="module")
def bigrams(shop: Catalogue) -> FloatArray:
    """[N, N] how often an item of the training sequences is followed by another, popularity breaking ties."""
    train = shop.interactions.split().train
    within = np.ones(len(train.items) - 1, bool)
    within[train.offsets[1:-1] - 1] = False
    n = len(shop.items)
    counts = np.zeros((n, n))
    np.add.at(counts, (train.items[:-1][within], train.items[1:][within]), 1)
    return counts + np.bincount(train.items, minlength=n) / 1e4


def hits(lists: IntArray, test: Histories) -> float:
    return float((lists == test.targets[:, None]).any(axis=1).mean())


def last(test: Histories) -> IntArray:
    return test.items[test.offsets[1:] - 1]


def test_it_has_the_promised_size_and_the_same_content_every_time(shop: Catalogue) -> None:
    lengths = shop.interactions.lengths
    assert (len(shop.items), shop.interactions.n_users) == (1200, 4000)
    assert (lengths.min(), lengths.max()) == (6, 12)
    assert len(set(shop.items.titles)) == 1200
    assert all(shop.items.brands)
    assert all(a.equals(b) for a, b in zip(demo_catalogue(), demo_catalogue(), strict=True))
    assert not demo_catalogue(seed=1)[1].equals(demo_catalogue()[1])


def test_nobody_buys_anything_twice(shop: Catalogue) -> None:
    user = np.repeat(np.arange(shop.interactions.n_users), shop.interactions.lengths)
    assert len(np.unique(np.stack([user, shop.interactions.items]), axis=1).T) == len(shop.interactions)


def test_the_last_item_tells_the_next_far_better_than_popularity(shop: Catalogue, bigrams: FloatArray) -> None:
    test = shop.interactions.split().test
    popular = np.argsort(-bigrams.sum(axis=0))[:10]
    followers = np.argsort(-bigrams[last(test)], axis=1)[:, :10]
    assert hits(np.broadcast_to(popular, (len(test), 10)), test) < 0.05
    assert hits(followers, test) > 0.75


def test_the_concept_is_worth_erasing_and_shows(shop: Catalogue, vaping: BoolArray, bigrams: FloatArray) -> None:
    assert 0.05 < vaping.mean() < 0.08
    assert 0.06 < vaping[shop.interactions.items].mean() < 0.10
    followers = np.argsort(-bigrams[last(shop.interactions.split().test)], axis=1)[:, :10]
    assert vaping[followers].mean() > 0.05, "a recommender that learned the shop is exposed"


def test_the_concept_is_entangled_with_what_stays(shop: Catalogue, vaping: BoolArray, bigrams: FloatArray) -> None:
    counts = np.floor(bigrams)
    away = counts[vaping][:, ~vaping].sum() / counts[vaping].sum()
    assert 0.15 < away < 0.5, "its customers also buy what stays"
    kind = np.array([c[-1] for c in shop.items.categories])
    near = np.isin(kind, ["Lighters", "Diffusers", "Candles"])
    into = counts[near][:, vaping].sum() / counts[near].sum()
    assert into > 0.08, "what stays leads to it"
    brands = np.array(shop.items.brands)
    assert set(brands[vaping]) & set(brands[~vaping])
    words = [set(" ".join(np.array(shop.items.titles)[mask]).split()) for mask in (vaping, near)]
    assert len(words[0] & words[1]) > 10


def test_the_preview_shows_the_neighbours_as_the_border(shop: Catalogue) -> None:
    seen = preview(parse_concept([DEMO_CONCEPT], shop.items), shop, embeddings=text_embeddings(shop.items, dims=64))
    outside = [shop.items.categories[b.row] for b in seen.borderline if not b.inside]
    assert len(outside) == 10
    assert sum("Smoke & Scent" in c for c in outside) >= 8


def test_row_order_and_ids_say_nothing_about_the_concept(vaping: BoolArray) -> None:
    rows = np.flatnonzero(vaping) / len(vaping)
    assert abs(rows.mean() - 0.5) < 0.12
    assert rows.max() - rows.min() > 0.9


@pytest.mark.parametrize(("items", "users"), [(200, 30), (1900, 50)])
def test_other_sizes_are_whole_too(items: int, users: int) -> None:
    read = items_from_table(demo_catalogue(3, items, users)[0])
    assert len(read) == items == len(set(read.titles))
    assert 0 < len(parse_concept([DEMO_CONCEPT], read)) < 0.1 * items
    assert interactions_from_table(demo_catalogue(3, items, users)[1], read).n_users == users


def test_a_shop_too_small_to_have_the_concept_is_refused() -> None:
    for size in ({"n_items": 50}, {"n_users": 0}):
        with pytest.raises(UsageError, match="too small"):
            demo_catalogue(**size)
