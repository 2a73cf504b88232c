"""`recerase audit`: probes, policy, verdict; the exit code is the verdict's."""

from __future__ import annotations

from typing import Annotated

import typer

from recerase.cli.options import (
    AnnotateOption,
    BaselineOption,
    CheckpointArgument,
    ConceptOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    EarlierOption,
    EmbeddingsOption,
    FailOnName,
    FailOnOption,
    HeldOutOption,
    LayoutOption,
    LayoutSetOption,
    MaxUsersOption,
    NameOption,
    OriginalOption,
    OutputOption,
    PolicyOption,
    ProfileName,
    ProfileOption,
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
from recerase.cli.progress import observing
from recerase.cli.verdict import tell


def audit(
    checkpoint: CheckpointArgument = None,
    concept: ConceptOption = None,
    data: DataOption = None,
    original: OriginalOption = None,
    reference: ReferenceOption = None,
    already: EarlierOption = None,
    held_out: HeldOutOption = None,
    policy: PolicyOption = None,
    baseline: BaselineOption = None,
    fail_on: FailOnOption = FailOnName.policy,
    output: OutputOption = None,
    scope: ScopeOption = ScopeName.output,
    profile: ProfileOption = None,
    max_users: MaxUsersOption = None,
    name: NameOption = None,
    yes: YesOption = False,
    resume: ResumeOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The whole report as canonical JSON on stdout.", show_default=False)
    ] = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    embeddings: EmbeddingsOption = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    settings: SettingsOption = None,
    annotate: AnnotateOption = None,
    quiet: QuietOption = False,
) -> int:
    """Audit a checkpoint for a concept: is it recommended, and could it be?

    Exit codes: 0 every rule passes, 1 a rule is violated, 5 inconclusive (say, no --original to hold it against).
    Before it starts, stderr says about how long each probe will take, from a few timed readings of this model.
    With a recerase.toml that names data, checkpoint, concepts and policy, a bare `recerase audit` is a CI step.

    **Examples**

        recerase audit model --concept brand=Acme --data data

        recerase audit erased --original model --concept brand=Acme --data data -o audit.json -o audit.html

        recerase audit erased --original model --concept brand=Acme --data data --profile standard

        recerase audit erased --original model --reference retrained --concept 'category="Vaping"' --data data

        recerase audit erased --original model --concept brand=Acme --held-out 'text~"acme"' --profile standard --data data

        recerase audit erased --original model --reference gold0 --reference gold1 --reference gold2 --concept brand=Acme --data data
    """
    from recerase import api
    from recerase.runtime import RunConfig

    known = read_settings(settings)
    source = choose(checkpoint, known.checkpoint, "CKPT", "checkpoint")
    spec = concept_spec(choose(concept, known.concepts, "--concept", "concepts"), name, yes)
    place = choose(data, known.data, "--data", "data")
    asked = profile or (ProfileName(known.profile) if known.profile is not None else None)
    with observing(quiet) as observer:
        report = api.audit(
            source,
            spec,
            place,
            policy=policy or known.policy,
            original=original or known.original,
            reference=reference or known.reference,
            earlier=earlier_specs(already),
            held_out=concept_spec(held_out, "held out", allow_large=True) if held_out else None,
            scope=scope.value,
            profile=asked.value if asked is not None else None,
            max_users=max_users,
            baseline=baseline,
            fail_on=fail_on.value,
            outputs=output or (),
            resume=resume,
            run=RunConfig(
                seed=seed,
                threads=threads,
                device=device,
                dtype=dtype,
                trust_pickle=trust_pickle,
                layout=layout,
                layout_options=layout_options(layout_set),
                embeddings=embeddings,
            ),
            observer=observer,
        )
    return tell(report, output or (), as_json=as_json, quiet=quiet, annotate=annotate)
