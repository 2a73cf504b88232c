"""A report as a model card: Markdown under the YAML front matter that Hugging Face reads, for the audited checkpoint.

The decision that shaped this file: a card says what the report says and nothing that a report cannot know. Licence, base
model and the name of the data set are its owner's to add; metrics in `model-index` are those of the audited checkpoint,
under recerase's own names, and are never marked as verified. Keys are those of huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from recerase.report.markdown import (
    control_blocks,
    escaped,
    figure_blocks,
    limit_blocks,
    provenance_blocks,
    rule_blocks,
)
from recerase.report.schema import report_digest
from recerase.report.wording import facts, gate_text, headline_rows, title_text
from recerase.types import Report, Verdict

_TAGS = ("recerase", "generative-recommendation", "semantic-ids", "machine-unlearning", "concept-erasure")
_UNPRINTED = re.compile("[^\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML 1.1 does not allow in a document, escaped or not."""
_MEANS = {
    Verdict.PASS: "No rule of the policy that was asked is violated for this concept, on the histories and attacks that were "
    "tried, unless it was waived; rules that were waived, or are optional and could not be decided (none with a value beyond its "
    "limit), are in the table below, "
    "those that this audit did not ask among its limitations.",
    Verdict.FAIL: "At least one rule of the policy is violated. Do not serve this checkpoint as one without the concept.",
    Verdict.INCONCLUSIVE: "The audit could not decide. Do not take it for a pass.",
}


def report_card(report: Report) -> str:
    """The whole card. Equal reports give equal text."""
    blocks = [
        "\n".join(["---", *_front_matter(report), "---"]),
        f"# Checkpoint audited for {escaped(_concept(report), 120)}: {report.decision.verdict.value.upper()}",
        "\n".join(
            [escaped(report.decision.reason, 600), "", f"**{escaped(gate_text(report.gate), 800)}**"]
            + [f"\n> **Warning:** {escaped(warning)}" for warning in report.decision.warnings]
        ),
        *_details(report),
        "## Intended use",
        f"{_MEANS[report.decision.verdict]} A verdict is about one concept, one policy and one data set, by the digests below. "
        "It is no statement that data of particular users was forgotten.",
        "## Evaluation",
        *(block.replace("## ", "### ", 1) for block in (*rule_blocks(report), *figure_blocks(report))),
        *(block.replace("## ", "### ", 1) for block in control_blocks(report)),
        *(block.replace("## Not tested", "## Limitations: what was not tested") for block in limit_blocks(report)),
        *provenance_blocks(report),
        *_reproduced(report),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(report: Report) -> Iterator[str]:
    yield "tags:"
    yield from (f"- {tag}" for tag in _TAGS)
    metrics = [
        (metric, row.label, row.by_role["subject"].value)
        for row in headline_rows(report)
        for metric in (row.metric,)
        if "subject" in row.by_role and math.isfinite(row.by_role["subject"].value)
    ]
    if metrics:
        data = report.inputs.get("data", "")
        yield "model-index:"
        yield f"- name: {_quoted(f'audited for {_concept(report)}')}"
        yield "  results:"
        yield "  - task:"
        yield "      type: generative-recommendation"
        yield "    dataset:"
        yield f"      name: {_quoted(f'catalogue and histories with sha256 {data}')}"
        yield "      type: private"
        yield "    metrics:"
        for metric, label, value in metrics:
            yield f"    - type: {_quoted(metric)}"
            yield f"      name: {_quoted(label)}"
            yield f"      value: {_float(value)}"
            yield "      verified: false"
    yield "recerase:"
    yield f"  verdict: {_quoted(report.decision.verdict.value)}"
    yield f"  exit_code: {report.gate.exit_code}"
    yield f"  concept: {_quoted(_concept(report))}"
    yield f"  audit: {_quoted(report_digest(report))}"


def _details(report: Report) -> list[str]:
    concept = {key: value for key, value in report.concept.items() if key not in ("name", "digest")}
    method = {key: value for key, value in report.method.items() if key != "changes"}
    changes = report.method.get("changes", {})
    blocks = ["## Model details", _listed("The concept", concept)]
    blocks.append(_listed("How it was erased", method) if method else "How it was erased is not known to this report.")
    if isinstance(changes, dict) and changes:
        blocks.append(_listed("What that changed", changes))
    if report.moves:
        blocks.append(f"{len(report.moves):,} items have another SID than before; the JSON report names each.")
    return blocks


def _listed(title: str, values: object) -> str:
    lines = facts(values) if isinstance(values, dict) else ()
    return "\n".join([f"{title}:", "", *(f"- {escaped(name)}: {escaped(text)}" for name, text in lines)])


def _reproduced(report: Report) -> list[str]:
    command = report.run.get("command")
    if not command:
        return []
    return ["## Reproduce", f"    {_UNPRINTED.sub(' ', title_text(str(command), 2000))}"]


def _concept(report: Report) -> str:
    return title_text(str(report.concept.get("name", "concept")))


def _float(value: float) -> str:
    """A number that YAML 1.1 reads as one: its exponent needs a point before it."""
    written = repr(float(value))
    return written if "." in written else written.replace("e", ".0e")


def _quoted(text: str) -> str:
    """A YAML scalar in double quotes; JSON's quoting is YAML's, but for characters that YAML does not allow."""
    return json.dumps(_UNPRINTED.sub("\ufffd", title_text(text, 400)), ensure_ascii=False)
