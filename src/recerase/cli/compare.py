"""`recerase compare`: methods and seeds side by side on one checkpoint."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recerase.cli.options import (
    CheckpointArgument,
    ConceptOption,
    DataOption,
    DeviceOption,
    EarlierOption,
    EmbeddingsOption,
    LayoutOption,
    LayoutSetOption,
    MaxUsersOption,
    NameOption,
    QuietOption,
    SeedOption,
    SettingsOption,
    ThreadsOption,
    TrustOption,
    YesOption,
    choose,
    concept_spec,
    earlier_specs,
    layout_options,
    read_settings,
)
from recerase.cli.progress import emit, observing, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recerase.api import PlannedCell

_COULD_NOT_FINISH = 3


class ScopesName(str, Enum):
    """What is to be free of the concept."""

    output = "output"
    influence = "influence"
    both = "both"


def compare(
    checkpoint: CheckpointArgument = None,
    concept: ConceptOption = None,
    data: DataOption = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", "-m", metavar="A,B", help="Methods, or method/preset, or all: see `recerase list methods`."
        ),
    ] = "tracer,renormalise,npo",
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Every method runs once with each.")] = "0,1,2",
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Reports, and the cells that a later run continues from or adds to."),
    ] = Path("comparison"),
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", metavar="CKPT", help="A checkpoint trained without the concept. Repeat for seeds."),
    ] = None,
    already: EarlierOption = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of a method. Repeat.")
    ] = None,
    scope: Annotated[
        ScopesName,
        typer.Option("--scope", help="output: never recommended. influence: nor may it steer. both: a table each."),
    ] = ScopesName.output,
    search: Annotated[
        int,
        typer.Option(
            "--search",
            metavar="N",
            min=0,
            help="Try N settings of every method's strength, its own first, and take the one that validation users choose. "
            "0: its own, untuned.",
        ),
    ] = 0,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, max=1, help="Share of NDCG@10 on validation users a setting may cost.")
    ] = 0.02,
    keep_tried: Annotated[
        bool,
        typer.Option("--keep-tried", help="Keep the models a search tried and did not choose.", show_default=False),
    ] = False,
    relearn: Annotated[
        bool,
        typer.Option("--relearn", help="Attack every model by fine-tuning: how soon is it back?", show_default=False),
    ] = False,
    ucan: Annotated[
        int, typer.Option("--ucan", metavar="N", min=0, help="Add U-CAN's figures, on at most N training pairs a kind.")
    ] = 0,
    beam: Annotated[
        int | None, typer.Option("--beam", metavar="W", min=10, help="Beam width of lists; wider costs more.")
    ] = None,
    training_seconds: Annotated[
        float | None,
        typer.Option(
            "--training-seconds", metavar="S", help="What training took, where the checkpoint does not say, for shares."
        ),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", metavar="FILE", help="Also write the comparison: .json, .md, .html. Repeat."),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="List the cells and which are done; make and write nothing.", show_default=False),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make every cell anew.", show_default=False)] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the reports of another comparison in --out.", show_default=False)
    ] = False,
    max_users: MaxUsersOption = None,
    search_users: Annotated[
        int | None,
        typer.Option(
            "--search-users",
            metavar="N",
            min=1,
            help="Validation users a search reads. Default: as many as are tested.",
        ),
    ] = None,
    mass_users: Annotated[
        int | None,
        typer.Option(
            "--mass-users", metavar="N", min=1, help="Users whose exact concept mass is read. Default: 1,000."
        ),
    ] = None,
    name: NameOption = None,
    yes: YesOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    embeddings: EmbeddingsOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Compare erasing methods on a checkpoint: leakage, likeness, utility and cost in one table, with the front of both.

    Every erased model is a cell in --out, kept under the digest of all it depends on: a killed run continues, and every cell is
    a checkpoint that `recerase audit` reads. A method that refuses is a row; exit code 3: all of them did.

    **Examples**

        recerase compare model --concept brand=Acme --data data --methods tracer,npo,graddiff --out compared

        recerase compare model --concept brand=Acme --data data -m tracer,npo --search 8 --reference gold0 --reference gold1

        recerase compare model --concept brand=Acme --data data -m all --set unlearnrec.prepared=ready --relearn --plan
    """
    from recerase import api
    from recerase.comparing.asked import read_seeds
    from recerase.runtime import RunConfig

    known = read_settings(settings)
    source = choose(checkpoint, known.checkpoint, "CKPT", "checkpoint")
    spec = concept_spec(choose(concept, known.concepts, "--concept", "concepts"), name, yes)
    place = choose(data, known.data, "--data", "data")
    asked = api.CompareConfig(
        methods=tuple(methods.split(",")),
        seeds=read_seeds(seeds),
        overrides=tuple(overrides or ()),
        scope=scope.value,
        search=search,
        max_drop=max_drop,
        max_users=max_users,
        search_users=search_users,
        mass_users=mass_users,
        beam=beam,
        relearn=relearn,
        ucan=ucan,
        keep_tried=keep_tried,
        training_seconds=training_seconds,
    )
    run = RunConfig(
        seed=seed,
        threads=threads,
        device=device,
        trust_pickle=trust_pickle,
        layout=layout,
        layout_options=layout_options(layout_set),
        embeddings=embeddings,
    )
    references = reference or list(known.reference)
    with observing(quiet) as observer:
        if plan:
            cells = api.plan_compare(
                source,
                spec,
                place,
                out,
                asked,
                references=references,
                earlier=earlier_specs(already),
                fresh=fresh,
                run=run,
                observer=observer,
            )
            return _tell_plan(cells)
        made = api.compare(
            source,
            spec,
            place,
            out,
            asked,
            references=references,
            earlier=earlier_specs(already),
            outputs=output or (),
            force=force,
            fresh=fresh,
            run=run,
            observer=observer,
        )
    from recerase.report.compared_text import comparison_text

    emit(comparison_text(made))
    for path in output or ():
        say(f"comparison: {path}", quiet)
    emit(str(out))
    if any(row.kind == "method" and row.seeds for row in made.rows):
        return 0
    say("no method made a model", quiet)
    return _COULD_NOT_FINISH


def _tell_plan(cells: Sequence[PlannedCell]) -> int:
    from recerase.cli.tables import Rows

    rows = [
        (
            cell.method,
            cell.scope,
            cell.seed,
            "validation" if cell.part == "valid" else cell.part,
            ", ".join(f"{name}={value:.4g}" for name, value in cell.settings.items()) or "its own",
            cell.state,
        )
        for cell in cells
    ]
    emit(Rows(f"{len(cells)} cells", ("method", "scope", "seed", "users", "settings", "state"), rows))
    return 0
