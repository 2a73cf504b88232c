"""`recerase import`: other people's files become a data directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, QuietOption
from recerase.cli.progress import emit, say


def import_data(
    reader: Annotated[str, typer.Argument(metavar="READER", help="csv, jsonl, movielens, amazon or recbole.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="The reader's files, items first.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to publish the data directory.")] = Path(
        "data"
    ),
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> int:
    """Turn other files into a data directory (items.parquet, interactions.parquet), validated.

    **Examples**

        recerase import csv items.csv interactions.csv --out data

        recerase import movielens ml-100k --out data

        recerase import amazon meta.json.gz reviews.json.gz --out data
    """
    from recerase import api

    catalogue = api.import_data(reader, paths, out, force=force)
    say(
        f"{len(catalogue.items)} items, {len(catalogue.interactions)} interactions of "
        f"{catalogue.interactions.n_users} users",
        quiet,
    )
    emit(str(out))
    return 0
