"""A stand-in for genrec's Tiger, from what its code does (models/tiger.py, modules/), and directories as its trainer leaves them.

It computes one padded batch the slow way, with its parameter names, masks and order of operations, so that logits of two sets of
weights can be compared bit for bit, and our own computation with it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.layouts import foreign_fixtures as fixtures
from torch import Tensor, nn
from torch.nn import functional

LEVELS, K, USERS, WINDOW = 3, 32, 7, 6


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def bucket(relative: Tensor) -> Tensor:
    """Key's place minus query's -> one of 32 buckets, the second half for keys that stand later."""
    before = -relative
    size = before.abs()
    logarithm = torch.log(size.float() / 8 + 1e-6) / math.log(128 / 8) * 8
    big = 8 + logarithm.long().clamp(max=7)
    return torch.where(size < 8, size, big) + (before < 0).long() * 16


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.q = nn.Linear(width, width, bias=False)
        if cross:
            self.k, self.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        else:
            self.kv = nn.Linear(width, 2 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        if not cross:
            self.rel_bias = nn.Embedding(heads * 32, 1)

    def forward(self, x: Tensor, other: Tensor, added: Tensor | None, padded: Tensor | None) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(len(y), y.shape[1], self.heads, -1).transpose(1, 2)

        keys, values = (self.k(other), self.v(other)) if self.cross else self.kv(x).chunk(2, -1)
        q, keys, values = split(self.q(x)), split(keys), split(values)
        scores = q @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if not self.cross:
            at = torch.arange(x.shape[1])
            index = bucket(at[None, :] - at[:, None]) + 32 * torch.arange(self.heads)[:, None, None]
            scores = scores + self.rel_bias(index)[..., 0]
        if padded is not None:
            scores = scores.masked_fill(padded[:, None, None], -1e9)
        if added is not None:
            scores = scores + added
        return self.o((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))


class Wrapped(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, cross: bool) -> None:
        super().__init__()
        self.self_attn, self.norm1 = Wrapped(Attention(width, heads, False)), Norm(width)
        if cross:
            self.cross_attn, self.norm_cross = Wrapped(Attention(width, heads, True)), Norm(width)
        self.ff, self.norm2 = FeedForward(width, inner), Norm(width)

    def forward(self, x: Tensor, read: Tensor | None, added: Tensor | None, padded: Tensor | None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn.attn(normed, normed, added, padded if read is None else None)
        if read is not None:
            x = x + self.cross_attn.attn(self.norm_cross(x), read, None, padded)
        return x + self.ff.wo(functional.relu(self.ff.wi(self.norm2(x))))


class Stack(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)


class Tables(nn.Module):
    def __init__(self, rows: int, width: int, padding: int | None = None) -> None:
        super().__init__()
        self.emb = nn.Embedding(rows, width, padding_idx=padding)


class Tiger(nn.Module):
    """`n_layers` of both sides together, as genrec counts them."""

    def __init__(
        self, width: int = 16, inner: int = 24, heads: int = 3, n_layers: int = 4, levels: int = LEVELS, codes: int = K
    ) -> None:
        super().__init__()
        self.codes, rows = codes, levels * codes + 1
        self.bos_embedding = nn.Parameter(torch.randn(width))
        self.norm, self.norm_context = Norm(width), Norm(width)
        self.sem_id_embedding, self.user_id_embedding = Tables(rows, width, rows - 1), Tables(USERS, width)
        self.pos_embedding, self.decoder_pos_embedding = (
            nn.Embedding(WINDOW * levels, width),
            nn.Embedding(levels, width),
        )
        self.in_proj, self.in_proj_context = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.transformer = nn.Module()
        self.transformer.encoder = Stack([Block(inner, heads, 20, False) for _ in range(n_layers // 2)])
        self.transformer.decoder = Stack([Block(inner, heads, 20, True) for _ in range(n_layers // 2)])
        self.out_proj, self.output_head = nn.Linear(inner, width, bias=False), nn.Linear(inner, rows, bias=False)

    def forward(self, user: Tensor, ids: Tensor, types: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Logits [B, n + 1, rows] of histories ids, types, mask [B, T] and the first n codes of targets [B, n]."""
        users = self.user_id_embedding.emb(user % USERS)[:, None]
        items = self.sem_id_embedding.emb(types * self.codes + ids)
        padded = torch.cat([torch.zeros(len(ids), 1, dtype=torch.bool), mask == 0], 1)
        read = self.in_proj_context(self.norm_context(torch.cat([users, items], 1)))
        for layer in self.transformer.encoder.layers:
            read = layer(read, None, None, padded)
        codes = self.sem_id_embedding.emb(torch.arange(target.shape[1]) * self.codes + target)
        out = self.in_proj(self.norm(torch.cat([self.bos_embedding.repeat(len(ids), 1, 1), codes], 1)))
        causal = torch.full((out.shape[1],) * 2, float("-inf")).triu(1)
        for layer in self.transformer.decoder.layers:
            out = layer(out, read, causal, padded)
        return self.output_head(out)


def collated(histories: list[list[list[int]]], codes: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """ids, token types and mask [B, T] as its `pad_collate` makes them: on the right, filled with the padding id."""
    flat = [[code for sid in history for code in sid] for history in histories]
    width = max(len(row) for row in flat)
    ids = torch.tensor([row + [codes * LEVELS] * (width - len(row)) for row in flat]).reshape(len(flat), width)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in flat]).reshape(len(flat), width)
    return ids, (torch.arange(width) % 3 * mask), mask


def tiger(seed: int = 0, head: float = 2.0, **shape: Any) -> Tiger:
    """One with weights so large that every token and place matters; `head` scales what it says."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Tiger(**shape)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.uniform_(0.5, 1.5)
                elif name == "output_head.weight":
                    weight.mul_(head)
                elif weight.dim() == 2 and "emb" not in name and "rel_bias" not in name:
                    weight.mul_(2.0)
    return model.eval()


def trained(model: Tiger, steps: int = 2) -> dict[str, Any]:
    """What its `save_checkpoint` saves, after some steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    ids, types, mask = collated([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9]]])
    for _ in range(steps):
        out = model(torch.tensor([1, 2]), ids, types, mask, torch.tensor([[1, 2, 3], [4, 5, 6]]))
        optimizer.zero_grad()
        out.logsumexp(-1).sum().backward()
        optimizer.step()
        scheduler.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return {"epoch": 49, **{name: dict(state) for name, state in states.items()}}


def sids() -> np.ndarray:
    return fixtures.codes(LEVELS, 9)


def genrec(out: Path, *, wrapped: str = "", table: bool = True, **shape: Any) -> Path:
    """A directory with a checkpoint and, unlike genrec's own, the exported table; `wrapped` stands before every name."""
    out.mkdir(parents=True)
    state = trained(tiger(head=0.1, **shape))
    state["model"] = {wrapped + name: tensor for name, tensor in state["model"].items()}
    torch.save(state, out / "checkpoint_final.pt")
    if table:
        rows = sids()
        (out / "sids.json").write_text(json.dumps({str(item): rows[item].tolist() for item in range(len(rows))}))
    (out / "tiger.gin").write_text("train.num_heads=3\n")
    return out
