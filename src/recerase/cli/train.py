"""`recerase train`: a reference recommender on a data directory and its SIDs."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import (
    DataArgument,
    DeviceOption,
    ForceOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    SettingsOption,
    ThreadsOption,
    choose,
    concept_spec,
    read_settings,
)
from recerase.cli.progress import emit, observing, say


class Kind(str, Enum):
    """Which transformer."""

    causal = "causal"
    seq2seq = "seq2seq"


def train(
    data: DataArgument = None,
    sids: Annotated[
        Path,
        typer.Option(
            "--sids",
            metavar="PATH",
            help="Directory made by `recerase tokenize`, a checkpoint, or a JSON or parquet table.",
        ),
    ] = Path("sids"),
    out: Annotated[Path, typer.Option("--out", metavar="CKPT", help="Where to publish the checkpoint.")] = Path(
        "model"
    ),
    kind: Annotated[Kind, typer.Option("--kind", help="causal: Llama. seq2seq: T5, as in TIGER.")] = Kind.causal,
    width: Annotated[int, typer.Option("--width", min=8, help="Width of the model.")] = 128,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers (seq2seq: of encoder and decoder each).")] = 3,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Attention heads.")] = 4,
    window: Annotated[int, typer.Option("--window", min=1, help="History items a prompt holds.")] = 20,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Most epochs.")] = 40,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences a step.")] = 128,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Peak learning rate.")] = 3e-3,
    dropout: Annotated[
        float | None,
        typer.Option(
            "--dropout",
            min=0.0,
            max=0.9,
            help="Share of embeddings and of what layers add that a step leaves out. [default: 0.2; seq2seq: 0.1]",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Validations without gain before stopping.")] = 4,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="SPEC", help="Leave a concept out: the result is a reference for it. Repeat."
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option("--embeddings", metavar="FILE", help="Item vectors, to fit codebooks to a table made elsewhere."),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward passes in bfloat16; weights stay float32.")] = False,
    resume: ResumeOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Train a generative recommender; the last two items of every user are held out.

    The checkpoint is a plain transformers directory. An interrupted run is continued by the same command, to the same weights.

    **Examples**

        recerase train data --sids sids --out model

        recerase train data --sids sids --out model --kind seq2seq --width 256 --epochs 100 --fresh

        recerase train data --sids sids --without brand=Acme --out reference

        recerase train data --sids letter.index.json --out model
    """
    from recerase import api
    from recerase.model.recommender import ModelConfig
    from recerase.model.training import TrainConfig
    from recerase.runtime import RunConfig

    source = choose(data, read_settings(settings).data, "DATA", "data")
    model_config = ModelConfig(
        kind=kind.value, width=width, layers=layers, heads=heads, feed_forward=2 * width, window=window
    )
    train_config = TrainConfig(epochs=epochs, batch=batch, lr=lr, patience=patience, seed=seed, bf16=bf16)
    if dropout is not None and kind is Kind.causal:
        train_config = replace(train_config, dropout=dropout)
    elif dropout is not None:
        model_config = replace(model_config, dropout=dropout)
    with observing(quiet) as observer:
        made = api.train(
            source,
            sids,
            out,
            model_config,
            train_config,
            without=concept_spec(without) if without else None,
            embeddings=embeddings,
            resume=resume,
            force=force,
            run=RunConfig(seed=seed, threads=threads, device=device),
            observer=observer,
        )
    figures = ", ".join(f"{name} {value:.4f}" for name, value in made.log.validation.items())
    say(f"{made.parameters} parameters, best epoch {made.log.best_epoch} of {made.log.epochs}: {figures}", quiet)
    emit(str(made.path))
    return 0
