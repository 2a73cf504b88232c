"""What a generative recommender is to the rest of the package: read histories, then walk a tree of codes.

The one decision here: decoding, exact mass and erasing losses all walk a *tree* of next codes after one history. So a
model offers `start` (read the history once) and `advance` (go to Q nodes, each the child of an earlier node). The
history's keys and values are computed once a user and shared by all nodes; nothing of it is copied or reordered for a
beam.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError, UsageError
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

Kind = Literal["causal", "seq2seq"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a recommender made from scratch."""

    kind: Kind = "causal"
    width: int = 128
    layers: int = 3
    """Layers (causal), or layers in each of encoder and decoder (seq2seq)."""
    heads: int = 4
    feed_forward: int = 256
    window: int = 20
    """H, the most recent items that are read."""
    dropout: float = 0.1
    tie: bool = False
    """Share the input embeddings with the output head."""


@dataclass(frozen=True, eq=False)
class State:
    """A model standing at the root (`depth` 0) or at Q nodes of depth `depth` after each of B histories."""

    hidden: Tensor
    """[B, D] at the root, [B, Q, D] at nodes: what the output head reads."""
    head: nn.Module = field(repr=False)
    depth: int
    prompt: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    """A layer: keys and values [B, h, T, d] of the history."""
    prompt_bias: Tensor = field(repr=False)
    """[B, 1, 1, T] 0 where the history has a token, -inf where it is padding."""
    lengths: Tensor = field(repr=False)
    """[B] tokens of the history."""
    ancestors: tuple[tuple[Tensor, Tensor], ...] | None = field(default=None, repr=False)
    """A layer: keys and values [B, h, Q, depth, d] of each node and its ancestors, oldest first."""
    scale: float = 1.0
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def take(self, rows: Tensor) -> State:
        """The state after histories `rows` [b] alone."""
        return State(
            hidden=self.hidden[rows],
            head=self.head,
            depth=self.depth,
            prompt=tuple((k[rows], v[rows]) for k, v in self.prompt),
            prompt_bias=self.prompt_bias[rows],
            lengths=self.lengths[rows],
            ancestors=None if self.ancestors is None else tuple((k[rows], v[rows]) for k, v in self.ancestors),
            scale=self.scale,
        )

    @property
    def log_probs(self) -> Tensor:
        """Exact log-softmax over the whole vocabulary, float32: [B, V] at the root, [B, Q, V] at nodes."""
        if "log_probs" not in self._cache:
            self._cache["log_probs"] = torch.log_softmax(self.logits.float(), -1)
        return self._cache["log_probs"]

    @property
    def logits(self) -> Tensor:
        """What the output head says, before any softmax; same shape as `log_probs`."""
        logits: Tensor = self.head(self.hidden * self.scale)
        return logits


