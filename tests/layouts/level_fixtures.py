"""GRID's and RQ-VAE-Recommender's models as stand-ins with their parameter names, and directories as those tools leave them, tiny.

The stand-ins are written from what SemanticIDEncoderDecoder and EncoderDecoderRetrievalModel do, and share nothing with recerase.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.layouts import foreign_fixtures as fixtures
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5LayerFF, T5LayerNorm, T5Stack

WIDTH, SIZE = 16, 9


class Bloated(nn.Module):
    """T5MultiLayerFF with GRID's MLP: linear, then (relu, linear, dropout) a hidden size."""

    def __init__(self, config: T5Config, layers: int) -> None:
        super().__init__()
        sizes = [config.d_model, *[config.d_ff] * layers, config.d_model]
        inside: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for at in range(1, len(sizes) - 1):
            inside += [nn.ReLU(), nn.Linear(sizes[at], sizes[at + 1]), nn.Dropout(0.1)]
        self.mlp = nn.Module()
        self.mlp.model = nn.Sequential(*inside)
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.mlp.model(self.layer_norm(hidden))


def stack(decoder: bool) -> T5Config:
    return T5Config(
        vocab_size=11, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2, is_decoder=decoder,
        is_encoder_decoder=False, dropout_rate=0.1,
    )  # fmt: skip


