"""`recerase tokenize`: a catalogue becomes semantic IDs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, QuietOption, SeedOption, SettingsOption, choose, read_settings
from recerase.cli.progress import emit, observing, say
from recerase.errors import UsageError

_RECIPE = ("method", "levels", "codes", "dims", "iterations", "epochs", "latent", "seed", "threads")
"""What SIDs that are extended have already."""


class MethodName(str, Enum):
    """How embeddings become codes."""

    rq_kmeans = "rq-kmeans"
    rq_vae = "rq-vae"


def tokenize(
    context: typer.Context,
    items: Annotated[
        Path | None,
        typer.Argument(
            metavar="ITEMS", help="items.parquet, a data directory that holds it, or a directory of parquet files."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to publish the SIDs.")] = Path("sids"),
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings",
            metavar="FILE",
            help="Item embeddings of your own: .npy, .npz, .parquet or .safetensors, or a directory of parquet files.",
        ),
    ] = None,
    sentence_model: Annotated[
        Path | None,
        typer.Option("--sentence-model", metavar="DIR", help="Local sentence-transformers model (extra: text)."),
    ] = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            "--extend", metavar="SIDS", help="SIDs made before: only items they lack get new ones, and no SID moves."
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Read items a block at a time; always so for a directory of parquet files (see above)."
        ),
    ] = False,
    keep_embeddings: Annotated[
        bool,
        typer.Option(
            "--keep-embeddings", help="Of a stream: store the embeddings too, which erasing and auditing use."
        ),
    ] = False,
    method: Annotated[
        MethodName,
        typer.Option(
            "--method", help="rq-kmeans: residual k-means. rq-vae: learn an encoder and its codebooks (torch)."
        ),
    ] = MethodName.rq_kmeans,
    levels: Annotated[int, typer.Option("--levels", min=1, max=16, help="Codes in a SID.")] = 3,
    codes: Annotated[int, typer.Option("--codes", min=2, help="Codes a level.")] = 256,
    dims: Annotated[
        int, typer.Option("--dims", min=2, help="Width of the embeddings made from the items' words.")
    ] = 128,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="k-means iterations a level.")] = 25,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="RQ-VAE: epochs at most; it stops early.")] = 200,
    latent: Annotated[int, typer.Option("--latent", min=1, help="RQ-VAE: width of the space that is quantised.")] = 32,
    seed: SeedOption = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads; other counts may give other codes.")] = 1,
    force: ForceOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Give every item a semantic ID: embed, quantise, and make every SID unique.

    Publishes sids.parquet, sid_schema.json, codebooks.safetensors and a quality report.

    A directory of parquet files (without an items.parquet) is a stream of any size: columns item_id and vector, or those of
    items.parquet, embedded from their words as a sample of them says. It is read a block at a time; vectors get the SIDs that
    they get in memory. Free disk at --out for all vectors is needed meanwhile; they are not kept unless asked for. Some 262,144
    copies of one vector are the most that are told apart. Several processes (torchrun, accelerate launch) share the work.

    **Examples**

        recerase tokenize data --out sids

        recerase tokenize data/items.parquet --embeddings items.npy --levels 4 --codes 512 --out sids

        recerase tokenize data --method rq-vae --out sids

        recerase tokenize data --extend sids --out sids2

        recerase tokenize vectors/ --levels 4 --threads 2 --out sids
    """
    from recerase import api
    from recerase.sid.quantize import TokenizeConfig

    source = choose(items, read_settings(settings).data, "ITEMS", "data")
    given = [name for name in _RECIPE if _was_given(context, name)]
    if extend is not None and given:
        raise UsageError(
            f"--{given[0]} cannot be given with --extend: new items get SIDs of the same kind as the old ones.",
            f"Leave out {', '.join(f'--{name}' for name in given)}, or tokenize afresh without --extend.",
        )
    config = TokenizeConfig(levels=levels, codes=codes, iterations=iterations, seed=seed, threads=threads)
    vae = None
    if method is MethodName.rq_vae:
        from recerase.sid.rqvae import RqVaeConfig

        vae = RqVaeConfig(epochs=epochs, latent=latent)
    elif extend is None and (unused := [name for name in ("epochs", "latent") if _was_given(context, name)]):
        raise UsageError(f"--{unused[0]} is of RQ-VAE.", "Add --method rq-vae, or leave it out.")
    with observing(quiet) as observer:
        made = api.tokenize(
            source,
            out,
            config if extend is None else None,
            vae=vae,
            embeddings=embeddings,
            sentence_model=sentence_model,
            dims=dims if _was_given(context, "dims") else None,
            extend=extend,
            stream=stream,
            keep_embeddings=keep_embeddings,
            force=force,
            observer=observer,
        )
    quality = made.quality
    used = "/".join(str(count) for count in quality.used)
    perplexity = "/".join(f"{value:.0f}" for value in quality.perplexity)
    new = f" ({made.new} of them new)" if extend is not None else ""
    say(f"{made.items} items{new}, {len(quality.used)} levels: codes in use {used}, perplexity {perplexity}", quiet)
    say(
        f"collisions {quality.collision_before:.2%} before, {quality.collision_after:.2%} after resolution "
        f"({made.seconds:.1f} s)",
        quiet,
    )
    for warning in quality.warnings:
        say(f"warning: {warning}", quiet)
    emit(str(made.path))
    return 0


def _was_given(context: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line, rather than at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
