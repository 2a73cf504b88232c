"""`recerase erase`: take a concept out, and publish what is proved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recerase.cli.options import (
    AnnotateOption,
    CheckpointArgument,
    ConceptOption,
    DataOption,
    DeviceOption,
    EarlierOption,
    EmbeddingsOption,
    ForceOption,
    LayoutOption,
    LayoutSetOption,
    MaxUsersOption,
    NameOption,
    OutputOption,
    PolicyOption,
    QuietOption,
    ReferenceOption,
    ResumeOption,
    ScopeName,
    ScopeOption,
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
from recerase.cli.verdict import tell
from recerase.errors import UsageError

if TYPE_CHECKING:
    from recerase.api import Plan


def erase(
    checkpoint: CheckpointArgument = None,
    concept: ConceptOption = None,
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="CKPT2", help="Where to publish the checkpoint.")] = Path(
        "erased"
    ),
    method: Annotated[
        str, typer.Option("--method", "-m", help="Method, or method/preset: see `recerase list methods`.")
    ] = "tracer",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method. Repeat.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done, and write nothing.", show_default=False)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --plan: canonical JSON on stdout.", show_default=False)
    ] = False,
    grow: Annotated[
        str | None,
        typer.Option(
            "--grow-vocabulary",
            metavar="auto|N",
            help="Let items get codes that have no vocabulary row: rows are added to tokenizer, weights and config, those in use "
            "alone. auto: as many as are needed, or none; or the most to choose from. Default: none is.",
        ),
    ] = None,
    reference: ReferenceOption = None,
    already: EarlierOption = None,
    policy: PolicyOption = None,
    output: OutputOption = None,
    scope: ScopeOption = ScopeName.output,
    max_users: MaxUsersOption = None,
    name: NameOption = None,
    yes: YesOption = False,
    force: ForceOption = False,
    resume: ResumeOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    embeddings: EmbeddingsOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    settings: SettingsOption = None,
    annotate: AnnotateOption = None,
    quiet: QuietOption = False,
) -> int:
    """Erase a concept from a checkpoint, audit the result against the original, and publish it.

    The input is never written to. With exit code 1 (a rule is violated) nothing is published, and --output still
    gets the report; with 5 (inconclusive) the checkpoint is published and its report says what is missing.

    **Examples**

        recerase erase model --concept brand=Acme --data data --out erased

        recerase erase model --concept brand=Acme --data data --plan

        recerase erase model --concept brand=Acme --data data --out erased -m tracer/paper -o erase.html
    """
    from recerase import api
    from recerase.runtime import RunConfig
    from recerase.types import Verdict

    known = read_settings(settings)
    source = choose(checkpoint, known.checkpoint, "CKPT", "checkpoint")
    spec = concept_spec(choose(concept, known.concepts, "--concept", "concepts"), name, yes)
    place = choose(data, known.data, "--data", "data")
    if plan:
        return _tell_plan(
            api.plan_erase(
                source,
                spec,
                place,
                method=method,
                overrides=overrides or (),
                scope=scope.value,
                grow=grow,
                earlier=earlier_specs(already),
                run=RunConfig(
                    trust_pickle=trust_pickle,
                    layout=layout,
                    layout_options=layout_options(layout_set),
                    embeddings=embeddings,
                ),
            ),
            as_json,
        )
    if as_json:
        raise UsageError("--json goes with --plan.", "Write the report with --output FILE.json.")
    with observing(quiet) as observer:
        report = api.erase(
            source,
            spec,
            place,
            out,
            method=method,
            overrides=overrides or (),
            scope=scope.value,
            grow=grow,
            policy=policy or known.policy,
            reference=reference or known.reference,
            earlier=earlier_specs(already),
            max_users=max_users,
            outputs=output or (),
            resume=resume,
            force=force,
            run=RunConfig(
                seed=seed,
                threads=threads,
                device=device,
                trust_pickle=trust_pickle,
                layout=layout,
                layout_options=layout_options(layout_set),
                embeddings=embeddings,
            ),
            observer=observer,
        )
    code = tell(report, output or (), quiet=quiet, annotate=annotate)
    if report.decision.verdict is Verdict.FAIL:
        say("nothing was published: a rule is violated", quiet)
    else:
        emit(str(out))
    return code


def _tell_plan(plan: Plan, as_json: bool) -> int:
    from recerase.cli.tables import facts_table
    from recerase.store import canonical_json

    card = plan.method
    if as_json:
        method = {"name": card.name, **card.facts, "scope": plan.scope}
        facts = {"concept": plan.concept, "method": method, "settings": plan.settings, "vocabulary": plan.vocabulary}
        earlier = [dict(concept) for concept in plan.earlier]
        emit(canonical_json({**{name: dict(value) for name, value in facts.items()}, "erased": earlier}).decode())
        return 0
    emit(facts_table("concept", plan.concept))
    if plan.earlier:
        emit(facts_table("erased before", {str(c["name"]): f"{c['items']} items" for c in plan.earlier}))
    emit(facts_table(f"method {card.name}", {**card.facts, "scope": plan.scope}))
    emit(facts_table("settings", plan.settings))
    if plan.vocabulary:
        emit(facts_table("vocabulary", plan.vocabulary))
    return 0
