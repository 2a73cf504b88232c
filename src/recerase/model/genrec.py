"""The Tiger of phonism/genrec: its own encoder and decoder, which are no T5, on rows K * level + code and one row for padding.

What it computes is that of genrec/models/tiger.py (`Tiger.forward`, `_encode_context`, `_decode_step`) and modules/transformer.py:
the encoder reads a user's row, then the codes; each layer of either side adds relative positions of its own to self-attention,
counted in both directions (`_relative_position_bucket`); attention is divided by the root of a head's width; nothing is normed at
the end, and absolute positions (`pos_embedding`, `decoder_pos_embedding`) and `out_proj` are stored, and used for nothing.

The one decision: the user is no token of the history. A history begins with the padding row, and where that stands, `start` reads the
row of one user, which no method changes: what is learned there would be learned for that user alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from recerase.model.prompt import Prompt
from recerase.model.recommender import Recommender
from recerase.model.tree import Kin, State, padding_bias, tree_attention
from recerase.sid.schema import SidSchema

MODEL_TYPE = "genrec-tiger"
BUCKETS = 32
"""Relative positions that a head tells apart."""
_FARTHEST = 128


@dataclass(frozen=True)
class TigerConfig:
    """The shape of a Tiger; all of it can be read off its tensors."""

    width: int
    """Of embeddings."""
    inner: int
    """Of encoder and decoder."""
    feed_forward: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    levels: int
    codes: int
    """K."""
    users: int
    """Rows of users."""
    positions: int
    user: int = 0
    """The row that every history begins with."""
    model_type: str = MODEL_TYPE

    def to_dict(self) -> dict[str, Any]:
        """As transformers' configs have it."""
        return asdict(self)


class Tiger(nn.Module):
    """The parameters, under genrec's names; what is computed with them is in `GenrecTiger`."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        self.config, rows = config, config.levels * config.codes + 1
        self.bos_embedding = nn.Parameter(torch.empty(config.width))
        self.norm, self.norm_context = _Norm(config.width), _Norm(config.width)
        self.sem_id_embedding = nn.ModuleDict({"emb": nn.Embedding(rows, config.width, padding_idx=rows - 1)})
        self.user_id_embedding = nn.ModuleDict({"emb": nn.Embedding(config.users, config.width)})
        self.pos_embedding = nn.Embedding(config.positions, config.width)
        self.decoder_pos_embedding = nn.Embedding(config.levels, config.width)
        self.in_proj = nn.Linear(config.width, config.inner, bias=False)
        self.in_proj_context = nn.Linear(config.width, config.inner, bias=False)
        sides = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
        self.transformer = nn.ModuleDict(
            {
                side: nn.ModuleDict({"layers": nn.ModuleList(_Layer(config, side == "decoder") for _ in range(count))})
                for side, count in sides.items()
            }
        )
        self.out_proj = nn.Linear(config.inner, config.width, bias=False)
        self.output_head = nn.Linear(config.inner, rows, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        """Rows of codes, and the padding row."""
        return self.sem_id_embedding["emb"]

    def get_output_embeddings(self) -> nn.Module:
        """The head over the same rows."""
        return self.output_head

    def layers(self, side: str) -> list[Any]:
        """The layers of "encoder" or "decoder"."""
        stack: Any = self.transformer[side]
        return list(stack["layers"])


class _Norm(nn.Module):
    """Root mean square, in float32 whatever the weights are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * normed.to(self.weight.dtype)


