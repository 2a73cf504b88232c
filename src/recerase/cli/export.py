"""`recerase export`: a blocklist and a table of allowed prefixes, for those who must act before the new model ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recerase.cli.options import (
    CheckpointArgument,
    ConceptOption,
    DataOption,
    EmbeddingsOption,
    ForceOption,
    LayoutOption,
    LayoutSetOption,
    NameOption,
    QuietOption,
    SettingsOption,
    TrustOption,
    YesOption,
    choose,
    concept_spec,
    layout_options,
    read_settings,
)
from recerase.cli.progress import emit, observing, say

if TYPE_CHECKING:
    from recerase.runtime import RunConfig

app = typer.Typer(
    help="Write what a serving stack needs: blocklists and tables of allowed prefixes.", no_args_is_help=True
)


@app.command("blocklist")
def blocklist(
    checkpoint: CheckpointArgument = None,
    concept: ConceptOption = None,
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Format by extension: .json, .jsonl, .csv, .parquet.")
    ] = Path("blocklist.json"),
    name: NameOption = None,
    yes: YesOption = False,
    force: ForceOption = False,
    embeddings: EmbeddingsOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """List a concept's items with their SIDs, to stop showing them now, with the model as it is.

    Each item has its codes, vocabulary rows and (where the layout has them) tokens, and the retained items that share its SID:
    blocking that SID would hide those too. Hiding is not erasing. CKPT may be a SID table without a model. Where a
    concept is like:"...", give the --embeddings that the audit is given.

    **Examples**

        recerase export blocklist model --concept brand=Acme --data data --out blocklist.json
    """
    from recerase import api
    from recerase.exporting import HIDING

    known = read_settings(settings)
    with observing(quiet) as observer:
        made = api.export_blocklist(
            choose(checkpoint, known.checkpoint, "CKPT", "checkpoint"),
            concept_spec(choose(concept, known.concepts, "--concept", "concepts"), name, yes),
            choose(data, known.data, "--data", "data"),
            out,
            force=force,
            run=_run(trust_pickle, layout, layout_set, embeddings),
            observer=observer,
        )
    say(f"{made.items} items with {made.sids} SIDs are to be blocked; {made.without} items have no SID", quiet)
    if made.shared:
        say(f"{made.shared} of the SIDs are those of {made.retained} retained items too: block these by item id", quiet)
    say(HIDING, quiet)
    emit(str(made.path))
    return 0


@app.command("prefixes")
def prefixes(
    checkpoint: CheckpointArgument = None,
    concept: ConceptOption = None,
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Format by extension: .json, .parquet.")] = Path(
        "prefixes.json"
    ),
    name: NameOption = None,
    yes: YesOption = False,
    force: ForceOption = False,
    embeddings: EmbeddingsOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Write which vocabulary rows may follow which, for constrained decoding; with --concept, without its items.

    Without --concept it is the table of all listed items, whatever recerase.toml names.

    JSON is what a `prefix_allowed_tokens_fn` looks up: "row-row" (the rows generated so far) to the rows that may follow. Items of the
    concept that share a SID with a retained item stay within reach, and are named.

    **Examples**

        recerase export prefixes model --data data --out prefixes.json

        recerase export prefixes model --concept brand=Acme --data data --out prefixes.parquet
    """
    from recerase import api
    from recerase.exporting import HIDING

    known = read_settings(settings)
    with observing(quiet) as observer:
        made = api.export_prefixes(
            choose(checkpoint, known.checkpoint, "CKPT", "checkpoint"),
            choose(data, known.data, "--data", "data"),
            out,
            concept=concept_spec(concept, name, yes) if concept else None,
            force=force,
            run=_run(trust_pickle, layout, layout_set, embeddings),
            observer=observer,
        )
    without = f"; {made.hidden} items of the concept are left out" if concept else ""
    say(f"{made.prefixes} prefixes of {made.sids} SIDs{without}", quiet)
    if made.reachable:
        more = f" and {len(made.reachable) - 3} more" if len(made.reachable) > 3 else ""
        named = ", ".join(made.reachable[:3])
        say(f"{named}{more} share a SID with retained items and stay within reach: drop them by item id", quiet)
    if concept:
        say(HIDING, quiet)
    emit(str(made.path))
    return 0


def _run(trust_pickle: bool, layout: str | None, layout_set: list[str] | None, embeddings: Path | None) -> RunConfig:
    """Nothing is computed, so that no device is asked for."""
    from recerase.runtime import RunConfig

    return RunConfig(
        device="cpu",
        trust_pickle=trust_pickle,
        layout=layout,
        layout_options=layout_options(layout_set),
        embeddings=embeddings,
    )
