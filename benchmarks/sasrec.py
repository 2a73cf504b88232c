"""SASRec (Kang and McAuley 2018): causal self-attention over item embeddings, the usual sequential recommender.

It stands beside the generative recommender as the model a shop would otherwise run. Everything that is not the model
is shared with it: the split, the window, the training pieces drawn anew every epoch, the users, the metrics. Items are
scored by the inner product with their own input embedding, over the whole catalogue, nothing excluded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recerase.catalog.interactions import Histories, Split
from recerase.model.batches import batch_rows, windows
from recerase.types import FloatArray, IntArray

Say = Callable[[str], None]


@dataclass(frozen=True)
class SasRecConfig:
    """Shape and training; a width of 128 over 4,344 items gives the parameters of the generative recommender."""

    loss: Literal["ce", "bce"] = "ce"
    """Full-softmax cross-entropy, or the paper's binary cross-entropy against one drawn negative a position."""
    width: int = 128
    blocks: int = 2
    heads: int = 2
    window: int = 20
    dropout: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch: int = 128
    epochs: int = 60
    validate_every: int = 1
    """Epochs between validations."""
    patience: int = 5
    """Validations without a better NDCG@10 before training stops."""
    bf16: bool = True
    """Forward passes in bfloat16, as the generative recommender is trained; weights and optimiser stay float32."""
    seed: int = 0


class Block(nn.Module):
    """Attention and a two-layer network of the same width, each normalised before and added to its input."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm, self.forward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed_forward = nn.Sequential(
            nn.Linear(d, d), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(d, d), nn.Dropout(config.dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, h, H, d]
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + self.feed_forward(self.forward_norm(x))


class SasRec(nn.Module):
    """Reads right-padded item rows [B, H] (-1 is padding) and returns a state [B, H, D] for every position."""

    def __init__(self, config: SasRecConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(n_items, config.width)
        self.positions = nn.Embedding(config.window, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        # Positions count from the newest item, as with the paper's padding on the left; causal attention of
        # right-padded rows never reaches the padding.
        lengths = (rows >= 0).sum(1, keepdim=True)
        place = torch.arange(rows.shape[1]) + self.config.window - lengths
        x = self.items(rows.clamp(min=0)) * math.sqrt(self.config.width)
        x = x + self.positions(place.clamp(0, self.config.window - 1))
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@dataclass(frozen=True)
class Fitted:
    """A trained SASRec and how it went."""

    model: SasRec
    epochs: int
    best_epoch: int
    best: float
    """NDCG@10 on the validation targets."""
    seconds: float
    """Of processor time: the machine may be shared."""


def fit(config: SasRecConfig, split: Split, n_items: int, say: Say) -> Fitted:
    """Train until validation NDCG@10 (all users) stops rising; the weights of the best epoch are kept."""
    began = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = SasRec(config, n_items)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
        )
        best, best_epoch, weights, stale, epoch = -1.0, 0, model.state_dict(), 0, 0
        while epoch < config.epochs and stale < config.patience:
            loss = _epoch(model, optimizer, split.train, epoch)
            epoch += 1
            if epoch % config.validate_every:
                continue
            ndcg = float(gains(rank(model, split.valid), split.valid.targets)[1].mean())
            say(f"  sasrec {config.loss} epoch {epoch}: loss {loss:.3f}, validation ndcg@10 {ndcg:.4f}")
            stale += 1
            if ndcg > best:
                best, best_epoch, stale = ndcg, epoch, 0
                weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    return Fitted(model.eval(), epoch, best_epoch, best, time.process_time() - began)


def _epoch(model: SasRec, optimizer: torch.optim.Optimizer, sequences: Histories, epoch: int) -> float:
    """One pass over the training pieces; returns the mean loss a position."""
    model.train()
    lost, positions = 0.0, 0
    for rows, negatives in _batches(model, sequences, epoch):
        known = rows[:, 1:] >= 0
        with torch.autocast("cpu", torch.bfloat16, enabled=model.config.bf16):
            loss = _loss(model, rows, negatives, known)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        n = int(known.sum())
        lost, positions = lost + float(loss.detach()) * n, positions + n
    return lost / positions


def _loss(model: SasRec, rows: Tensor, negatives: Tensor, known: Tensor) -> Tensor:
    """Mean loss over the positions [B, H] that have a target."""
    hidden = model(rows[:, :-1].masked_fill(~known, -1))[known]  # [n, D]
    targets = rows[:, 1:][known]
    if model.config.loss == "ce":
        return F.cross_entropy((hidden @ model.items.weight.T).float(), targets)
    wanted = (hidden * model.items(targets)).sum(-1)
    unwanted = (hidden * model.items(negatives[known])).sum(-1)
    return (F.softplus(-wanted) + F.softplus(unwanted)).float().mean()


def _batches(model: SasRec, sequences: Histories, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded pieces [B, H + 1], and for every target a random item that is not in its piece [B, H]."""
    config, n_items = model.config, model.items.num_embeddings
    rng = np.random.default_rng([config.seed, epoch])
    pieces = windows(sequences.take(np.flatnonzero(sequences.lengths >= 2)), config.window + 1, rng)
    for chosen in batch_rows(pieces.lengths, config.batch, rng):
        batch = pieces.take(chosen)
        rows = batch.padded(int(batch.lengths.max()))
        negatives = rng.integers(n_items, size=rows[:, 1:].shape)
        for _ in range(3):  # a clash is rare; three draws leave next to none
            clash = (negatives[:, :, None] == rows[:, None, :]).any(2)
            negatives = np.where(clash, rng.integers(n_items, size=negatives.shape), negatives)
        yield torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(negatives)


def rank(model: SasRec, histories: Histories, k: int = 10, batch: int = 512) -> IntArray:
    """[B, k] the best items of the whole catalogue after each history."""
    model.eval()
    found = []
    with torch.inference_mode():
        for begin in range(0, len(histories), batch):
            part = histories.take(np.arange(begin, min(begin + batch, len(histories))))
            rows = torch.from_numpy(part.padded(model.config.window).astype(np.int64))
            last = (rows >= 0).sum(1) - 1
            hidden = model(rows)[torch.arange(len(rows)), last]
            found.append((hidden @ model.items.weight.T).topk(k, dim=1).indices.numpy())
    return np.concatenate(found)


def gains(lists: IntArray, targets: IntArray) -> tuple[FloatArray, FloatArray]:
    """Hit [B] and discounted gain [B] of the one target in each list [B, k]: their means are recall@k and NDCG@k."""
    hits = lists == targets[:, None]
    return hits.any(1).astype(float), (hits / np.log2(np.arange(2, lists.shape[1] + 2))).sum(1)
