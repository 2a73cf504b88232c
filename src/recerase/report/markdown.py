"""A report as Markdown for a pull request or a CI summary: the verdict, the rules, the numbers, what was not tested.

The decision that shaped this file: everything that did not come from recerase is escaped, so that a title or a concept
name can neither mark up the page, break a table, mention a person nor pull in an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recerase.report.labels import UNITS
from recerase.report.layers import headline_groups
from recerase.report.likeness import HEADERS, MEANING, RIGHT, TITLE, likeness_cells
from recerase.report.schema import SCHEMA, report_digest
from recerase.report.wording import (
    change_text,
    facts,
    gate_text,
    grouped_skips,
    interval_text,
    role_names,
    rules_tally,
    title_text,
    value_text,
)
from recerase.types import Report, Result

SUMMARY_BYTES = 900 * 1024
"""Most that a CI step summary gets: GitHub refuses one of more than 1 MiB whole."""
_SPECIAL = re.compile(r"[\\`*_\[\]#|~]")
_LINKED = re.compile(r"@(?!\d)|(?<=:)//|(?<=www)\.", re.IGNORECASE)
"""What GitHub links without any markup: names, addresses."""
_HOLDS = {True: "holds", False: "**broken**", None: "undecided"}


def report_markdown(report: Report) -> str:
    """The report in GitHub's Markdown. Equal reports give equal text."""
    blocks = [
        _head(report),
        *rule_blocks(report),
        *figure_blocks(report),
        *control_blocks(report),
        *limit_blocks(report),
        *provenance_blocks(report),
    ]
    return "\n\n".join(blocks) + "\n"


def capped_markdown(report: Report, most: int = SUMMARY_BYTES) -> str:
    """The report in Markdown, of at most `most` bytes: cut after a whole line, with a sentence that says so.

    Where not even that sentence has room, what is left of it. Raises ValueError for a negative `most`.
    """
    if most < 0:
        raise ValueError(f"nothing can be {most} bytes long")
    whole = report_markdown(report).encode()
    if len(whole) <= most:
        return whole.decode()
    note = (
        f"\n> **Cut here:** this report is {len(whole):,} bytes of Markdown and there was room for {most:,}. "
        "Write it whole with `-o FILE.md`, `.html` or `.json`.\n"
    ).encode()
    kept = whole[: max(0, most - len(note))]
    return (kept[: kept.rfind(b"\n") + 1] + note)[:most].decode(errors="ignore")


def escaped(text: str, length: int = 400) -> str:
    """Text from anywhere as Markdown that shows it as it is, on one line."""
    plain = title_text(text, length).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = _LINKED.sub(lambda found: f"&#{ord(found.group()[0])};{found.group()[1:]}", plain)
    return _SPECIAL.sub(lambda found: found.group() if _in_entity(found) else f"\\{found.group()}", plain)


def cell_text(text: str) -> str:
    """`escaped`, and nothing where there is nothing to say."""
    return escaped(text) if text else ""


def _in_entity(found: re.Match[str]) -> bool:
    return found.group() == "#" and found.string[found.start() - 1 : found.start()] == "&"


def _head(report: Report) -> str:
    decision, concept = report.decision, report.concept
    counts = [
        f"{concept[key]:,} {key}" for key in ("items", "interactions", "users") if isinstance(concept.get(key), int)
    ]
    lines = [
        f"# {decision.verdict.value.upper()}: {escaped(str(concept.get('name', 'concept')), 120)}",
        "",
        escaped(decision.reason, 600),
        "",
        f"**{escaped(gate_text(report.gate), 800)}**",
        "",
        f"{', '.join([*counts, f'rules: {rules_tally(report)}'])}.",
        *(f"\n> **Warning:** {escaped(warning)}" for warning in decision.warnings),
    ]
    return "\n".join(lines)


def rule_blocks(report: Report) -> list[str]:
    """The rules: heading and table."""
    rows = []
    for finding in report.decision.findings:
        found, result = finding.measurement, finding.result
        word = result.value if result is Result.PASS else f"**{result.value}**"
        measured = ("-", "", "") if found is None else (value_text(found), interval_text(found), f"{found.n:,}")
        reason = "" if result is Result.PASS else escaped(finding.reason)
        rows.append((word, escaped(finding.rule.id), *measured, escaped(finding.limit, 120), reason))
    if not rows:
        return ["## Rules", "The policy has no rules."]
    return ["## Rules", table_lines(("result", "rule", "value", "interval", "n", "limit", "reason"), rows, {2, 4})]


def figure_blocks(report: Report) -> list[str]:
    """The headline figures layer by layer, a column for each model; nothing where none was measured."""
    names, groups = role_names(report), headline_groups(report)
    if not groups:
        return []
    compared = "original" in names
    headers = ("measured", *names.values(), *(["change"] if compared else []))
    blocks = ["## Before and after" if names.get("original") == "before" else "## Measured", escaped(UNITS)]
    for group in groups:
        lines = [
            (
                escaped(row.label),
                *(value_text(row.by_role[role]) if role in row.by_role else "" for role in names),
                *([change_text(row)] if compared else []),
            )
            for row in group.rows
        ]
        blocks.append(f"{'####' if group.informs else '###'} {escaped(group.title)}")
        blocks += [table_lines(headers, lines, set(range(1, len(headers))))] if lines else []
        if group.layer == "behaviour" and not group.informs:
            blocks += _likeness(report)
    return blocks if any(group.layer == "behaviour" for group in groups) else [*blocks, *_likeness(report)]


def _likeness(report: Report) -> list[str]:
    """Whether the audited model could be one more of several references; nothing where there are no two."""
    rows = [tuple(cell_text(cell) for cell in row) for row in likeness_cells(report)]
    lines = [f"#### {escaped(TITLE)}", table_lines(HEADERS, rows, set(RIGHT)), escaped(MEANING, 800)]
    return lines if rows else []


def control_blocks(report: Report) -> list[str]:
    """The controls; nothing where none was run."""
    rows = [(c.name, _HOLDS[c.holds], escaped(c.expected), escaped(c.observed)) for c in report.decision.controls]
    return ["## Controls", table_lines(("control", "result", "expected", "observed"), rows, set())] if rows else []


def limit_blocks(report: Report) -> list[str]:
    """What a pass does not mean, and what was skipped and why."""
    lines = [f"- {escaped(limit)}" for limit in report.limits]
    lines += [f"- {escaped(', '.join(names))}: {escaped(reason)}" for reason, names in grouped_skips(report.skipped)]
    return ["## Not tested", "\n".join(lines)] if lines else []


def provenance_blocks(report: Report) -> list[str]:
    """Method and digests."""
    digests = {**report.inputs, "this audit": report_digest(report)}
    rows = digest_rows(digests)
    method = {key: value for key, value in report.method.items() if key != "changes"}
    told = (
        [f"Method: {'; '.join(f'{escaped(name)} {escaped(text)}' for name, text in facts(method))}."] if method else []
    )
    return ["## Provenance", *told, table_lines(("input", "sha256"), rows, set()), f"Schema `{SCHEMA}`."]


def digest_rows(digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and digests as cells of a table."""
    return [
        (escaped(name), f"`{re.sub('[^0-9A-Za-z:]', '', digest)[:64]}`") for name, digest in sorted(digests.items())
    ]


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    """A table of cells that are escaped already; the columns `right` are set flush right."""
    rule = ["---:" if i in right else "---" for i in range(len(headers))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rule, *rows))