class PerLevel(nn.Module):
    """What both models compute, asked through `parts`, which finds the tensors under the names of either."""

    levels: int

    def parts(self) -> tuple[Any, Any, Tensor, nn.ModuleList, nn.Embedding]:
        """Encoder, decoder, bos, heads and the table of codes."""
        raise NotImplementedError

    def level_log_probs(self, codes: Tensor, mask: Tensor, path: Tensor, user: Tensor | None = None) -> Tensor:
        """[B, L, K] log of each level's softmax along `path` [B, L], after right-padded codes [B, H * L] with -1 where masked."""
        encoder, decoder, bos, heads, table = self.parts()
        offsets = torch.arange(self.levels) * heads[0].weight.shape[0]
        embeds = table((codes + offsets.repeat(codes.shape[1] // self.levels)) * mask)
        if self.sep_token is not None:
            embeds = embeds.view(len(codes), -1, self.levels, WIDTH)
            wide = mask.view(len(codes), -1, self.levels)
            sep = self.sep_token.expand(*embeds.shape[:2], WIDTH)[:, :, None]
            embeds = torch.cat([embeds, sep], 2).reshape(len(codes), -1, WIDTH)
            mask = torch.cat([wide, wide[:, :, -1:]], 2).reshape(len(codes), -1)
        if user is not None and self.user_embedding is not None:
            who = self.user_embedding(torch.remainder(user, self.user_embedding.num_embeddings))
            embeds = torch.cat([who[:, None], embeds], 1)
            mask = torch.cat([torch.ones(len(mask), 1), mask], 1)
        read = encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        before = torch.cat([bos[None].expand(len(path), 1, -1), table(path[:, :-1] + offsets[:-1])], 1)
        written = decoder(
            inputs_embeds=before, encoder_hidden_states=read, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state
        return torch.stack([torch.log_softmax(head(written[:, at]), -1) for at, head in enumerate(heads)], 1)

    def logits_of_root(self, codes: Tensor, mask: Tensor) -> Tensor:
        return self.level_log_probs(codes, mask, torch.zeros(len(codes), self.levels, dtype=torch.int64))[:, 0]


class Grid(PerLevel):
    """SemanticIDEncoderDecoder: the encoder is there twice, and tables of its stacks are deleted."""

    def __init__(
        self, codebooks: Tensor, mlp_layers: int | None = None, num_user_bins: int | None = None, sep: bool = True
    ) -> None:
        super().__init__()
        self.levels, size = codebooks.shape[0], int(codebooks.max()) + 1
        self.model = T5EncoderModel(stack(False))
        del self.model.shared, self.model.encoder.embed_tokens
        self.encoder = nn.Module()
        self.encoder.encoder = self.model
        self.decoder = nn.Module()
        self.decoder.decoder = T5Stack(stack(True))
        del self.decoder.decoder.embed_tokens
        self.decoder.bos_token = nn.Parameter(torch.randn(1, WIDTH))
        self.decoder.decoder_mlp = nn.ModuleList(nn.Linear(WIDTH, size, bias=False) for _ in range(self.levels))
        for block in [*self.model.encoder.block, *self.decoder.decoder.block]:
            assert isinstance(block.layer[-1], T5LayerFF)
            if mlp_layers is not None:
                block.layer[-1] = Bloated(self.model.config, mlp_layers)
        self.item_sid_embedding_table_encoder = nn.Embedding(size * self.levels, WIDTH)
        self.user_embedding = nn.Embedding(num_user_bins, WIDTH) if num_user_bins else None
        self.sep_token = nn.Parameter(torch.randn(1, WIDTH)) if sep else None

    def parts(self) -> tuple[Any, Any, Tensor, nn.ModuleList, nn.Embedding]:
        decoder = self.decoder
        table = self.item_sid_embedding_table_encoder
        return self.encoder.encoder, decoder.decoder, decoder.bos_token, decoder.decoder_mlp, table


class RqVae(PerLevel):
    """EncoderDecoderRetrievalModel, with the tables of its stacks, which it never looks into."""

    def __init__(self, codebooks: Tensor, size: int, num_user_bins: int | None = None, sep: bool = True) -> None:
        super().__init__()
        self.levels = codebooks.shape[1]
        self.register_buffer("codebooks", codebooks)
        self.encoder = T5EncoderModel(stack(False))
        self.t5_decoder = T5Stack(stack(True))
        self.bos_token = nn.Parameter(torch.randn(1, WIDTH))
        self.decoder_mlp = nn.ModuleList(nn.Linear(WIDTH, size, bias=False) for _ in range(self.levels))
        self.item_sid_embedding_table = nn.Embedding(size * self.levels, WIDTH)
        self.user_embedding = nn.Embedding(num_user_bins, WIDTH) if num_user_bins else None
        self.sep_token = nn.Parameter(torch.randn(1, WIDTH)) if sep else None

    def parts(self) -> tuple[Any, Any, Tensor, nn.ModuleList, nn.Embedding]:
        return self.encoder, self.t5_decoder, self.bos_token, self.decoder_mlp, self.item_sid_embedding_table


def made(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A stand-in with weights so large that every token matters."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(*args, **kwargs)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2 and "block" not in name:
                    weight.copy_(torch.randn_like(weight))
                elif "relative" in name:
                    weight.copy_(torch.randn_like(weight) * 2)
    return model.eval()


def moments(model: nn.Module, kind: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """The state of an optimiser after a step."""
    optimizer = kind(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def plain_codes() -> np.ndarray:
    """[N, 3] SIDs below SIZE; items 58 and 59 share theirs."""
    return fixtures.codes(3) // 2


def grid_codes() -> np.ndarray:
    """[N, 4] with GRID's last digit: 0, or 1 to n for items that would share a SID."""
    sids = plain_codes()
    _, group, count = np.unique(sids, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    nth = np.array([(group[:row] == group[row]).sum() + 1 for row in range(len(sids))])
    return np.concatenate([sids, np.where(count[group] > 1, nth, 0)[:, None]], 1)


def grid(
    out: Path, sids: np.ndarray | None = None, *, deep: int | None = 2, users: int | None = None, sep: bool = True
) -> Path:
    """A directory with a Lightning checkpoint and the table, as transpose_tensor_from_file leaves it: with strides."""
    out.mkdir(parents=True)
    table = torch.from_numpy(grid_codes() if sids is None else sids).t()
    model = made(Grid, table, deep, users, sep)
    torch.save(table, out / "merged_predictions_tensor.pt")
    hyper = {
        "codebooks": torch.load(out / "merged_predictions_tensor.pt"),
        "num_hierarchies": table.shape[0],
        "num_embeddings_per_hierarchy": int(table.max()) + 1,  # Lightning looks after it was derived
        "mlp_layers": deep,
        "optimizer": functools.partial(torch.optim.Adam, lr=0.001),
        "evaluator": nn.Identity(),
    }
    torch.save(
        {
            "epoch": 3,
            "global_step": 40,
            "pytorch-lightning_version": "2.5.1",
            "state_dict": model.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'val/recall@5'}": {"best_model_score": torch.tensor(0.25)}},
            "optimizer_states": [moments(model, torch.optim.Adam)],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": hyper,
            "datamodule_hyper_parameters": {"config": SimpleNamespace(semantic_id_map=table.clone())},
        },
        out / "checkpoint_003_000040.ckpt",
    )
    return out


def rqvae(out: Path, *, users: int | None = None, sep: bool = True, prefix: str = "_orig_mod.") -> Path:
    """A directory with what train_decoder.py saves of a compiled model."""
    out.mkdir(parents=True)
    model = made(RqVae, torch.from_numpy(plain_codes()).long(), SIZE, users, sep)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"iter": 99, "model": state, "optimizer": moments(model, torch.optim.AdamW), "scheduler": {"last_epoch": 100}},
        out / "checkpoint_99.pt",
    )
    return out


def loaded(path: Path) -> PerLevel:
    """The stand-in with the weights of a directory, shapes taken as its tool takes them."""
    if (path / "checkpoint_99.pt").is_file():
        state = torch.load(path / "checkpoint_99.pt", weights_only=True)["model"]
        state = {name.rpartition("_orig_mod.")[2]: tensor for name, tensor in state.items()}
        users = len(state["user_embedding.weight"]) if "user_embedding.weight" in state else None
        model: PerLevel = RqVae(torch.zeros_like(state["codebooks"]), SIZE, users, "sep_token" in state)
    else:
        file = next(path.glob("*.ckpt"))
        state = torch.load(file, weights_only=False)["state_dict"]
        table = torch.load(path / "merged_predictions_tensor.pt")
        users = len(state["user_embedding.weight"]) if "user_embedding.weight" in state else None
        deep = sum("encoder.encoder.encoder.block.0.layer.1.mlp" in name and "weight" in name for name in state)
        model = Grid(table, deep - 1 if deep else None, users, "sep_token" in state)
    model.load_state_dict(state, strict=True)
    return model.eval()


def table_of(path: Path) -> np.ndarray:
    """[N, L] the SIDs of a directory, as its tool reads them."""
    if (path / "checkpoint_99.pt").is_file():
        state = torch.load(path / "checkpoint_99.pt", weights_only=True)["model"]
        return next(tensor for name, tensor in state.items() if name.endswith("codebooks")).numpy()
    return torch.load(path / "merged_predictions_tensor.pt").t().numpy()


def asked(model: PerLevel, sids: np.ndarray, histories: list[list[int]], paths: np.ndarray, user: int | None) -> Tensor:
    """[B, P, L] log-probabilities of codes along paths [P, L], as a batch padded like the tool's collate function."""
    longest = max(map(len, histories))
    codes = torch.full((len(histories), longest * sids.shape[1]), -1)
    for row, items in enumerate(histories):
        flat = torch.from_numpy(sids[items].reshape(-1))
        codes[row, : len(flat)] = flat
    mask = (codes != -1).long()
    out = []
    with torch.inference_mode():
        for row in range(len(histories)):
            many = len(paths)
            who = None if user is None else torch.full((many,), user)
            path = torch.from_numpy(paths).long()
            found = model.level_log_probs(codes[row].expand(many, -1), mask[row].expand(many, -1), path, who)
            out.append(found.gather(2, path[..., None])[..., 0])
    return torch.stack(out)
