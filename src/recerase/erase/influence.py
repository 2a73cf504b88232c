"""The influence encoder of UnlearnRec: from the graph of what is to be forgotten to new rows of the codes in it.

Nodes are the vocabulary rows of codes. Edges are what a request is made of: codes that follow each other in the SID of one of its
items (the sub-trie), and codes of one level of an item and of those in a history that leads to it (co-occurrence). With A the
adjacency, S = D^-1/2 A D^-1/2, E the rows and per node a learnt vector H0 and weight w:
    H = mean over hops n of S^n H0,   E_w = mean over n of S^n (w E),   E' = E + MLP(H - E_w).
The one decision: no part has a bias, so a code that no edge touches gets nothing added and keeps its row bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.errors import EraseError
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import IntArray

_SMALL = 0.1
"""Gain of the MLP at the start: nearly nothing is added."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """The codes of a table as nodes of a graph."""

    rows: IntArray
    """int64 [C] vocabulary row of each node, ascending."""
    of_items: IntArray
    """int64 [N, L] node of each code of an item; -1 for an item without a SID."""

    @classmethod
    def of(cls, table: SidTable) -> Nodes:
        """The nodes of a table whose SIDs have one length."""
        rows = table.rows()
        known = np.unique(np.concatenate([level[level >= 0] for level in table.schema.rows]))
        return cls(known.astype(np.int64), np.where(rows >= 0, np.searchsorted(known, rows), -1))


def request_graph(nodes: Nodes, items: IntArray, pairs: Histories, drop: float, rng: np.random.Generator) -> Tensor:
    """S of a request, sparse [C, C]: its `items`, and the `pairs` of histories and one of them that are to be forgotten.

    A share `drop` of the edges is left out; with 0 nothing is drawn.
    """
    sids = nodes.of_items[items]  # [M, L]
    ends = [np.stack([sids[:, :-1].ravel(), sids[:, 1:].ravel()])]
    read, target = nodes.of_items[pairs.items], nodes.of_items[np.repeat(pairs.targets, pairs.lengths)]  # [n, L] both
    seen = read[:, 0] >= 0
    ends.append(np.stack([read[seen].ravel(), target[seen].ravel()]))
    edges = np.concatenate(ends, 1)
    if drop:
        edges = edges[:, rng.random(edges.shape[1]) >= drop]
    both = np.concatenate([edges, edges[::-1]], 1)
    size = len(nodes.rows)
    degree = np.bincount(both[0], minlength=size).astype(np.float64)
    weight = 1 / np.sqrt(degree[both[0]] * degree[both[1]])
    values = torch.from_numpy(weight).float()
    return torch.sparse_coo_tensor(
        torch.from_numpy(both.copy()), values, (size, size), check_invariants=True
    ).coalesce()


def row_tensors(model: Recommender) -> dict[str, nn.Parameter]:
    """The tensors with a row a vocabulary entry that may change, by name: embeddings, and the head where it is not tied to them.

    Raises:
        EraseError: none may.
    """
    whole: Any = model.module
    parts = [whole.get_input_embeddings(), whole.get_output_embeddings()]
    if model.kind == "seq2seq":
        parts += [getattr(getattr(whole, side, None), "embed_tokens", None) for side in ("encoder", "decoder")]
    own = {id(part.weight) for part in parts if part is not None}
    found = {name: p for name, p in whole.named_parameters() if id(p) in own and p.requires_grad}
    if not found:
        raise EraseError(
            "UnlearnRec changes the rows of codes, and none of this model's may change.",
            "Use --method npo, or an adapter with modules_to_save.",
        )
    return found


class InfluenceEncoder(nn.Module):
    """What is learnt: per row tensor H0 [C, D], w [C, 1] and an MLP D -> D -> D."""

    def __init__(self, widths: Mapping[str, int], nodes: int, hops: int, seed: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.names, self.hops = list(widths), hops
        self.estimates = nn.ParameterList(
            nn.Parameter(0.01 * torch.randn(nodes, width, generator=drawn)) for width in widths.values()
        )
        self.weights = nn.ParameterList(nn.Parameter(torch.full((nodes, 1), 0.01)) for _ in widths)
        self.mixers = nn.ModuleList(_mixer(width, drawn) for width in widths.values())

    def forward(self, graph: Tensor, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """New rows [C, D] a tensor from S [C, C] and the old rows, and H [C, D] a tensor."""
        new, estimates = {}, {}
        for name, start, weight, mix in zip(self.names, self.estimates, self.weights, self.mixers, strict=True):
            held = self._spread(graph, start)
            new[name] = rows[name] + mix(held - self._spread(graph, weight * rows[name]))
            estimates[name] = held
        return new, estimates

    def _spread(self, graph: Tensor, values: Tensor) -> Tensor:
        """The mean of S^n of values [C, D] over n from 1 to `hops`."""
        total = torch.zeros_like(values)
        for _ in range(self.hops):
            values = torch.sparse.mm(graph, values)
            total = total + values
        return total / self.hops


def _mixer(width: int, drawn: torch.Generator) -> nn.Module:
    """The MLP, without biases, of weights so small that it adds little at first."""
    inner, outer = (nn.utils.skip_init(nn.Linear, width, width, bias=False) for _ in range(2))  # drawn below
    for layer in (inner, outer):
        nn.init.xavier_uniform_(layer.weight, gain=_SMALL**0.5, generator=drawn)
    return nn.Sequential(inner, nn.ReLU(), outer)
