"""U-CAN's figures against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from recerase.audit.ucan_metrics import Said, divergence, fall, mrr, perplexity, shift, ucan_metrics
from recerase.errors import UsageError


def said(rows: Any, targets: Any, codes: int = 2) -> Said:
    with np.errstate(divide="ignore"):
        return Said(np.log(np.asarray(rows, float)), np.asarray(targets), codes)


def ranked(places: list[int], items: int = 20) -> Said:
    """Pairs whose target, item 0, stands at these places."""
    rows = np.empty((len(places), items))
    for b, place in enumerate(places):
        rows[b, np.roll(np.arange(items), 0)] = [0.0, *range(items - 1, 0, -1)]
        rows[b, 0] = items - place - 0.5
    return Said(np.log(rows / rows.sum(1, keepdims=True)), np.zeros(len(places), int), 3)


def test_kl_is_of_before_from_after_and_renormalised() -> None:
    """Half and half against three quarters and one quarter: ln 2 - ln 3 / 2; scaling a row changes nothing."""
    before, after = said([[0.5, 0.5, 0]], [0]), said([[0.3, 0.1, 0]], [0])
    wanted = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(before, after) == pytest.approx(wanted)
    assert divergence(before, before) == pytest.approx(0)
    other = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert divergence(after, before) == pytest.approx(other)


def test_an_item_that_one_of_them_cannot_say_has_no_part_in_kl() -> None:
    before, after = said([[0.25, 0.25, 0.5]], [0]), said([[0.4, 0.4, 0]], [0])
    assert divergence(before, after) == pytest.approx(0)


def test_prediction_shift_is_percent_of_first_places() -> None:
    before = said([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1]], [0, 0, 0, 0])
    after = said([[0.4, 0.6], [0.5, 0.4], [0.3, 0.7], [0.9, 0.1]], [0, 0, 0, 0])
    assert shift(before, after) == 25.0


def test_perplexity_is_per_code() -> None:
    """Two targets of p 1/4 and 1/16 with two codes each: mean -log p = 3 ln 2, per code 1.5 ln 2."""
    assert perplexity(said([[0.25, 0.1], [0.1, 0.0625]], [0, 1])) == pytest.approx(2**1.5)


def test_mrr_ends_at_its_cut() -> None:
    assert mrr(np.array([0, 1, 4, 5, 9]), 5).tolist() == [1, 0.5, 0.2, 0, 0]


def test_all_together_by_hand() -> None:
    """Forget: two of four in the first ten, then one; retain: four of four, then three."""
    found = ucan_metrics(ranked([0, 3, 12, 15]), ranked([4, 10, 12, 15]), ranked([0, 1, 6, 9]), ranked([0, 1, 6, 11]))
    assert found["forget.recall@5"] == 0.25
    assert found["forget.recall@10"] == 0.25
    assert found["forget.mrr@10"] == pytest.approx(0.2 / 4)
    assert found["forget.ndcg@5"] == pytest.approx(1 / math.log2(6) / 4)
    assert found["retain.recall@5"] == 0.5
    assert found["retain.recall@10"] == 0.75
    assert found["retain.mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 7) / 4)
    assert found["retain.ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 3) / 4)
    assert found["trade_off@10"] == pytest.approx(50 - 25)
    assert found["perplexity.after"] > found["perplexity.before"]
    assert len(found) == 4 + 12 + 1


def test_nothing_to_lose_is_no_number() -> None:
    assert fall(0, 0) is None
    assert fall(0.2, 0.3) == pytest.approx(-50)
    nowhere = ranked([15, 15])
    assert ucan_metrics(nowhere, nowhere, ranked([0, 0]), ranked([0, 0]))["trade_off@10"] is None


def test_published_trade_offs_do_not_follow_from_published_recalls() -> None:
    """METHODS 3: from the rows of retrain and GA follow the original's recalls; U-CAN's own row then gives another figure."""
    a = np.array([[-0.1999, 0.1131], [-0.2303, 0.1030]])
    forget, retain = 1 / np.linalg.solve(a, [0.1394, -0.0382])
    assert fall(forget, 0.1999) - fall(retain, 0.1131) == pytest.approx(13.94, abs=0.01)  # type: ignore[operator]
    assert abs(fall(forget, 0.2248) - fall(retain, 0.1030) - -4.30) > 1  # type: ignore[operator]


def test_what_cannot_be_compared_is_refused() -> None:
    one, other = ranked([0, 1]), ranked([0, 1, 2])
    with pytest.raises(UsageError, match="not of the same pairs"):
        ucan_metrics(one, other, one, one)
    with pytest.raises(UsageError, match="gives a target no probability"):
        said([[0.0, 1.0]], [0])
    with pytest.raises(UsageError, match="no pairs"):
        said(np.zeros((0, 3)), [])
