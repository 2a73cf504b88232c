"""`recerase inspect`: what is this?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import JsonOption, QuietOption, TrustOption
from recerase.cli.progress import emit, say


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Checkpoint, SID directory, data directory or report.")],
    as_json: JsonOption = False,
    trust_pickle: TrustOption = False,
    quiet: QuietOption = False,
) -> int:
    """Say what a path holds: layout, levels, vocabulary rows, collisions, tied weights, and what is wrong with it.

    Exit code 4 when its files are not what its manifest says.

    **Examples**

        recerase inspect model

        recerase inspect data --json
    """
    from recerase import api
    from recerase.cli.tables import facts_table
    from recerase.runtime import RunConfig
    from recerase.store import canonical_json

    found = api.inspect(path, run=RunConfig(trust_pickle=trust_pickle))
    if as_json:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # a path may be no text; JSON must be
        whole = {"path": name, "kind": found.kind, "facts": dict(found.facts), "problems": list(found.problems)}
        emit(canonical_json(whole).decode())
    else:
        emit(facts_table(f"{path}: {found.kind}", found.facts))
        for problem in found.problems:
            say(f"problem: {problem}", quiet)
    return 4 if found.broken else 0
