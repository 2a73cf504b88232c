"""MMRecUn: who the negatives are, which way each term pulls, and what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recerase.erase import mmrecun
from recerase.erase.examples import examples, nearest_others, neighbours
from recerase.erase.method import EraseRequest
from recerase.erase.methods import METHODS
from recerase.erase.mmrecun import MmRecUnConfig
from recerase.errors import UsageError
from recerase.model.mass import forced_log_probs


def test_the_loss_is_that_of_the_pairs_by_hand(kind: str, ask: Callable[..., EraseRequest]) -> None:
    request, config = ask(kind), MmRecUnConfig(share=0.3, negatives=2)
    found = examples(request.interactions, request.table, request.concept, 5)
    forget, retain = found.forget.take(np.arange(7)), found.retain.take(np.arange(5))
    assert request.embeddings is not None
    inside = neighbours(request.embeddings, request.concept, 2, request.table.present)
    beside = nearest_others(request.embeddings, ~request.concept & request.table.present, 2)

    def y(histories: object, items: np.ndarray) -> np.ndarray:
        return forced_log_probs(request.model, request.table, histories, items).astype(float)  # type: ignore[arg-type]

    lost = [np.log1p(np.exp(y(forget, forget.targets) - y(forget, inside[forget.targets][:, k]))) for k in range(2)]
    kept = [np.log1p(np.exp(y(retain, beside[retain.targets][:, k]) - y(retain, retain.targets))) for k in range(2)]
    with torch.no_grad():
        loss, figures = mmrecun.objective(request, config)(request.model, forget, retain)
    assert float(figures["forget"]) == pytest.approx(np.mean(lost), rel=1e-4)
    assert float(figures["retain"]) == pytest.approx(np.mean(kept), rel=1e-4)
    assert float(loss) == pytest.approx(0.3 * np.mean(lost) + 0.7 * np.mean(kept), rel=1e-4)


def test_what_it_cannot_do_without_is_said_before_a_model_is_loaded(ask: Callable[..., EraseRequest]) -> None:
    request = ask(embeddings=None)
    with pytest.raises(UsageError, match="negatives from the item embeddings"):
        METHODS["mmrecun"].check(request.table, None, None, MmRecUnConfig())
    with pytest.raises(UsageError, match="negatives from the item embeddings"):
        METHODS["mmrecun"].run(request, MmRecUnConfig())
    with pytest.raises(UsageError, match="too few for 99 negatives"):
        METHODS["mmrecun"].run(ask(), MmRecUnConfig(negatives=99))
