"""`recerase tokenize`: a catalogue becomes semantic IDs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, QuietOption, SeedOption, SettingsOption, choose, read_settings
from recerase.cli.progress import emit, observing, say


def tokenize(
    items: Annotated[
        Path | None, typer.Argument(metavar="ITEMS", help="items.parquet, or a data directory that holds it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to publish the SIDs.")] = Path("sids"),
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings", metavar="FILE", help="Item embeddings of your own: .npy, .npz, .parquet or .safetensors."
        ),
    ] = None,
    sentence_model: Annotated[
        Path | None,
        typer.Option("--sentence-model", metavar="DIR", help="Local sentence-transformers model (extra: text)."),
    ] = None,
    levels: Annotated[int, typer.Option("--levels", min=1, max=16, help="Codes in a SID.")] = 3,
    codes: Annotated[int, typer.Option("--codes", min=2, help="Codes a level.")] = 256,
    dims: Annotated[
        int, typer.Option("--dims", min=2, help="Width of the embeddings made from the items' words.")
    ] = 128,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="k-means iterations a level.")] = 25,
    seed: SeedOption = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="faiss threads; other counts may give other codes.")
    ] = 1,
    force: ForceOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Give every item a semantic ID: embed, RQ-KMeans, and make every SID unique.

    Publishes sids.parquet, sid_schema.json, codebooks.safetensors and a quality report.

    **Examples**

        recerase tokenize data --out sids

        recerase tokenize data/items.parquet --embeddings items.npy --levels 4 --codes 512 --out sids
    """
    from recerase import api
    from recerase.sid.quantize import TokenizeConfig

    source = choose(items, read_settings(settings).data, "ITEMS", "data")
    config = TokenizeConfig(levels=levels, codes=codes, iterations=iterations, seed=seed, threads=threads)
    with observing(quiet) as observer:
        made = api.tokenize(
            source,
            out,
            config,
            embeddings=embeddings,
            sentence_model=sentence_model,
            dims=dims,
            force=force,
            observer=observer,
        )
    quality = made.quality
    used = "/".join(str(count) for count in quality.used)
    perplexity = "/".join(f"{value:.0f}" for value in quality.perplexity)
    say(f"{made.items} items, {levels} levels: codes in use {used}, perplexity {perplexity}", quiet)
    say(
        f"collisions {quality.collision_before:.2%} before, {quality.collision_after:.2%} after resolution "
        f"({made.seconds:.1f} s)",
        quiet,
    )
    for warning in quality.warnings:
        say(f"warning: {warning}", quiet)
    emit(str(made.path))
    return 0
