"""`recerase inspect`: what is this?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from recerase.cli.options import (
    DataOption,
    EmbeddingsOption,
    JsonOption,
    LayoutOption,
    LayoutSetOption,
    QuietOption,
    TrustOption,
    layout_options,
)
from recerase.cli.progress import emit, say


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Checkpoint, SID directory, data directory or report.")],
    data: DataOption = None,
    embeddings: EmbeddingsOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    as_json: JsonOption = False,
    trust_pickle: TrustOption = False,
    quiet: QuietOption = False,
) -> int:
    """Say what a path holds: layout, levels, vocabulary rows, collisions, tied weights, and what is wrong with it.

    Checkpoints of other tools are read as they are, with what is known to go wrong with each; --data DIR adds how far
    codebooks fitted to their SIDs reproduce them.

    Exit code 4 when its files are not what its manifest says.

    **Examples**

        recerase inspect model

        recerase inspect data --json

        recerase inspect letter --layout letter-tiger --layout-set sids=Beauty.index.json
    """
    from recerase import api
    from recerase.cli.tables import facts_table
    from recerase.runtime import RunConfig
    from recerase.store import canonical_json

    run = RunConfig(
        trust_pickle=trust_pickle, layout=layout, layout_options=layout_options(layout_set), embeddings=embeddings
    )
    found = api.inspect(path, data=data, run=run)
    if as_json:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # a path may be no text; JSON must be
        whole: dict[str, Any] = {
            "path": name,
            "kind": found.kind,
            "facts": dict(found.facts),
            "problems": list(found.problems),
        }
        if found.checkpoint is not None:
            whole["traps"] = [{"what": what, "remedy": remedy} for what, remedy in found.traps]
        emit(canonical_json(whole).decode())
    else:
        emit(facts_table(f"{path}: {found.kind}", found.facts))
        for problem in found.problems:
            say(f"problem: {problem}", quiet)
        for what, remedy in found.traps:
            say(f"note: {what} {remedy}", quiet)
    return 4 if found.broken else 0
