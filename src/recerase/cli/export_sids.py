"""`recerase export sids`: the SID table of anything that has one, in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, LayoutOption, LayoutSetOption, QuietOption, TrustOption, layout_options
from recerase.cli.progress import emit, observing, say


def export_sids(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="SID directory, checkpoint of any layout, or a SID table: JSON, parquet, another tool's.",
        ),
    ],
    form: Annotated[
        str, typer.Option("--as", metavar="FORMAT", help="letter, integers, parquet, rpg or torcheasyrec.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="The file to write; torcheasyrec: the new generation directory."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="torcheasyrec: capacity=5, items a SID may have; item_id=int64. Repeat."
        ),
    ] = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write a SID table in the format of another tool: the same items, in the same order, with the same codes.

    What a format cannot say (items without a SID or not to be recommended, SIDs of different lengths, more items on a SID than
    its capacity) is refused, and nothing is written. What it merely leaves out is told.

    **Examples**

        recerase export sids sids --as letter --out Beauty.index.json

        recerase export sids model --as torcheasyrec --out bundle/v2 --set capacity=5

        recerase export sids table.parquet --as rpg --out 'sentence-t5-base_OPQ32,IVF1,PQ32x8.sem_ids'
    """
    from recerase import api
    from recerase.planning import key_values
    from recerase.runtime import RunConfig

    run = RunConfig(device="cpu", trust_pickle=trust_pickle, layout=layout, layout_options=layout_options(layout_set))
    with observing(quiet) as observer:
        made = api.export_sids(source, form, out, key_values(settings or ()), force=force, run=run, observer=observer)
    for note in made.notes:
        say(f"note: {note}", quiet)
    say(f"{made.items} items, {made.levels} levels", quiet)
    emit(str(out))
    return 0


def register(app: typer.Typer) -> None:
    """Add `sids` to the commands of `export`."""
    app.command("sids")(export_sids)
