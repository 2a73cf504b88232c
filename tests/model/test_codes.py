"""What is said of single codes, against probabilities that are known another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.catalog.interactions import Histories
from recerase.model.codes import forced_codes
from recerase.model.mass import forced_log_probs
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable


def test_codes_add_up_to_the_item(model: Recommender, table: SidTable, histories: Histories) -> None:
    items = np.arange(len(histories)) % len(table)
    found = forced_codes(model, table, histories, items, batch=3)
    known = table.present[items]
    assert known.any()
    truth = forced_log_probs(model, table, histories, items)
    np.testing.assert_allclose(np.nansum(found.log_probs, axis=1)[known], truth[known], rtol=1e-4, atol=1e-5)
    assert np.isnan(found.log_probs[~known]).all()
    np.testing.assert_array_equal(np.isnan(found.log_probs), np.isnan(found.standing))


def test_the_standing_of_the_first_code_is_over_all_codes(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    item = int(np.flatnonzero(table.present)[0])
    found = forced_codes(model, table, histories, np.full(len(histories), item))
    with torch.inference_mode():
        chances = model.start(*model.tokens(histories, table)).log_probs.double().numpy()
    share = np.exp(chances)
    told = np.where(share > 0, chances, 0.0)
    mean = (share * told).sum(1)
    spread = np.sqrt((share * told**2).sum(1) - mean**2)
    own = chances[:, table.rows()[item, 0]]
    np.testing.assert_allclose(found.standing[:, 0], (own - mean) / spread, rtol=1e-3)


def test_other_batches_and_other_orders_say_the_same(model: Recommender, table: SidTable, histories: Histories) -> None:
    items = np.arange(len(histories)) % len(table)
    found = forced_codes(model, table, histories, items)
    order = np.arange(len(histories))[::-1]
    again = forced_codes(model, table, histories.take(order), items[order], batch=2)
    np.testing.assert_allclose(again.log_probs[order], found.log_probs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.standing[order], found.standing, rtol=1e-3, atol=1e-4)


def test_items_are_spelled_by_the_other_table_where_one_is_given(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    a, b = np.flatnonzero(table.present)[:2]
    codes = table.codes.copy()
    codes[[a, b]] = codes[[b, a]]
    swapped = replace(table, codes=codes)
    own = forced_codes(model, table, histories, np.full(len(histories), a))
    other = forced_codes(model, table, histories, np.full(len(histories), b), output=swapped)
    assert own.log_probs == pytest.approx(other.log_probs, nan_ok=True)
