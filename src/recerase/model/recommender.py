"""What a generative recommender is to the rest of the package: read histories, then walk a tree of codes.

The one decision here: decoding, exact mass and erasing losses all walk a *tree* of next codes after one history. So a
model offers `start` (read the history once) and `advance` (go to Q nodes, each the child of an earlier node). The
history's keys and values are computed once a user and shared by all nodes; nothing of it is copied or reordered for a
beam.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError, UsageError
from recerase.model.prompt import Prompt
from recerase.model.tree import State
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import IntArray

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


class Recommender(ABC):
    """A transformers model together with how SIDs are spelled in its vocabulary."""

    kind: Kind

    def __init__(
        self,
        module: nn.Module,
        schema: SidSchema,
        window: int,
        prompt: Prompt | None = None,
        per_level: bool = False,
    ) -> None:
        rows = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if rows < schema.vocabulary:
            raise CheckpointError(
                f"The model has {rows} vocabulary rows, the SID schema needs {schema.vocabulary}.",
                "The checkpoint and the SID table do not belong together; use the table the model was trained with.",
            )
        read, row = ("bos", schema.bos) if self.kind == "causal" else ("eos", schema.eos)
        if prompt is None and row < 0:
            raise CheckpointError(
                f"The SID schema names no {read} token, which a {self.kind} model reads.",
                "Name its vocabulary row in sid_schema.json.",
            )
        if prompt is not None and not (prompt.empty and 0 <= min(prompt.rows) <= max(prompt.rows) < rows):
            raise CheckpointError(
                f"The prompt names vocabulary rows up to {max(prompt.rows, default=-1)}, the model has {rows}.",
                "Prompt, tokenizer and weights do not belong together; use those of one training.",
            )
        self.module, self.schema, self.window, self.prompt = module, schema, window, prompt
        self.per_level = per_level
        """Whether the model has a softmax a level, over the rows that the schema names there, and not one over all rows."""
        self._pad = max(schema.pad, 0)  # what stands there is masked

    def around(self, module: nn.Module) -> Recommender:
        """The same recommender with the weights of another module of its architecture: how SIDs are spelled stays."""
        return wrap(module, self.schema, self.window, self.prompt, self.per_level)

    @property
    def level_rows(self) -> tuple[Tensor, ...]:
        """A level: int64 [K] vocabulary rows of its codes, those the vocabulary lacks left out."""
        return tuple(torch.from_numpy(rows[rows >= 0]).to(self.device) for rows in self.schema.rows)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings [B, T, D] of tokens [B, T], so that a caller may put soft tokens among them."""
        embedded: Tensor = self.module.get_input_embeddings()(tokens)  # type: ignore[operator]
        return embedded

    def tokens(self, histories: Histories, table: SidTable, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Vocabulary rows [B, T] of the last `window` items that can be read, right-padded, and their lengths [B].

        Without a prompt, causal: bos, then the SIDs; seq2seq: the SIDs, then eos; a SID of fewer than L codes is followed by eos
        at once. With one, what it says stands around and between the codes.
        """
        tokens, lengths, _ = self.placed(histories, table, window)
        return tokens, lengths

    def placed(
        self, histories: Histories, table: SidTable, window: int | None = None
    ) -> tuple[Tensor, Tensor, tuple[IntArray, IntArray]]:
        """`tokens`, and the items int [B, H] that were read (-1: none) with the places int64 [B, H, L] of their codes.

        A place is a column of the tokens, -1 where an item has no code of that level.
        """
        window = window or self.window
        readable = histories.without(~table.readable)
        counts = np.minimum(readable.lengths, window)
        items = readable.padded(max(1, int(counts.max(initial=0))))  # [B, H]
        there = (items >= 0)[..., None]
        if self.prompt is not None:
            codes = np.where(there & (table.codes[items] >= 0), table.rows()[items], -1)
            tokens, lengths, places = self.prompt.spell(codes, self._pad)
        else:
            tokens, lengths, places = self._bare(np.where(there, table.rows()[items], -1))
            places = np.where(there & (table.codes[items] >= 0), places, -1)
        device = self.device
        return torch.from_numpy(tokens).to(device), torch.from_numpy(lengths).to(device), (items, places)

    def _bare(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Tokens [B, T], lengths [B] and places [B, H, L] of `rows` [B, H, L] (-1: none), with nothing between them."""
        causal = self.kind == "causal"
        flat = rows.reshape(len(rows), -1)
        kept = flat >= 0
        lengths = np.count_nonzero(kept, axis=1) + 1
        tokens = np.full((len(rows), int(lengths.max(initial=1))), self._pad, np.int64)
        if causal:
            tokens[:, 0] = self.schema.bos
        else:
            tokens[np.arange(len(rows)), lengths - 1] = self.schema.eos
        places = np.where(kept, np.cumsum(kept, 1) - 1 + causal, -1)
        row, column = np.nonzero(kept)
        tokens[row, places[row, column]] = flat[row, column]
        return tokens, lengths, places.reshape(rows.shape)

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


def wrap(
    module: nn.Module, schema: SidSchema, window: int, prompt: Prompt | None = None, per_level: bool = False
) -> Recommender:
    """The recommender around a loaded transformers model, by its architecture.

    `per_level`: its output head is one head a level, stacked, each with a softmax of its own.

    Raises:
        CheckpointError: an architecture that is not supported, or something in it that is not.
    """
    kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    module.eval()
    if kind == "t5":
        from recerase.model.seq2seq import Seq2Seq

        return Seq2Seq(module, schema, window, prompt, per_level)
    if kind == "genrec-tiger" and not per_level:
        from recerase.model.genrec import GenrecTiger

        return GenrecTiger(module, schema, window, prompt)
    from recerase.model.causal import FAMILIES, Causal

    if kind in FAMILIES and not per_level:
        return Causal(module, schema, window, prompt)
    raise CheckpointError(
        f"A model of type {kind!r} {'with a softmax a level ' * per_level}is not supported.",
        f"Supported are {', '.join(FAMILIES)} (causal) and t5 (seq2seq) checkpoints.",
    )
