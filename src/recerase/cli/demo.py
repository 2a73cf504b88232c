"""`recerase demo`: the whole job, offline, on a catalogue of our own making."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, QuietOption, SeedOption
from recerase.cli.progress import emit, observing, say, stderr_console
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
    from recerase.demo import REPORTS
    from recerase.demo import demo as make
    from recerase.report.text import before_after_table
    from recerase.runtime import RunConfig

    with observing(quiet) as observer:
        made = make(out, force=force, run=RunConfig(seed=seed, threads=threads, device="cpu"), observer=observer)
    verdict = made.before.decision.verdict
    say(f"audit of the original: {verdict.value.upper()} (exit code {verdict.exit_code}); see {out}/before.html", quiet)
    if not quiet:
        stderr_console().print(before_after_table(made.after))
    code = tell(made.after, [out / name for name in REPORTS], quiet=quiet)
    erased = out / "erased"
    next_step = f"try: recerase inspect {erased}" if erased.is_dir() else "a rule failed, so nothing was published"
    say(f"audit of the erased model: {made.after.decision.verdict.value.upper()} (exit code {code})", quiet)
    say(f"the whole job took {made.seconds:.0f} s; {next_step}", quiet)
    emit(str(out))
    return code
