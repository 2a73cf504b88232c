"""`recerase recommend`: what every user would be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import (
    CheckpointArgument,
    DataOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    LayoutOption,
    LayoutSetOption,
    QuietOption,
    SettingsOption,
    ThreadsOption,
    TrustOption,
    choose,
    layout_options,
    read_settings,
)
from recerase.cli.progress import emit, observing, say


def recommend(
    checkpoint: CheckpointArgument = None,
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Parquet file: user_id, rank, item_id, score.")
    ] = Path("recommendations.parquet"),
    top: Annotated[int, typer.Option("--top", min=1, help="Items a user.")] = 20,
    beam: Annotated[
        int | None, typer.Option("--beam", min=1, help="Beam width. Default: twice --top, at least 20.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Score every listed item (at most 50,000) instead of a beam search.", show_default=False
        ),
    ] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Users a step.")] = 256,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    force: ForceOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Recommend to every user from their whole history; only listed items are generated.

    The score is the exact log-probability of the item's SID.

    **Examples**

        recerase recommend model --data data --top 20 --out recommendations.parquet
    """
    from recerase import api
    from recerase.runtime import RunConfig

    known = read_settings(settings)
    with observing(quiet) as observer:
        made = api.recommend(
            choose(checkpoint, known.checkpoint, "CKPT", "checkpoint"),
            choose(data, known.data, "--data", "data"),
            out,
            top=top,
            beam=beam,
            exact=exact,
            batch=batch,
            force=force,
            run=RunConfig(
                threads=threads,
                device=device,
                dtype=dtype,
                trust_pickle=trust_pickle,
                layout=layout,
                layout_options=layout_options(layout_set),
            ),
            observer=observer,
        )
    say(f"{made.rows} recommendations for {made.users} users", quiet)
    emit(str(made.path))
    return 0