class Recommender(ABC):
    """A transformers model together with how SIDs are spelled in its vocabulary."""

    kind: Kind

    def __init__(self, module: nn.Module, schema: SidSchema, window: int) -> None:
        rows = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if rows < schema.vocabulary:
            raise CheckpointError(
                f"The model has {rows} vocabulary rows, the SID schema needs {schema.vocabulary}.",
                "The checkpoint and the SID table do not belong together; use the table the model was trained with.",
            )
        self.module, self.schema, self.window = module, schema, window

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings [B, T, D] of tokens [B, T], so that a caller may put soft tokens among them."""
        embedded: Tensor = self.module.get_input_embeddings()(tokens)  # type: ignore[operator]
        return embedded

    def tokens(self, histories: Histories, table: SidTable, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Vocabulary rows [B, T] of the last `window` items that have a SID, right-padded, and their lengths [B].

        Causal: bos, then the SIDs. Seq2seq: the SIDs, then eos.
        """
        window = window or self.window
        readable = histories.without(~table.present)
        counts = np.minimum(readable.lengths, window)
        items = readable.padded(max(1, int(counts.max(initial=0))))  # [B, H]
        rows = np.where(items[..., None] >= 0, table.rows()[items], self.schema.pad).reshape(len(histories), -1)
        lengths = counts * table.levels + 1
        out = np.full((len(histories), int(lengths.max(initial=1))), self.schema.pad, np.int64)
        width = out.shape[1] - 1
        if self.kind == "causal":
            out[:, 0] = self.schema.bos
            out[:, 1:] = rows[:, :width]
        else:
            out[:, :width] = rows[:, :width]
            out[np.arange(len(out)), lengths - 1] = self.schema.eos
        return torch.from_numpy(out).to(self.device), torch.from_numpy(lengths).to(self.device)

    @abstractmethod
    def start(self, tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> State:
        """Read right-padded histories [B, T] of `lengths` [B]; `embeds` [B, T, D] replaces the tokens' embeddings."""

    @abstractmethod
    def advance(self, state: State, rows: Tensor, parents: Tensor | None) -> State:
        """Go to Q nodes a history.

        Args:
            rows: vocabulary rows of the nodes, [B, Q], or [Q] for the same nodes after every history.
            parents: for each node the index of its parent among the state's nodes, [B, Q] or [Q]; None at the root, and
                below it for one child a node, in order.
        Returns:
            the state at the nodes; each sees the history, its own ancestors and itself. Differentiable.
        """

    def parameters_digest(self) -> dict[str, Any]:
        """Name -> shape of every tensor, for reports."""
        return {k: list(v.shape) for k, v in self.module.state_dict().items()}


def gather_ancestors(kv: Tensor, parents: Tensor | None) -> Tensor:
    """Rows of kv [B, h, Q', s, d] at `parents` [Q] or [B, Q] -> [B, h, Q, s, d]; None takes them as they stand."""
    if parents is None:
        return kv
    if parents.dim() == 1:
        return kv.index_select(2, parents)
    index = parents[:, None, :, None, None].expand(-1, kv.shape[1], -1, kv.shape[3], kv.shape[4])
    return kv.gather(2, index)


def tree_attention(
    q: Tensor, prompt: tuple[Tensor, Tensor], prompt_bias: Tensor, own: tuple[Tensor, Tensor], own_bias: Tensor | None
) -> Tensor:
    """Attention of Q nodes over the history's T keys (shared) and the node's own s keys, one softmax over both.

    Args:
        q: [B, h, Q, d], already scaled.
        prompt: keys and values [B, h, T, d]; prompt_bias broadcasts to [B, h, Q, T].
        own: keys and values [B, h, Q, s, d]; own_bias broadcasts to [B, h, Q, s].
    Returns:
        [B, h, Q, d].
    """
    shared = q @ prompt[0].transpose(-1, -2) + prompt_bias
    mine = (q[..., None, :] * own[0]).sum(-1)
    if own_bias is not None:
        mine = mine + own_bias
    weights = torch.softmax(torch.cat([shared, mine], -1).float(), -1).to(q.dtype)
    t = shared.shape[-1]
    return weights[..., :t] @ prompt[1] + (weights[..., t:, None] * own[1]).sum(-2)


def new_recommender(config: ModelConfig, schema: SidSchema, seed: int = 0) -> Recommender:
    """A recommender with fresh weights drawn from `seed`; no global random state is touched.

    Raises:
        UsageError: width is not a multiple of heads.
    """
    if config.width % config.heads:
        raise UsageError(
            f"A width of {config.width} cannot be split over {config.heads} heads.",
            "Make --width a multiple of --heads.",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config.kind == "causal":
            from recerase.model.causal import new_causal

            return new_causal(config, schema)
        from recerase.model.seq2seq import new_seq2seq

        return new_seq2seq(config, schema)


def wrap(module: nn.Module, schema: SidSchema, window: int) -> Recommender:
    """The recommender around a loaded transformers model, by its architecture.

    Raises:
        CheckpointError: an architecture that is not supported.
    """
    kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    module.eval()
    if kind == "llama":
        from recerase.model.causal import Causal

        return Causal(module, schema, window)
    if kind == "t5":
        from recerase.model.seq2seq import Seq2Seq

        return Seq2Seq(module, schema, window)
    raise CheckpointError(
        f"A model of type {kind!r} is not supported.", "Supported are llama (causal) and t5 (seq2seq) checkpoints."
    )
