"""RQ-VAE (arXiv 2203.01941, as TIGER uses it): an encoder is learned together with the codebooks that quantise its output.

The deciding choice is what is kept: SIDs live in the space of the encoder, so its latents stand where the item embeddings of
RQ-KMeans stand (codebooks, distances, neighbours, `Codebooks.encode` all mean the same), and the encoder goes beside them so
that new items can be brought into that space. Torch learns; the encoder that is kept runs in float64 numpy, on which
batches and threads leave no trace. The decoder only teaches and is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recerase.errors import TableError, UsageError
from recerase.runtime import pinned
from recerase.sid.codebooks import Codebooks, Recipe
from recerase.sid.quality import perplexity
from recerase.sid.quantize import TokenizeConfig, checked, kmeans
from recerase.types import SILENT, FloatArray, Observer

_GAIN = 0.005
"""Share by which the reconstruction error must fall, or the perplexity rise, to count as a gain."""
_COLLAPSED = 0.2
_SAMPLE = 1 << 16
"""Items that codewords are started from and revived with."""
_BLOCK = 1 << 14


@dataclass(frozen=True)
class RqVaeConfig:
    """The networks around the codebooks, and how they are trained."""

    latent: int = 32
    """Z, width of the space that is quantised."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths between input and latent; the decoder has them in reverse."""
    epochs: int = 200
    """At most; training ends when neither reconstruction nor perplexity gains any more."""
    patience: int = 15
    """Epochs without a gain."""
    batch: int = 256
    lr: float = 1e-3
    commitment: float = 0.25
    """Weight of the pull of latents towards their codewords, beside that of codewords towards latents (1)."""

    def __post_init__(self) -> None:
        whole = {"latent": self.latent, "epochs": self.epochs, "patience": self.patience, "batch": self.batch}
        wrong = [f"{name} must be at least 1" for name, value in whole.items() if value < 1]
        wrong += ["hidden must be widths of at least 1"] if min(self.hidden, default=1) < 1 else []
        wrong += [] if 0 < self.lr < float("inf") else ["lr must be above 0"]
        wrong += [] if 0 <= self.commitment < float("inf") else ["commitment must be at least 0"]
        if wrong:
            raise UsageError(f"RQ-VAE cannot be trained so: {'; '.join(wrong)}.", "Correct these values.")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Embeddings to latents: (x - centre) / scale, then layers with a ReLU between them."""

    centre: FloatArray
    """float32 [D]."""
    scale: float
    layers: tuple[tuple[FloatArray, FloatArray], ...]
    """Weight [out, in] and bias [out] of each layer."""

    def encode(self, points: FloatArray) -> FloatArray:
        """float32 [N, Z] latents of embeddings [N, D]; raises TableError when they have another width."""
        if points.ndim != 2 or points.shape[1] != len(self.centre):
            raise TableError(
                f"Embeddings of shape {list(points.shape)} do not fit an encoder of width {len(self.centre)}.",
                "Use embeddings made like those that the SIDs were made from.",
            )
        out = np.zeros((len(points), len(self.layers[-1][1])), np.float32)
        for start in range(0, len(points), _BLOCK):
            x = (np.asarray(points[start : start + _BLOCK], np.float32).astype(np.float64) - self.centre) / self.scale
            for depth, (weight, bias) in enumerate(self.layers):
                x = np.maximum(x, 0.0) if depth else x
                x = x @ weight.T.astype(np.float64) + bias
            out[start : start + _BLOCK] = x
        return out

    def to_tensors(self) -> dict[str, FloatArray]:
        """float32 arrays `centre`, `scale`, `weight.<layer>`, `bias.<layer>`."""
        out = {"centre": self.centre, "scale": np.array([self.scale], np.float32)}
        for depth, (weight, bias) in enumerate(self.layers):
            out |= {f"weight.{depth}": np.ascontiguousarray(weight), f"bias.{depth}": bias}
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, FloatArray]) -> Encoder:
        """The inverse of `to_tensors`. Raises TableError when they are not a whole encoder."""
        try:
            depth = (len(tensors) - 2) // 2
            layers = tuple((tensors[f"weight.{i}"], tensors[f"bias.{i}"]) for i in range(depth))
            centre, scale = tensors["centre"], float(tensors["scale"][0])
            widths = [centre.shape[0], *(len(bias) for _, bias in layers)]
            fits = all(w.shape == (widths[i + 1], widths[i]) for i, (w, _) in enumerate(layers))
            numbers = all(v.dtype == np.float32 and np.isfinite(v).all() for v in tensors.values())
            if not layers or len(tensors) != 2 + 2 * depth or not fits or not numbers or scale <= 0:
                raise ValueError("its layers do not fit each other")
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise TableError(f"The encoder cannot be used: {error!s:.120}.", "Tokenize again.") from error
        return cls(centre, scale, layers)


@dataclass(frozen=True, eq=False)
class Learned:
    """What `rq_vae` found."""

    encoder: Encoder
    latents: FloatArray
    """float32 [N, Z], of mean length 1: what the codebooks quantise."""
    codebooks: Codebooks
    epochs: int
    error: float
    """Share of the embeddings' variance that their reconstruction from codes lacks; 1 is no better than their mean."""
    perplexity: tuple[float, ...]
    """A level, before collisions are resolved."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures, for provenance."""
        return {"epochs": self.epochs, "error": self.error, "perplexity": list(self.perplexity)}


