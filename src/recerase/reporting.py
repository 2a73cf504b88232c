"""Report files: where they may be written, how they are, and whether one that is found still holds.

The one decision: a report is written by its extension and read back by its digest; nothing here measures or decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from recerase.assembly import data_digest
from recerase.audit.gate import gate
from recerase.catalog import load_catalogue
from recerase.errors import UsageError
from recerase.store import write_bytes
from recerase.types import FailOn, Report

_FORMATS = {
    ".json": ("recerase.report.schema", "report_bytes"),
    ".md": ("recerase.report.markdown", "report_markdown"),
    ".html": ("recerase.report.html", "report_html"),
}


def check_outputs(outputs: Sequence[str | Path], inputs: Sequence[Path] = ()) -> None:
    """Refuse report files that could not be written, or are inputs, before any work is done. Raises UsageError."""
    for path in map(Path, outputs):
        if path.suffix.lower() not in _FORMATS:
            raise UsageError(f"{path} has no known report format.", f"Use one of {', '.join(_FORMATS)}.")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{path} is in a directory that does not exist.", "Make the directory first.")


def write_report(report: Report, path: str | Path) -> None:
    """Write a report in the format that the extension names, replacing what was there."""
    check_outputs([path])
    module, function = _FORMATS[Path(path).suffix.lower()]
    content = getattr(import_module(module), function)(report)
    write_bytes(path, content if isinstance(content, bytes) else content.encode())


def read_baseline(path: str | Path | None, fail_on: FailOn) -> Report | None:
    """The baseline to hold an audit against. Raises ArtefactError or UsageError before any work is done."""
    return None


def gated(report: Report, fail_on: FailOn, baseline: Report | None) -> Report:
    """The report with the exit code that `fail_on` asks for."""
    return replace(report, gate=gate(report.decision, fail_on))


def verify_report(
    path: str | Path, *, subject: str | Path | None = None, data: str | Path | None = None
) -> tuple[str, ...]:
    """What does not hold about a report, one sentence each: its bytes, its verdict, the digests of what it names."""
    from recerase.layouts.native import checkpoint_digest
    from recerase.report.schema import read_report, report_bytes

    path, report = Path(path), read_report(path)
    problems = []
    if path.read_bytes().strip() != report_bytes(report).strip():
        problems.append(f"{path} is not in canonical form: it was edited, or written by another version.")
    if subject is not None and checkpoint_digest(Path(subject)) != report.inputs.get("subject"):
        problems.append(f"{subject} is not the checkpoint that was audited.")
    if data is not None and data_digest(load_catalogue(data)) != report.inputs.get("data"):
        problems.append(f"{data} is not the data the audit was made on.")
    return tuple(problems)
