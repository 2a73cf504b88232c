"""How audit and erase tell a report: rules on stdout, the verdict on stderr, the exit code from the gate alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.cli.progress import emit, emit_annotations, say, stderr_console
from recerase.errors import WriteError

if TYPE_CHECKING:
    from recerase.types import Report


def tell(
    report: Report,
    outputs: Sequence[Path],
    *,
    as_json: bool = False,
    quiet: bool = False,
    annotate: bool | None = None,
) -> int:
    """Show a report and return its exit code.

    $GITHUB_STEP_SUMMARY gets it as Markdown when it is set, and stderr GitHub's annotations, `annotate` or not; None: when
    $GITHUB_ACTIONS is true.
    """
    from recerase.report.annotations import report_annotations
    from recerase.report.schema import report_bytes
    from recerase.report.text import rules_table, verdict_panel

    wanted = os.environ.get("GITHUB_ACTIONS") == "true" if annotate is None else annotate
    shown = report_bytes(report).decode() if as_json else rules_table(report.decision)
    annotations = report_annotations(report) if wanted else ""
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _summarise(report, summary)  # first: a bug here must not leave a verdict on stdout
    emit(shown)
    if annotations:
        emit_annotations(annotations)
    if not quiet:
        stderr_console().print(verdict_panel(report))
        for path in outputs:
            say(f"report: {path}")
    return report.gate.exit_code


def _summarise(report: Report, path: str) -> None:
    """Add the report to a step summary that may hold something already, as far as there is room."""
    from recerase.report.markdown import SUMMARY_BYTES, capped_markdown
    from recerase.store import append_text

    try:
        held = os.path.getsize(path)
    except OSError:
        held = 0
    told = capped_markdown(report, max(0, SUMMARY_BYTES - held - 1)) + "\n"
    try:
        append_text(path, told)
    except WriteError as error:  # the verdict stands, and the reports are where they were asked for
        say(f"warning: no step summary: {error.message}")