def rq_vae(
    embeddings: FloatArray, config: TokenizeConfig, vae: RqVaeConfig | None = None, observer: Observer = SILENT
) -> Learned:
    """Encoder, latents and codebooks for embeddings [N, D]; levels, codes, seed and threads are those of `config`.

    `codebooks.encode(latents)` are the codes; SIDs may still collide. The state with the least reconstruction error is
    kept. Raises DataError on no items, NaN or infinity.
    """
    vae = vae or RqVaeConfig()
    points = checked(embeddings)
    centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = float(np.float32(np.sqrt(np.square(points - centre, dtype=np.float64).mean()) or 1.0))
    with pinned(config.threads, config.seed):
        x = torch.from_numpy((points - centre) / np.float32(scale))
        model = _Model(points.shape[1], config, vae)
        _start(model, x, config)
        epochs, error = _train(model, x, vae, observer)
        layers = tuple(
            (_array(part.weight), _array(part.bias)) for part in model.encoder if isinstance(part, nn.Linear)
        )
        words = tuple(_array(part) for part in model.words)
    length = np.linalg.norm(Encoder(centre, scale, layers).encode(points), axis=1).mean(dtype=np.float64)
    unit = np.float32(length or 1.0)  # distances of the order of 1, as with normalised residuals
    encoder = Encoder(centre, scale, (*layers[:-1], (layers[-1][0] / unit, layers[-1][1] / unit)))
    latents = encoder.encode(points)
    recipe = Recipe(np.zeros(vae.latent, np.float32), False, False)
    codebooks = Codebooks(tuple(w / unit for w in words), recipe, False, (1.0,) * config.levels)
    codes = codebooks.encode(latents)
    found = tuple(perplexity(np.bincount(column, minlength=config.codes)) for column in codes.T)
    warnings = _warnings(found, error, min(config.codes, len(points)))
    return Learned(encoder, latents, codebooks, epochs, error, found, warnings)


