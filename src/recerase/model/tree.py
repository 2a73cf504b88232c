"""Where a model stands in the tree of next codes: the state after B histories, and attention from the tree's nodes.

The one decision: nothing is reordered for a beam. The history's keys are computed once a user; the keys of every node ever
stepped to stay where they were put, and a node knows by number which of them are its ancestors. Attention then runs over
the history and all nodes, with everything but the ancestors masked out: cheaper than gathering them, until they are many.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

_DENSE = 128
"""Nodes an ancestor up to which masking all nodes is faster than gathering the ancestors (measured with heads 32 to 64 wide)."""
_ROUND = 16
_SMALL_HEAD = 1 << 20
"""On a processor the rows of an output head that has at most so many weights are rounded up: a product with 1,027 columns takes
1.7 times as long as one with 1,040, which is worth a copy of it."""

KeyValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Own:
    """The rows of a model with a head a level, and so a softmax a level."""

    rows: tuple[Tensor, ...]
    """A depth: int64 [K] the rows of the codes that may come next."""
    vocabulary: int
    """V. The module may have more rows, for what is read and never written."""


@dataclass(frozen=True, eq=False)
class State:
    """A model standing at the root (`depth` 0) or at Q nodes of depth `depth` after each of B histories."""

    hidden: Tensor
    """[B, D] at the root, [B, Q, D] at nodes: what the output head reads."""
    head: nn.Module = field(repr=False)
    depth: int
    prompt: tuple[KeyValues, ...] = field(repr=False)
    """A layer: keys and values [B, h, T, d] of the history."""
    prompt_bias: Tensor | None = field(repr=False)
    """[B, 1, 1, T] 0 where the history has a token, -inf where it is padding; None where nothing is."""
    lengths: Tensor = field(repr=False)
    """[B] tokens of the history."""
    nodes: tuple[KeyValues, ...] | None = field(default=None, repr=False)
    """A layer: keys and values [B, h, n, d] of all nodes stepped to, in the order of the steps."""
    lineage: Tensor | None = field(default=None, repr=False)
    """int64 [Q, s] or [B, Q, s]: where among the n nodes the ancestors of each of the Q stand, oldest first, itself last."""
    scale: float = 1.0
    own: Own | None = field(default=None, repr=False)
    """Among which rows the model chooses at each depth; None: among all."""
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def take(self, rows: Tensor) -> State:
        """The state after histories `rows` [b] alone."""
        lineage = self.lineage
        return State(
            hidden=self.hidden[rows],
            head=self.head,
            depth=self.depth,
            prompt=tuple((k[rows], v[rows]) for k, v in self.prompt),
            prompt_bias=None if self.prompt_bias is None else self.prompt_bias[rows],
            lengths=self.lengths[rows],
            nodes=None if self.nodes is None else tuple((k[rows], v[rows]) for k, v in self.nodes),
            lineage=lineage[rows] if lineage is not None and lineage.dim() == 3 else lineage,
            scale=self.scale,
            own=self.own,
        )

    @property
    def log_probs(self) -> Tensor:
        """Exact log-softmax over the whole vocabulary, float32: [B, V] at the root, [B, Q, V] at nodes.

        Of a model with a softmax a level it is over the codes of the next level, and -inf everywhere else.
        """
        if "log_probs" not in self._cache:
            rows = self._rows
            if self.own is None:
                found = torch.log_softmax(self._scores(rows).float(), -1)[..., :rows]
            else:
                found = self._spread(torch.log_softmax(self._own_scores.float(), -1))
            self._cache["log_probs"] = found
        return self._cache["log_probs"]

    @property
    def logits(self) -> Tensor:
        """What the output head says, before any softmax; same shape as `log_probs`, and -inf where that always is."""
        if self.own is not None:
            return self._spread(self._own_scores)
        rows = self._rows
        return self._scores(rows)[..., :rows]

    @property
    def _rows(self) -> int:
        """V."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        return int(weight.shape[0])

    def _scores(self, rows: int) -> Tensor:
        """The head's output, with columns of -inf after the vocabulary's own where they make it faster."""
        hidden = self.hidden * self.scale if self.scale != 1.0 else self.hidden
        more, weight = -rows % _ROUND, self.head.weight
        small = isinstance(self.head, nn.Linear) and weight.device.type == "cpu" and weight.numel() <= _SMALL_HEAD
        if not more or not small or torch.is_grad_enabled() or getattr(self.head, "bias", None) is not None:
            scores: Tensor = self.head(hidden)
            return scores
        assert isinstance(weight, Tensor)
        scores = linear(hidden, pad(weight, (0, 0, 0, more)))
        scores[..., rows:] = float("-inf")
        return scores

    @property
    def _own_scores(self) -> Tensor:
        """[..., K] the head's output for the codes of the next level alone."""
        assert self.own is not None
        hidden = self.hidden * self.scale if self.scale != 1.0 else self.hidden
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        return linear(hidden, weight.index_select(0, self.own.rows[self.depth]))

    def _spread(self, found: Tensor) -> Tensor:
        """[..., V] with `found` [..., K] at the rows of the next level's codes, and -inf elsewhere."""
        assert self.own is not None
        whole = found.new_full((*found.shape[:-1], self.own.vocabulary), float("-inf"))
        return whole.index_copy(-1, self.own.rows[self.depth], found)

    def forget(self) -> None:
        """Let go of `log_probs`; they are computed again when asked for."""
        self._cache.clear()

    def descend(self, parents: Tensor | None, count: int) -> Descent:
        """Where `count` nodes that are stepped to from here will stand; for `parents` see `Recommender.advance`."""
        known = 0 if self.nodes is None else self.nodes[0][0].shape[2]
        above, kept = self.lineage, None
        if above is not None and parents is not None:
            if parents.dim() == 1:
                above = above.index_select(-2, parents)
            else:
                flat = above.dim() == 2
                above = above[parents] if flat else above.gather(1, parents[..., None].expand(-1, -1, above.shape[2]))
            if above.dim() == 2 and not torch.is_grad_enabled():  # nobody looks at the others again
                kept, above = torch.unique(above, return_inverse=True)
                known = len(kept)
        own = torch.arange(known, known + count, device=self.lengths.device)[:, None]
        lineage = own if above is None else torch.cat([above, own.expand(*above.shape[:-1], 1)], -1)
        return Descent(lineage, kept)

    def joined(self, layer: int, keys: Tensor, values: Tensor, kept: Tensor | None) -> KeyValues:
        """The nodes of a layer that are `kept` (None: all), with the new ones [B, h, Q, d] after them."""
        if self.nodes is None:
            return keys, values
        k, v = (x if kept is None else x.index_select(2, kept) for x in self.nodes[layer])
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)


