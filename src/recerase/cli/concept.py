"""`recerase concept`: what a concept spec names, before anything is done to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import DataOption, JsonOption, SettingsOption, choose, concept_spec, read_settings
from recerase.cli.progress import emit


def concept(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="SPEC...", help="Concept specs; several are a union, ! takes out.")
    ] = None,
    data: DataOption = None,
    sids: Annotated[
        Path | None,
        typer.Option(
            "--sids", metavar="DIR", help="SID directory or checkpoint: adds shared codes, borderline items and like:."
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Items to list.")] = 10,
    as_json: JsonOption = False,
    settings: SettingsOption = None,
) -> int:
    """Preview a concept: items, interactions and users touched, shared codes, items on its border.

    Nothing is refused for its size here; audit and erase refuse more than 25 % of the catalogue without --yes.

    **Examples**

        recerase concept brand=Acme --data data

        recerase concept 'category="E-cigarettes"' 'title~"\\bvape\\b"' '!item:B00X1' --data data --sids model
    """
    from recerase import api
    from recerase.cli.tables import concept_facts, concept_tables
    from recerase.store import canonical_json

    known = read_settings(settings)
    chosen, seen, catalogue = api.concept_preview(
        choose(data, known.data, "--data", "data"),
        concept_spec(choose(specs, known.concepts, "SPEC", "concepts"), allow_large=True),
        sids=sids or known.checkpoint,
        show=show,
    )
    if as_json:
        emit(canonical_json(concept_facts(chosen, seen, catalogue, show)).decode())
        return 0
    for table in concept_tables(chosen, seen, catalogue, show):
        emit(table)
    return 0