class _Model(nn.Module):
    """Encoder, decoder, and codebooks [K, Z] a level."""

    def __init__(self, width: int, config: TokenizeConfig, vae: RqVaeConfig) -> None:
        super().__init__()
        widths = [width, *vae.hidden, vae.latent]
        self.encoder, self.decoder = _layers(widths), _layers(widths[::-1])
        self.words = nn.ParameterList([torch.zeros(config.codes, vae.latent) for _ in range(config.levels)])
        self.commitment = vae.commitment

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Reconstruction loss, quantisation loss, codes [B, L], and the residual [B, Z] entering each level."""
        latent = self.encoder(x)
        rest, loss = latent, latent.new_zeros(())
        codes, residuals = [], []
        for words in self.words:
            with torch.no_grad():
                code = (words.square().sum(1) - 2 * rest @ words.T).argmin(1)
            word = F.embedding(code, words)
            loss = loss + F.mse_loss(word, rest.detach()) + self.commitment * F.mse_loss(rest, word.detach())
            residuals.append(rest.detach())
            codes.append(code)
            rest = rest - word.detach()
        quantised = latent - rest.detach()  # its value is the sum of the codewords, its gradient that of the latent
        return F.mse_loss(self.decoder(quantised), x), loss, torch.stack(codes, 1), residuals


def _layers(widths: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for depth, (into, out) in enumerate(pairwise(widths)):
        parts += [nn.ReLU()] if depth else []
        parts.append(nn.Linear(into, out))
    return nn.Sequential(*parts)


def _start(model: _Model, x: Tensor, config: TokenizeConfig) -> None:
    """Codewords from k-means on the first latents, level by level."""
    with torch.no_grad():
        rest = model.encoder(x[torch.randperm(len(x))[:_SAMPLE]])
        for level, words in enumerate(model.words):
            words.copy_(torch.from_numpy(kmeans(rest.numpy(), config, config.seed + level)))
            rest = rest - words[torch.cdist(rest, words).argmin(1)]


def _train(model: _Model, x: Tensor, vae: RqVaeConfig, observer: Observer) -> tuple[int, float]:
    """Train to the best state found; epochs run and its reconstruction error."""
    optimiser = torch.optim.Adam(model.parameters(), lr=vae.lr)
    best, kept, waited, epochs = float("inf"), model.state_dict(), 0, 0
    mark_error, mark_use = float("inf"), 0.0  # where the last gain was
    observer.start("learn codes", vae.epochs)
    for epochs in range(1, vae.epochs + 1):  # noqa: B007 - told at the end
        for rows in torch.randperm(len(x)).split(vae.batch):
            reconstruction, quantisation, _, _ = model(x[rows])
            optimiser.zero_grad()
            (reconstruction + quantisation).backward()
            optimiser.step()
        error, counts = _measure(model, x)
        use = float(np.mean([perplexity(count) for count in counts]))
        observer.advance("learn codes", error=error, perplexity=use)
        if error < best:
            best, kept = error, {name: value.clone() for name, value in model.state_dict().items()}
        waited += 1
        if error < mark_error * (1 - _GAIN) or use > mark_use * (1 + _GAIN):
            mark_error, mark_use, waited = min(error, mark_error), max(use, mark_use), 0
        if waited >= vae.patience:
            break
        _revive(model, x, counts, optimiser)
    observer.finish("learn codes")
    model.load_state_dict(kept)
    return epochs, best


@torch.no_grad()
def _measure(model: _Model, x: Tensor) -> tuple[float, list[Any]]:
    """Reconstruction error over all items, and how many items have each code, a level."""
    total, counts = 0.0, [torch.zeros(len(words), dtype=torch.int64) for words in model.words]
    for rows in x.split(_BLOCK):
        error, _, codes, _ = model(rows)
        total += float(error) * len(rows)
        for level, count in enumerate(counts):
            count += torch.bincount(codes[:, level], minlength=len(count))
    return total / len(x), [count.numpy() for count in counts]


@torch.no_grad()
def _revive(model: _Model, x: Tensor, counts: list[Any], optimiser: torch.optim.Optimizer) -> None:
    """Codewords that no item has go where items are: onto the residuals of items drawn at random."""
    if all(count.all() for count in counts):
        return
    residuals = model(x[torch.randperm(len(x))[:_BLOCK]])[3]
    for words, count, residual in zip(model.words, counts, residuals, strict=True):
        dead = torch.from_numpy(np.flatnonzero(count == 0))
        words[dead] = residual[torch.arange(len(dead)) % len(residual)]
        for moment in ("exp_avg", "exp_avg_sq"):
            optimiser.state[words][moment][dead] = 0.0


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().numpy().copy()


def _warnings(found: tuple[float, ...], error: float, reachable: int) -> tuple[str, ...]:
    out = [
        f"Level {level + 1} has collapsed before resolution: its use of {reachable} codes is worth {value:.0f} even ones."
        for level, value in enumerate(found)
        if value < _COLLAPSED * reachable
    ]
    if error > 1 - _COLLAPSED:
        out.append(f"The codes explain only {max(0.0, 1 - error):.0%} of the embeddings' variance.")
    return tuple(out)
