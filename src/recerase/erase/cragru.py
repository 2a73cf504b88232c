"""CRAGRU: what is to be forgotten never reaches the model, for it is dropped where histories are retrieved.

The one decision: the filter is part of the checkpoint (retrieval_filter.json, read by every recerase command), so an audit reads
histories as they would be served. No weight changes. A client that reads the weights with plain transformers and sends whole
histories gets the original, and the audit measures that too: its replay reads with the table from before, which drops nothing.
Left out: the base recommender whose candidates an LLM ranks, and the retrieval by preference, diversity or attention of what remains
to be read; here the model reads the last items of its window, as it was trained to.
Source: Zhang et al. 2025, arXiv 2511.05494 (abstract and project page were read, its text was not).
"""

from __future__ import annotations

from dataclasses import dataclass

from recerase.erase.method import Erased, EraseRequest
from recerase.erase.precision import student


@dataclass(frozen=True)
class CragruConfig:
    """`cragru` has no settings."""


def erase(request: EraseRequest, config: CragruConfig) -> Erased:
    """The same weights, with the concept out of the decoding trie and out of every history that is read."""
    table = request.table.unlisted(request.concept).filtered(request.concept)
    return Erased(student(request.model), table, {"moved_items": 0.0, "seconds": 0.0})
