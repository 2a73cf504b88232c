"""The one training loop: next-code prediction on users' sequences, for the causal and the seq2seq recommender.

A causal model is trained on every position of a window of a sequence; a seq2seq model on (history, target) pairs.
The state after each epoch is one piece of the run's state, and the random numbers of an epoch depend on (seed, epoch)
alone, so that a killed run continues to the same weights as a straight one. Processes that share a training split every
batch: batches, order and rates are those of one process, gradients and hits are summed, and dropout alone differs, for
each process draws its own from (seed, epoch, rank).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from recerase.catalog.interactions import Histories, Split
from recerase.errors import UsageError
from recerase.model.batches import IGNORED, batch_rows, causal_inputs, pairs, seq2seq_inputs, windows, with_sids
from recerase.model.decode import recommend
from recerase.model.recommender import Recommender
from recerase.parallel import workers
from recerase.resume import Pieces
from recerase.sid.table import SidTable
from recerase.types import SILENT, BoolArray, IntArray, Observer

PIECE = "training"
"""The name of the last finished epoch in the state of a run."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the model's own shape is `ModelConfig`."""

    epochs: int = 40
    batch: int = 128
    """Windows (causal) or pairs (seq2seq) a step."""
    lr: float = 3e-3
    warmup: float = 0.05
    """Share of all steps with a rising rate; a cosine to zero follows."""
    weight_decay: float = 0.05
    clip: float = 1.0
    patience: int = 4
    """Validations without a better NDCG@10 before training stops."""
    validate_every: int = 2
    """Epochs between validations."""
    validation_users: int = 1500
    seed: int = 0
    bf16: bool = False
    """Forward passes in bfloat16; weights and optimiser stay float32."""
    dropout: float = 0.2
    """Of a causal model: see `left_out`. A T5 has dropout of its own, `ModelConfig.dropout`."""


@dataclass(frozen=True)
class TrainLog:
    """What training did; goes into the checkpoint's manifest."""

    epochs: int
    seconds: float
    best_epoch: int
    validation: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = field(default_factory=tuple)
    cpu_seconds: float = 0.0
    """Processor time of this process, all its threads."""


@dataclass
class Progress:
    """Where a run stands between two epochs; everything in it is saved."""

    epoch: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def train(
    model: Recommender,
    table: SidTable,
    split: Split,
    config: TrainConfig,
    observer: Observer = SILENT,
    state: Pieces | None = None,
) -> TrainLog:
    """Train `model` in place and leave it with the weights of its best validation epoch.

    Args:
        split: histories by catalogue row, see `Interactions.split`.
        state: where the last finished epoch is kept and, when it is there, continued from; opened by the caller under
            a key of everything the weights depend on.
    Raises:
        UsageError: no user has a sequence to learn from.
    """
    sequences = with_sids(split.train, table)
    if len(sequences) == 0 or int(sequences.lengths.max(initial=0)) < 2:
        raise UsageError(
            "There is nothing to train on: no user has two interactions before the held-out ones.",
            "Give a data directory with longer histories.",
        )
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    progress = _load_state(state, model, optimizer) or Progress()
    per_epoch = len(_plan(model, sequences, config, 0)[1])
    total = config.epochs * per_epoch
    observer.start("train", total)
    observer.advance("train", progress.epoch * per_epoch)
    while progress.epoch < config.epochs and progress.stale < config.patience:
        began, busy = time.monotonic(), time.process_time()
        loss = _epoch(model, table, sequences, config, progress, optimizer, total, per_epoch, observer)
        progress.epoch += 1
        row = {"epoch": float(progress.epoch), "loss": loss}
        if progress.epoch % config.validate_every == 0 or progress.epoch == config.epochs:
            found = validate(model, table, split.valid, config.validation_users, config.seed)
            if found:
                row.update(found)
                _keep_best(progress, row, model)
                figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                observer.note(f"epoch {progress.epoch}: loss {loss:.3f}, validation {figures}")
        progress.history.append(row)
        progress.seconds += time.monotonic() - began
        progress.cpu_seconds += time.process_time() - busy
        _save_state(state, progress, model, optimizer)
    observer.finish("train")
    if progress.best_weights:
        model.module.load_state_dict(progress.best_weights)
    model.module.eval()
    best = next((r for r in progress.history if r["epoch"] == progress.best_epoch), {})
    return TrainLog(
        epochs=progress.epoch,
        seconds=round(progress.seconds, 3),
        best_epoch=progress.best_epoch,
        validation={k: v for k, v in best.items() if "@" in k},
        history=tuple(progress.history),
        cpu_seconds=round(progress.cpu_seconds, 3),
    )


