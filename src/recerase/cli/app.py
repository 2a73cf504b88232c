"""The command line: one file a command, put together here.

Command modules import nothing heavy at the top, so that `--help` answers at once; the library is loaded by the
command that runs. A command returns its exit code and lets errors rise to `__main__`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from recerase.cli import (
    audit,
    compare,
    concept,
    demo,
    doctor,
    erase,
    export,
    export_sids,
    import_data,
    inspect,
    listing,
    patch,
    policy,
    prepare,
    recommend,
    report,
    tokenize,
    train,
)
from recerase.cli.help import HelpCommand, HelpGroup

EPILOG = """
Exit codes: 0 pass or published · 1 a policy rule is violated · 2 usage, policy or concept spec · 3 could not finish ·
4 an artefact is missing or corrupt · 5 inconclusive · 130/143 interrupted.
"""

app = typer.Typer(
    name="recerase",
    help="Audit a generative recommender for a concept, erase it, and prove that it is out.\n\n"
    "Start with `recerase demo`: the whole job, offline, on an embedded catalogue.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from recerase import __version__
        from recerase.cli.progress import emit

        emit(f"recerase {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.", show_default=False)
    ] = False,
) -> None:
    """Options of the program itself."""


START, CHECKPOINT, PAPERS = "Data and models", "A concept and a checkpoint", "Reports and policies"

app.command("demo", rich_help_panel=START)(demo.demo)
app.command("doctor", rich_help_panel=START)(doctor.doctor)
app.command("import", rich_help_panel=START)(import_data.import_data)
app.command("tokenize", rich_help_panel=START)(tokenize.tokenize)
app.command("train", rich_help_panel=START)(train.train)
app.command("recommend", rich_help_panel=START)(recommend.recommend)
app.command("inspect", rich_help_panel=START)(inspect.inspect)
app.command("concept", rich_help_panel=CHECKPOINT)(concept.concept)
app.command("audit", rich_help_panel=CHECKPOINT)(audit.audit)
app.command("prepare", rich_help_panel=CHECKPOINT)(prepare.prepare)
app.command("erase", rich_help_panel=CHECKPOINT)(erase.erase)
app.command("compare", rich_help_panel=CHECKPOINT)(compare.compare)
export_sids.register(export.app)
app.add_typer(export.app, name="export", rich_help_panel=CHECKPOINT)
app.add_typer(patch.app, name="patch", rich_help_panel=CHECKPOINT)
app.add_typer(report.app, name="report", rich_help_panel=PAPERS)
app.add_typer(policy.app, name="policy", rich_help_panel=PAPERS)
app.command("list", rich_help_panel=PAPERS)(listing.list_parts)

for group in (app, export.app, patch.app, report.app, policy.app):
    group.info.cls = HelpGroup
    for command in group.registered_commands:
        command.cls = HelpCommand
