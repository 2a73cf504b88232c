"""`recerase report`: read a report again, compare two, accept one, and check that it is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recerase.cli.options import ForceOption, JsonOption, LayoutOption, LayoutSetOption, OutputOption, layout_options
from recerase.cli.progress import emit, say

app = typer.Typer(help="Show, compare, accept and verify audit reports.", no_args_is_help=True)

ReportArgument = Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report written by audit or erase.")]


@app.command("show")
def show(path: ReportArgument, output: OutputOption = None) -> int:
    """Show a report, or write it in other formats.

    **Examples**

        recerase report show audit.json

        recerase report show audit.json -o audit.html -o audit.xml -o audit.sarif
    """
    from recerase import api
    from recerase.report.schema import read_report
    from recerase.report.text import report_text
    from recerase.reporting import check_outputs

    check_outputs(output or (), [path])
    report = read_report(path)
    api.write_reports(report, output or ())
    for target in output or ():
        say(f"report: {target}")
    emit(report_text(report))
    return 0


@app.command("diff")
def diff(
    first: ReportArgument,
    second: Annotated[Path, typer.Argument(metavar="OTHER.json", help="The report to hold it against.")],
    as_json: JsonOption = False,
) -> int:
    """Show two reports side by side, rule by rule. Exit code 0 whatever they say; `audit --baseline` judges.

    **Examples**

        recerase report diff before.json after.json
    """
    from recerase.report.diff import diff_document
    from recerase.report.schema import read_report
    from recerase.report.text import diff_table
    from recerase.store import canonical_json

    before, after = read_report(first), read_report(second)
    if before.concept.get("digest") != after.concept.get("digest"):
        say("note: these are audits of two different concepts")
    emit(canonical_json(diff_document(before, after)).decode() if as_json else diff_table(before, after))
    return 0


@app.command("bless")
def bless(
    path: ReportArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Who accepts this audit, and why.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path("baseline.json"),
    force: ForceOption = False,
) -> int:
    """Accept an audit: what it found is what `audit --baseline FILE --fail-on regression` holds later ones against.

    **Examples**

        recerase report bless audit.json --out baseline.json --reason "known leak, ticket 412"
    """
    from recerase import api

    baseline = api.bless_report(path, out, reason, force=force)
    say(f"accepted: {baseline.verdict.value}, {len(baseline.rules)} rules, concept {baseline.concept!r}")
    emit(str(out))
    return 0


@app.command("verify")
def verify(
    path: ReportArgument,
    subject: Annotated[
        Path | None, typer.Option("--subject", metavar="CKPT", help="Is this the checkpoint that was audited?")
    ] = None,
    original: Annotated[
        Path | None, typer.Option("--original", metavar="CKPT", help="Is this what it was held against?")
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", metavar="CKPT", help="Is this a reference it was held against? Repeat."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Is this the data it was read on?")] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Is this the policy it was decided by?")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="Is this the baseline its exit code rests on?")
    ] = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
) -> int:
    """Check a report: its seal, a verdict that follows from its own numbers, and the digests of what it names.

    Controls, rules, verdict and exit code are decided again from the measurements and the policy in the report. A
    report.json inside a checkpoint is held against that checkpoint. --layout and --layout-set as they were given to audit.
    Exit code 0 when everything holds, else 4.

    **Examples**

        recerase report verify audit.json

        recerase report verify audit.json --subject erased --original model --data data
    """
    from recerase import api

    problems = api.verify_report(
        path,
        subject=subject,
        original=original,
        reference=reference,
        data=data,
        policy=policy,
        baseline=baseline,
        layout=layout,
        options=dict(layout_options(layout_set)),
    )
    for problem in problems:
        say(f"problem: {problem}")
    emit(f"{path}: {'does not hold' if problems else 'holds'}")
    return 4 if problems else 0


@app.command("schema")
def schema() -> int:
    """Print the JSON Schema (draft 2020-12) that every JSON report of an audit keeps to.

    **Examples**

        recerase report schema
    """
    from recerase.report.json_schema import schema_text

    emit(schema_text())
    return 0


@app.command("card")
def card(
    path: ReportArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path("README.md"),
    force: ForceOption = False,
) -> int:
    """Write a model card for the audited checkpoint: Markdown with the front matter that Hugging Face reads.

    It says what the report says. Licence, base model and data set are yours to add.

    **Examples**

        recerase report card audit.json --out README.md
    """
    from recerase import api

    emit(str(api.write_card(path, out, force=force)))
    return 0


@app.command("attest")
def attest(
    path: ReportArgument,
    subject: Annotated[
        Path | None,
        typer.Option("--subject", metavar="CKPT", help="The checkpoint. Default: the directory the report lies in."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path(
        "verdict.intoto.json"
    ),
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Where the run of the audit can be seen.")
    ] = None,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    force: ForceOption = False,
) -> int:
    """Write an in-toto statement of the verdict about the checkpoint's files, by sha256; sign it with your own tool.

    Predicate: https://in-toto.io/attestation/test-result/v0.1. PASSED: a pass with nothing waived, skipped or warned of.
    WARNED: a pass with. FAILED: anything else, so also what is inconclusive. Exit code 4 when the report does not hold or
    is of another checkpoint; else 0, whatever the verdict.

    **Examples**

        recerase report attest erased/report.json

        recerase report attest audit.json --subject erased --out verdict.intoto.json
    """
    from recerase import api

    options = dict(layout_options(layout_set))
    count = api.attest_report(path, subject, out, url=url, layout=layout, options=options, force=force)
    say(f"attested: {count} files; the statement is not signed")
    emit(str(out))
    return 0