class _Attention(nn.Module):
    """q, k, v and o without bias; self-attention keeps k and v in one matrix, and has relative positions."""

    def __init__(self, config: TigerConfig, cross: bool) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.inner
        self.q, self.o = (nn.Linear(inner, inner, bias=False) for _ in range(2))
        if cross:
            self.k, self.v = (nn.Linear(inner, inner, bias=False) for _ in range(2))
        else:
            self.kv = nn.Linear(inner, 2 * inner, bias=False)
            self.rel_bias = nn.Embedding(self.heads * BUCKETS, 1)

    def queries(self, x: Tensor) -> Tensor:
        """[B, n, D] -> [B, h, n, d]."""
        return self._split(self.q(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, n, D] -> keys and values [B, h, n, d]."""
        keys, values = self.kv(x).chunk(2, -1) if hasattr(self, "kv") else (self.k(x), self.v(x))
        return self._split(keys), self._split(values)

    def positions(self, distances: Tensor) -> Tensor:
        """What is added to scores [1, h, ...] for how far before the query a key stands [...]."""
        weight = self.rel_bias.weight.view(self.heads, BUCKETS)
        return weight[:, _bucket(distances)][None]

    def onwards(self, mixed: Tensor) -> Tensor:
        """[B, h, n, d] -> [B, n, D]."""
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Layer(nn.Module):
    """A layer of either side; that of the decoder looks at what the encoder read, too."""

    def __init__(self, config: TigerConfig, cross: bool) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"attn": _Attention(config, False)})
        self.norm1, self.norm2 = _Norm(config.inner), _Norm(config.inner)
        if cross:
            self.cross_attn = nn.ModuleDict({"attn": _Attention(config, True)})
            self.norm_cross = _Norm(config.inner)
        self.ff = nn.ModuleDict(
            {
                "wi": nn.Linear(config.inner, config.feed_forward, bias=False),
                "wo": nn.Linear(config.feed_forward, config.inner, bias=False),
            }
        )

    @property
    def own(self) -> Any:
        """Self-attention."""
        return self.self_attn["attn"]

    @property
    def cross(self) -> Any:
        """Attention to the history."""
        return self.cross_attn["attn"]

    def forward(self, x: Tensor) -> Tensor:
        """The feed-forward part."""
        out: Tensor = x + self.ff["wo"](relu(self.ff["wi"](self.norm2(x))))
        return out


def _bucket(distances: Tensor) -> Tensor:
    """Which of 32 buckets a distance falls into: 16 for keys before the query and at it, 16 for those after it.

    The small number in the logarithm is genrec's, and decides at powers of two.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = distances.abs()
    share = torch.log(far.float() / exact + 1e-6) / math.log(_FARTHEST / exact)
    large = exact + (share * (half - exact)).long().clamp(max=half - exact - 1)
    return torch.where(far < exact, far, large) + half * (distances < 0)


class GenrecTiger(Recommender):
    """`module` is a `Tiger`; a node of depth d stands at decoder position d, its root at 0."""

    kind = "seq2seq"
    module: Tiger

    def __init__(self, module: nn.Module, schema: SidSchema, window: int, prompt: Prompt | None = None) -> None:
        assert isinstance(module, Tiger)
        user = module.config.levels * module.config.codes  # the padding row says where the user stands
        super().__init__(module, schema, window, prompt or Prompt((user,), (), (), (user,)))

    def start(self, tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> State:
        module = self.module
        hidden = self.embed(tokens) if embeds is None else embeds  # [B, T, D]
        weight: Any = module.user_id_embedding["emb"].weight
        user = weight[module.config.user].detach()
        hidden = torch.cat([user.expand(len(hidden), 1, -1), hidden[:, 1:]], 1)
        hidden = module.in_proj_context(module.norm_context(hidden))
        bias = padding_bias(lengths, tokens.shape[1], hidden.dtype)
        at = torch.arange(tokens.shape[1], device=tokens.device)
        distances = at[:, None] - at  # [T, T] how far before the query a key stands
        for layer in module.layers("encoder"):
            normed = layer.norm1(hidden)
            queries, (keys, values) = layer.own.queries(normed), layer.own.keys_values(normed)
            own = layer.own.positions(distances)
            mask = own if bias is None else own + bias
            mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            hidden = layer(hidden + layer.own.onwards(mixed))
        prompt = tuple(layer.cross.keys_values(hidden) for layer in module.layers("decoder"))
        root = State(hidden[:, 0], module.output_head, -1, prompt, bias, lengths)
        first = module.bos_embedding.expand(len(lengths), 1, -1)
        at_root = self._stepped(root, first, None)
        return State(at_root.hidden[:, 0], at_root.head, 0, prompt, bias, lengths, at_root.nodes, at_root.lineage)

    def advance(self, state: State, rows: Tensor, parents: Tensor | None) -> State:
        embedded = self.embed(rows)
        embedded = embedded.expand(len(state.lengths), -1, -1) if rows.dim() == 1 else embedded  # [B, Q, D]
        if state.depth == 0:
            parents = torch.zeros(embedded.shape[1], dtype=torch.int64, device=embedded.device)  # the root, to all
        return self._stepped(state, embedded, parents)

    def _stepped(self, state: State, embedded: Tensor, parents: Tensor | None) -> State:
        """The state at nodes whose embeddings are [B, Q, D]."""
        module = self.module
        hidden = module.in_proj(module.norm(embedded))
        distances = torch.arange(state.depth + 1, -1, -1, device=hidden.device)  # [s] of ancestors, itself last
        to = state.descend(parents, hidden.shape[1])
        nodes = []
        for index, layer in enumerate(module.layers("decoder")):
            normed = layer.norm1(hidden)
            keys, values = layer.own.keys_values(normed)
            nodes.append(state.joined(index, keys, values, to.kept))
            kin = Kin.of(to.lineage, nodes[index], own_bias=layer.own.positions(distances)[:, :, None])
            queries = layer.own.queries(normed)
            mixed = tree_attention(queries, None, nodes[index], kin, queries.shape[-1] ** -0.5)
            hidden = hidden + layer.own.onwards(mixed)
            queries = layer.cross.queries(layer.norm_cross(hidden))
            keys, values = state.prompt[index]
            mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=state.prompt_bias)
            hidden = layer(hidden + layer.cross.onwards(mixed))
        return State(
            hidden=hidden,
            head=state.head,
            depth=state.depth + 1,
            prompt=state.prompt,
            prompt_bias=state.prompt_bias,
            lengths=state.lengths,
            nodes=tuple(nodes),
            lineage=to.lineage,
        )
