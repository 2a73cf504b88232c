"""How audit and erase tell a report: rules on stdout, the verdict on stderr, the exit code from the gate alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.cli.progress import emit, say, stderr_console
from recerase.errors import WriteError

if TYPE_CHECKING:
    from recerase.types import Report


def tell(report: Report, outputs: Sequence[Path], *, as_json: bool = False, quiet: bool = False) -> int:
    """Show a report and return its exit code; $GITHUB_STEP_SUMMARY gets it as markdown when it is set."""
    from recerase.report.markdown import report_markdown
    from recerase.report.schema import report_bytes
    from recerase.report.text import rules_table, verdict_panel
    from recerase.store import append_text

    shown = report_bytes(report).decode() if as_json else rules_table(report.decision)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        told = report_markdown(report) + "\n"  # first: a bug here must not leave a verdict on stdout
        try:
            append_text(summary, told)
        except WriteError as error:  # the verdict stands, and the reports are where they were asked for
            say(f"warning: no step summary: {error.message}")
    emit(shown)
    if not quiet:
        stderr_console().print(verdict_panel(report))
        for path in outputs:
            say(f"report: {path}")
    return report.gate.exit_code
