"""`recerase demo`: the whole job, offline, on a catalogue of our own making."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, QuietOption, SeedOption
from recerase.cli.progress import emit, observing, say
from recerase.cli.verdict import tell


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything it makes goes.")] = Path(
        "demo-out"
    ),
    seed: SeedOption = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="torch threads; fixed, so that every machine gets the same demo.")
    ] = 2,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> int:
    """Make a catalogue, tokenize it, train a recommender, erase a concept from it, and audit before and after.

    About a minute on two cores; nothing is downloaded. Leaves data/, sids/, model/, erased/ and the report as HTML,
    Markdown and JSON under --out, to be used with every other command.

    **Examples**

        recerase demo

        recerase demo --out demo-out --force
    """
    from recerase import api
    from recerase.runtime import RunConfig

    with observing(quiet) as observer:
        made = api.demo(out, force=force, run=RunConfig(seed=seed, threads=threads, device="cpu"), observer=observer)
    code = tell(made.report, [out / name for name in made.reports], quiet=quiet)
    erased = out / "erased"
    next_step = f"try: recerase inspect {erased}" if erased.is_dir() else "a rule failed, so nothing was published"
    say(f"the whole job took {made.seconds:.0f} s; {next_step}", quiet)
    emit(str(out))
    return code