def validate(model: Recommender, table: SidTable, held_out: Histories, users: int, seed: int) -> dict[str, float]:
    """Recall@10 and NDCG@10 on at most `users` held-out histories (a seeded sample without replacement).

    Empty where nobody has a held-out item with a SID: then no epoch is better than another.
    """
    rows = np.flatnonzero(table.present[held_out.targets])
    if len(rows) == 0:
        return {}
    if len(rows) > users:
        rows = np.sort(np.random.default_rng([seed, 7]).choice(rows, users, replace=False))
    hits = _hits(model, table, held_out.take(rows))
    gain = (hits / np.log2(np.arange(2, hits.shape[1] + 2))).sum(1)
    return {"recall@10": float(hits.any(1).mean()), "ndcg@10": float(gain.mean())}


def _hits(model: Recommender, table: SidTable, sample: Histories) -> BoolArray:
    """[B, 10] where in its list each history's target stands; each process asks for a part, and has them all."""
    who = workers()
    shares = [np.arange(rank, len(sample), who.size) for rank in range(who.size)]
    training = model.module.training
    model.module.eval()
    mine = sample.take(shares[who.rank])
    found = recommend(model, table, mine, k=10).items == mine.targets[:, None]
    model.module.train(training)
    hits: BoolArray = np.empty((len(sample), found.shape[1]), bool)
    for share, part in zip(shares, who.gathered(found), strict=True):
        hits[share] = part
    return hits


