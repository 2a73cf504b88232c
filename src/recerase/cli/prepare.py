"""`recerase prepare`: what a method learns of a checkpoint once, to answer every later request faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import (
    CheckpointArgument,
    DataOption,
    DeviceOption,
    EarlierOption,
    ForceOption,
    LayoutOption,
    LayoutSetOption,
    QuietOption,
    SeedOption,
    SettingsOption,
    ThreadsOption,
    TrustOption,
    choose,
    earlier_specs,
    layout_options,
    read_settings,
)
from recerase.cli.progress import emit, observing, say


def prepare(
    checkpoint: CheckpointArgument = None,
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="PREP", help="The directory to publish.")] = Path("prepared"),
    method: Annotated[
        str, typer.Option("--method", "-m", help="A method that prepares: see `recerase list methods`.")
    ] = "unlearnrec",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method. Repeat.")
    ] = None,
    already: EarlierOption = None,
    force: ForceOption = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    settings: SettingsOption = None,
    quiet: QuietOption = False,
) -> int:
    """Let a method learn of a checkpoint, once, what it needs to answer any request to erase.

    No concept to erase is named yet. `erase` and `compare` take the result for this checkpoint, SID table and what was erased
    before alone (give them the same --already-erased); without it, the method prepares for its own request.

    **Examples**

        recerase prepare model --data data --method unlearnrec --out prepared

        recerase erase model --concept brand=Acme --data data --out erased -m unlearnrec --set prepared=prepared
    """
    from recerase import api
    from recerase.runtime import RunConfig

    known = read_settings(settings)
    with observing(quiet) as observer:
        made = api.prepare(
            choose(checkpoint, known.checkpoint, "CKPT", "checkpoint"),
            choose(data, known.data, "--data", "data"),
            out,
            method=method,
            overrides=overrides or (),
            earlier=earlier_specs(already),
            force=force,
            run=RunConfig(
                seed=seed,
                threads=threads,
                device=device,
                trust_pickle=trust_pickle,
                layout=layout,
                layout_options=layout_options(layout_set),
            ),
            observer=observer,
        )
    say(f"{made.method}: {', '.join(f'{name} {value}' for name, value in made.facts['losses'].items())}", quiet)
    emit(str(made.path))
    return 0
