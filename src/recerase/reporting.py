"""Report files: where they may be written, how they are, which audit was accepted, and whether one still holds.

The one decision: a report is written by its extension, every format from the same value and all of them rendered
before the first is written; it is read back by its seal, and believed only where its own numbers give its verdict.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from recerase.assembly import ConceptSpec, as_paths, data_digest
from recerase.audit.gate import accepted, gate
from recerase.catalog import load_catalogue
from recerase.errors import ArtefactError, UsageError, WriteError
from recerase.report.baseline import baseline_bytes, load_baseline, parse_baseline
from recerase.report.schema import read_report, report_bytes, report_digest
from recerase.store import (
    MANIFEST,
    check_file_output,
    read_bytes,
    sha256_bytes,
    sha256_file,
    verify_manifest,
    write_bytes,
)
from recerase.types import Baseline, FailOn, Report

_FORMATS = {
    ".json": ("recerase.report.schema", "report_bytes"),
    ".md": ("recerase.report.markdown", "report_markdown"),
    ".html": ("recerase.report.html", "report_html"),
    ".xml": ("recerase.report.junit", "report_junit"),
    ".sarif": ("recerase.report.sarif", "report_sarif"),
}
_COMPARE = "Bless a report of this concept with `recerase report bless`."


def check_outputs(outputs: Sequence[str | Path], inputs: Sequence[Path] = ()) -> None:
    """Refuse report files that could not be written, or are inputs, before any work is done. Raises UsageError."""
    for path in map(Path, outputs):
        if path.suffix.lower() not in _FORMATS:
            raise UsageError(f"{path} has no known report format.", f"Use one of {', '.join(_FORMATS)}.")
        check_file_output(path, inputs=inputs, force=True)


def render_report(report: Report, path: str | Path) -> bytes:
    """A report in the format that the extension of `path` names."""
    module, function = _FORMATS[Path(path).suffix.lower()]
    content = getattr(import_module(module), function)(report)
    return content if isinstance(content, bytes) else str(content).encode()


def render_reports(report: Report, paths: Sequence[str | Path]) -> dict[Path, bytes]:
    """A report in every format asked for; nothing is written."""
    check_outputs(paths)
    return {Path(path): render_report(report, path) for path in paths}


def write_report(report: Report, path: str | Path) -> None:
    """Write a report in the format that the extension names, replacing what was there."""
    write_reports(report, [path])


def write_reports(report: Report, paths: Sequence[str | Path]) -> None:
    """Write a report to every one of `paths`, or to none that was not there before when one cannot be made."""
    write_rendered(render_reports(report, paths))


def write_rendered(contents: Mapping[Path, bytes]) -> None:
    """Write report files; when one cannot be written, those that were not there before go again. Raises WriteError."""
    new = [path for path in contents if not path.exists()]
    try:
        for path, content in contents.items():
            write_bytes(path, content)
    except WriteError:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def bless_report(path: str | Path, out: str | Path, reason: str, *, force: bool = False) -> Baseline:
    """Accept the audit in a report file, and write what later audits are held against to `out`.

    Raises UsageError without a reason, ArtefactError when the report does not hold.
    """
    if not reason.strip():
        raise UsageError("A baseline needs a reason.", 'Say who accepts this audit and why: --reason "ticket 412".')
    check_file_output(out, inputs=[Path(path)], force=force)
    problems = verify_report(path)
    if problems:
        raise ArtefactError(f"{path} cannot be accepted: {problems[0]}", "Audit again.")
    report = read_report(path)
    data = baseline_bytes(accepted(report, report_digest(report), reason.strip(), date.today()))
    write_bytes(out, data)
    return parse_baseline(data)


def read_baseline(path: str | Path | None, fail_on: FailOn, spec: ConceptSpec | None = None) -> Baseline | None:
    """The baseline to hold an audit against. Raises ArtefactError or UsageError before any work is done.

    `spec` is the concept as far as it is known by then: its name is compared, its items once there is a report.
    """
    if path is None:
        if fail_on == "regression":
            raise UsageError("--fail-on regression has nothing to compare with.", "Pass --baseline FILE.")
        return None
    baseline = load_baseline(path)
    name = None if spec is None else spec.name or ", ".join(written.strip() for written in spec.specs)
    if name is not None and name != baseline.concept:
        raise UsageError(f"{path} is a baseline of the concept {baseline.concept!r}, not of {name!r}.", _COMPARE)
    return baseline


def check_baseline(baseline: Baseline | None, name: str, digest: str) -> None:
    """Raise UsageError unless the baseline, if there is one, is of the concept of this name and these items."""
    if baseline is not None and (baseline.concept, baseline.concept_digest) != (name, digest):
        other = "other items" if baseline.concept == name else f"the concept {baseline.concept!r}"
        raise UsageError(f"The baseline is of {other}, not of {name!r} as it is now.", _COMPARE)


def gated(report: Report, fail_on: FailOn, baseline: Baseline | None) -> Report:
    """The report with the exit code that `fail_on` asks for. Raises UsageError for a baseline of another concept."""
    check_baseline(baseline, str(report.concept.get("name", "")), str(report.concept.get("digest", "")))
    inputs = report.inputs if baseline is None else {**report.inputs, "baseline": baseline.digest}
    return replace(report, gate=gate(report.decision, fail_on, baseline), inputs=inputs)


def verify_report(
    path: str | Path,
    *,
    subject: str | Path | None = None,
    original: str | Path | None = None,
    reference: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    policy: str | Path | None = None,
    baseline: str | Path | None = None,
    layout: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, ...]:
    """What does not hold about a report, one sentence each: its verdict and exit code, the digests of what it names.

    A report.json inside a checkpoint directory is held against that directory unasked. `layout` and `options` say how checkpoints
    of other tools are read, as they did for the audit. Raises ArtefactError when the file itself is not what its seal says,
    UsageError for an option that no layout has.
    """
    from recerase.audit.recheck import inconsistencies
    from recerase.layouts.registry import check_options, recognised

    check_options(options)
    path = Path(path)
    report = read_report(path)
    if subject is None and path.name == "report.json" and recognised(path.absolute().parent):
        subject = path.absolute().parent
    problems = [] if read_bytes(path) == report_bytes(report) else ["Its numbers are not as recerase writes them."]
    try:
        held = load_baseline(baseline) if baseline is not None else None
    except ArtefactError as error:
        held = None
        problems.append(error.message)
    if held is not None and held.digest != report.inputs.get("baseline"):
        problems.append(f"{baseline} is not the baseline that the exit code rests on.")
        held = None
    problems += inconsistencies(report, held)
    given = [("subject", subject), ("original", original), *(("reference", place) for place in as_paths(reference))]
    for role, place in [*given, ("data", data), ("policy", policy)]:
        problems += [] if place is None else _unlike(report, role, Path(place), layout, options)
    return tuple(problems)


def write_card(path: str | Path, out: str | Path, *, force: bool = False) -> Path:
    """Write the model card of the report at `path` to `out`. Raises ArtefactError when it is no report as it was written."""
    from recerase.report.card import report_card

    check_file_output(out, inputs=[Path(path)], force=force)
    write_bytes(out, report_card(read_report(path)).encode())
    return Path(out)


def attest_report(
    path: str | Path,
    checkpoint: str | Path | None,
    out: str | Path,
    *,
    url: str | None = None,
    layout: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
    force: bool = False,
) -> int:
    """Write an in-toto statement of the verdict in the report at `path` about the files of `checkpoint`; returns how many.

    `checkpoint` None: the directory that the report lies in. Its files are all below it but hidden ones and the report itself.
    Raises ArtefactError when the report does not hold, or is of another checkpoint than this one.
    """
    from recerase.disk import listing
    from recerase.report.intoto import report_statement

    path, place = Path(path), Path(path).absolute().parent if checkpoint is None else Path(checkpoint)
    check_file_output(out, inputs=[path], force=force)
    if not place.is_dir():
        raise UsageError(f"{place} is not a directory.", "Give the checkpoint that was audited.")
    problems = verify_report(path, subject=place, layout=layout, options=options)
    if problems:
        raise ArtefactError(f"{path} says nothing of {place}: {problems[0]}", "Audit this checkpoint, and attest that.")
    besides = {os.path.realpath(path), os.path.realpath(out)}
    names = [name for name, _ in listing(place) if not any(part.startswith(".") for part in Path(name).parts)]
    files = {name: sha256_file(place / name) for name in names if os.path.realpath(place / name) not in besides}
    statement = report_statement(read_report(path), files, sha256_bytes(read_bytes(path)), url)
    write_bytes(out, statement)
    return len(files)


def _unlike(report: Report, role: str, place: Path, name: str | None, options: Mapping[str, str]) -> Iterator[str]:
    """A sentence when what is at `place` is not what the report names as `role`, or cannot be read."""
    from recerase.audit.earlier import with_earlier
    from recerase.audit.policy import load_policy
    from recerase.layouts.registry import detect_layout

    if role not in report.inputs:
        yield f"The report names no {role}, so {place} is not its."
        return
    try:
        if role == "data":
            found = data_digest(load_catalogue(place))
        elif role == "policy":
            asked = load_policy(place)
            found = (
                with_earlier(asked) if any(m.metric.startswith("earlier.") for m in report.measurements) else asked
            ).digest
        else:
            layout = detect_layout(place, name)
            if layout.name == "native" or (place / MANIFEST).is_file():
                verify_manifest(place)
            if layout.digest is None:
                raise UsageError(
                    f"{place} is of layout {layout.name}, whose digest is not told by its files alone.", ""
                )
            found = layout.digest(place, layout.mine(options))
    except (ArtefactError, UsageError) as error:
        yield error.message
        return
    if found not in _digests_of(report, role):
        yield f"{place} is not the {role} of this audit: its digest differs."


def _digests_of(report: Report, role: str) -> tuple[str, ...]:
    """The digest of a role; of references, of which there may be several, those of all."""
    further = [name for name in report.inputs if name.startswith(f"{role}.")]
    return tuple(report.inputs[name] for name in (role, *further))
