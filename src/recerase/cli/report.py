"""`recerase report`: read a report again, and check that it is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import OutputOption
from recerase.cli.progress import emit, say

app = typer.Typer(help="Show and verify audit reports.", no_args_is_help=True)

ReportArgument = Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report written by audit or erase.")]


@app.command("show")
def show(path: ReportArgument, output: OutputOption = None) -> int:
    """Show a report, or write it in other formats.

    **Examples**

        recerase report show audit.json

        recerase report show audit.json -o audit.html -o audit.md
    """
    from recerase import api
    from recerase.report.schema import read_report
    from recerase.report.text import report_text

    report = read_report(path)
    for target in output or ():
        api.write_report(report, target)
        say(f"report: {target}")
    emit(report_text(report))
    return 0


@app.command("verify")
def verify(
    path: ReportArgument,
    subject: Annotated[
        Path | None, typer.Option("--subject", metavar="CKPT", help="Is this the checkpoint that was audited?")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Is this the data it was read on?")] = None,
) -> int:
    """Check a report: canonical bytes, a verdict that follows from its own numbers, and the digests of what it names.

    Exit code 0 when everything holds, 4 when something does not; the verdict itself is `recerase report show`.

    **Examples**

        recerase report verify audit.json

        recerase report verify audit.json --subject erased --data data
    """
    from recerase import api

    problems = api.verify_report(path, subject=subject, data=data)
    for problem in problems:
        say(f"problem: {problem}")
    emit(f"{path}: {'does not hold' if problems else 'holds'}")
    return 4 if problems else 0