@dataclass(frozen=True, eq=False)
class Descent:
    """Nodes about to be stepped to."""

    lineage: Tensor
    """As in `State`, among the nodes that are kept and, after them, the new ones."""
    kept: Tensor | None
    """int64 [n'] which of the nodes known before are kept; None: all."""


@dataclass(frozen=True, eq=False)
class Kin:
    """Which of n nodes each of Q nodes may look at: its lineage. Made once a step, used in every layer."""

    lineage: Tensor
    bias: Tensor | None
    """[(B or 1), (h or 1), Q, T + n] to be added to the scores of history and nodes; None: kin are gathered instead."""
    prompt_bias: Tensor | None
    own_bias: Tensor | None

    @classmethod
    def of(
        cls,
        lineage: Tensor,
        nodes: KeyValues,
        prompt_bias: Tensor | None = None,
        width: int = 0,
        own_bias: Tensor | None = None,
    ) -> Kin:
        """The kin of a `lineage` among `nodes`, beside `width` (T) keys of the history that `prompt_bias` is for.

        `own_bias` [1, h, 1, s] is added to the scores of kin, by distance.
        """
        keys, wide = nodes[0], lineage[None, None] if lineage.dim() == 2 else lineage[:, None]  # [(B or 1), 1, Q, s]
        if keys.shape[2] > _DENSE * lineage.shape[-1]:
            return cls(lineage, None, prompt_bias, own_bias)
        value = keys.new_zeros(1, 1, 1, lineage.shape[-1]) if own_bias is None else own_bias.to(keys.dtype)
        shape = (wide.shape[0], value.shape[1], wide.shape[2], keys.shape[2])
        bias = keys.new_full(shape, float("-inf")).scatter(3, wide.expand(*shape[:3], -1), value.expand(*shape[:3], -1))
        if width:
            before = keys.new_zeros(1, 1, 1, width) if prompt_bias is None else prompt_bias
            rows = max(shape[0], before.shape[0])
            whole = (rows, *shape[1:3])
            bias = torch.cat([before.expand(*whole, -1), bias.expand(*whole, -1)], 3)
        return cls(lineage, bias, prompt_bias, own_bias)

    def gathered(self, x: Tensor) -> Tensor:
        """[B, h, n, d] -> [B, h, Q, s, d]."""
        if self.lineage.dim() == 2:
            return x.index_select(2, self.lineage.flatten()).unflatten(2, self.lineage.shape)
        index = self.lineage.flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, index).unflatten(2, self.lineage.shape[1:])


def tree_attention(q: Tensor, prompt: KeyValues | None, nodes: KeyValues, kin: Kin, scale: float) -> Tensor:
    """Attention of Q nodes over the history's T keys (shared) and those of their kin, one softmax over both.

    Args:
        q: [B, h, Q, d]; products are multiplied by `scale`.
        prompt: keys and values [B, h, T, d]; None: kin alone.
        nodes: keys and values [B, h, n, d].
    Returns:
        [B, h, Q, d].
    """
    if kin.bias is not None:
        keys, values = nodes if prompt is None else (torch.cat([a, b], 2) for a, b in zip(prompt, nodes, strict=True))
        return scaled_dot_product_attention(q, keys, values, attn_mask=kin.bias, scale=scale)
    own_keys, own_values = kin.gathered(nodes[0]), kin.gathered(nodes[1])
    scores = (q[..., None, :] * own_keys).sum(-1) * scale
    if kin.own_bias is not None:
        scores = scores + kin.own_bias
    if prompt is None:
        weights = torch.softmax(scores.float(), -1).to(q.dtype)
        return (weights[..., None] * own_values).sum(-2)
    shared = q @ prompt[0].transpose(-1, -2) * scale
    if kin.prompt_bias is not None:
        shared = shared + kin.prompt_bias
    weights = torch.softmax(torch.cat([shared, scores], -1).float(), -1).to(q.dtype)
    t = shared.shape[-1]
    return weights[..., :t] @ prompt[1] + (weights[..., t:, None] * own_values).sum(-2)


def padding_bias(lengths: Tensor, width: int, dtype: torch.dtype) -> Tensor | None:
    """[B, 1, 1, T] 0 for the first `lengths` [B] tokens and -inf after them; None where all T count."""
    if int(lengths.min()) == width:
        return None
    valid = torch.arange(width, device=lengths.device) < lengths[:, None]
    bias = torch.zeros(valid.shape, dtype=dtype, device=lengths.device).masked_fill(~valid, float("-inf"))
    return bias[:, None, None]