def _epoch(
    model: Recommender,
    table: SidTable,
    sequences: Histories,
    config: TrainConfig,
    progress: Progress,
    optimizer: torch.optim.Optimizer,
    total: int,
    per_epoch: int,
    observer: Observer,
) -> float:
    """One pass over the windows; returns the mean loss a code."""
    module = model.module
    module.train()
    step = progress.epoch * per_epoch
    lost, codes, began = 0.0, 0, time.monotonic()
    with torch.random.fork_rng(), left_out(model, config.dropout):
        torch.manual_seed(config.seed * 100_003 + progress.epoch + 1_000_000_007 * workers().rank)
        for inputs in _batches(model, table, sequences, config, progress.epoch):
            rate = learning_rate(config.lr, step, total, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            n = 0 if inputs is None else int((inputs["labels"] != IGNORED).sum())
            loss = torch.zeros(())
            if inputs is not None and n:
                with torch.autocast(model.device.type, torch.bfloat16, enabled=config.bf16):
                    loss = sequence_loss(module, inputs, model.level_rows if model.per_level else None)
                loss.backward()
            mean, n = _shared(module, float(loss.detach()), n)
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            lost, codes, step = lost + mean * n, codes + n, step + 1
            observer.advance("train", 1, loss=lost / codes, codes_per_second=codes / (time.monotonic() - began))
    return lost / max(codes, 1)


@contextlib.contextmanager
def left_out(model: Recommender, share: float) -> Iterator[None]:
    """While this is open, a causal model in training leaves out a `share` of its embeddings and of what its layers add to them.

    GPT-2 and T5 have dropout there, and a Llama has no place for it; the module is as it was afterwards.
    """
    module: Any = model.module
    layers = module.model.layers if model.kind == "causal" and share else ()
    parts = [module.get_input_embeddings()] if layers else []
    parts += [part for layer in layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]

    def leave_out(part: torch.nn.Module, given: Any, made: Tensor) -> Tensor:
        return torch.nn.functional.dropout(made, share, part.training)

    hooks = [part.register_forward_hook(leave_out) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shared(module: torch.nn.Module, loss: float, n: int) -> tuple[float, int]:
    """Gradients, mean loss and number of codes of the whole batch, from those of each process's part of it.

    A mean over n codes counts n times, so that the step is that of one process up to rounding. One process: as they are.
    """
    who = workers()
    if who.size == 1:
        return loss, n
    parameters = list(module.parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    used = [float(p.grad is not None) for p in parameters]
    figures = torch.tensor([*used, loss * n, float(n)], dtype=torch.float64, device=parameters[0].device)
    flat = who.summed(torch.cat([g.flatten() for g in gradients]) * n)
    *used, loss, total = who.summed(figures).tolist()
    for parameter, part in zip(
        parameters, (flat / max(total, 1.0)).split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)
    for parameter, count in zip(parameters, used, strict=True):
        parameter.grad = parameter.grad if count else None
    return loss / max(total, 1.0), int(total)


def sequence_loss(module: torch.nn.Module, inputs: Mapping[str, Tensor], own: Sequence[Tensor] | None = None) -> Tensor:
    """Mean cross-entropy over the labelled codes, over the whole vocabulary. Labels [B, T] are aligned with outputs.

    `own`: a position, int64 [K] the rows among which alone its code is chosen, for a model with a softmax a level.
    """
    labels = inputs["labels"]
    arguments = {k: v for k, v in inputs.items() if k != "labels"}
    logits = module(**arguments, use_cache=False).logits  # [B, T, V]
    if own is not None:
        others = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device)
        for position, rows in enumerate(own):
            others[position, rows] = False
        logits = logits.masked_fill(others, float("-inf"))
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def learning_rate(peak: float, step: int, total: int, warmup: float) -> float:
    """Linear warm-up over `warmup * total` steps, then a cosine to zero."""
    rising = max(1, int(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1.0 + float(np.cos(np.pi * (step - rising) / max(1, total - rising))))


def _plan(
    model: Recommender, sequences: Histories, config: TrainConfig, epoch: int
) -> tuple[Histories, list[IntArray]]:
    """The pieces of one epoch and its batches of them; they depend on the data, the configuration and (seed, epoch) only."""
    rng = np.random.default_rng([config.seed, epoch])
    causal = model.kind == "causal"
    pieces = windows(sequences, model.window + 1, rng) if causal else pairs(sequences, model.window)
    return pieces, batch_rows(pieces.lengths, config.batch, rng)


def _batches(
    model: Recommender, table: SidTable, sequences: Histories, config: TrainConfig, epoch: int
) -> Iterator[dict[str, Tensor] | None]:
    """This process's part of every batch of one epoch; None where the batch has fewer rows than there are processes."""
    who = workers()
    pieces, batches = _plan(model, sequences, config, epoch)
    build: Callable[..., dict[str, Tensor]] = causal_inputs if model.kind == "causal" else seq2seq_inputs
    for rows in batches:
        mine = np.sort(rows)[who.rank :: who.size]
        yield build(model, table, pieces.take(mine)) if len(mine) else None


def _keep_best(progress: Progress, row: Mapping[str, float], model: Recommender) -> None:
    if row["ndcg@10"] > progress.best:
        progress.best, progress.best_epoch, progress.stale = row["ndcg@10"], progress.epoch, 0
        progress.best_weights = {k: v.detach().clone() for k, v in model.module.state_dict().items()}
    else:
        progress.stale += 1


def _save_state(state: Pieces | None, progress: Progress, model: Recommender, optimizer: torch.optim.Optimizer) -> None:
    if state is None or not workers().main:
        return
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.module.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in progress.best_weights.items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    figures: dict[str, Any] = {k: v for k, v in vars(progress).items() if k != "best_weights"}
    own = {k: v.contiguous().clone() for k, v in tensors.items()}  # safetensors refuses memory that is shared
    state.write(PIECE, save(own, {"progress": json.dumps(figures)}))


def _load_state(state: Pieces | None, model: Recommender, optimizer: torch.optim.Optimizer) -> Progress | None:
    """The last finished epoch, put back into model and optimiser; None when there is none."""
    found = workers().told(state.read(PIECE) if state is not None else None)
    if found is None:
        return None
    tensors = load(found)
    progress = progress_of(found)
    progress.best_weights = {k[5:]: v for k, v in tensors.items() if k.startswith("best.")}
    model.module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    template = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field_name = name.split(".", 2)
            moments.setdefault(int(index), {})[field_name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": template["param_groups"]})
    return progress


def progress_of(piece: bytes) -> Progress:
    """Where the run stood that left this piece, without its weights: the figures in the header of the safetensors."""
    size = int.from_bytes(piece[:8], "little")
    header = json.loads(piece[8 : 8 + size])
    return Progress(**json.loads(header["__metadata__"]["progress"]))
