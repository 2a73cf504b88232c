"""Whether a report's verdict follows from its own numbers: everything that is decided is decided again.

The one decision: nothing in a report is believed because it stands there. Controls, findings, verdict and exit code
are pure functions of the policy and the measurements beside them, so they are made again and held against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from recerase.audit.cards import card_of, cards_beyond
from recerase.audit.controls import judge_controls
from recerase.audit.gate import concluded, gate
from recerase.audit.policy import decide
from recerase.audit.policy_file import policy_digest
from recerase.report.codec import encode
from recerase.report.schema import decision_document
from recerase.types import Baseline, Control, Decision, Gate, Measurement, Policy, Report, Scope


def inconsistencies(report: Report, baseline: Baseline | None = None) -> tuple[str, ...]:
    """What in a report does not follow from the rest of it, one sentence each; `baseline` is the one it was held against.

    Without the baseline the exit code is made again from what the report says is worse or undecided.
    """
    if report.policy is None:
        return ("The report has no policy, so its verdict cannot be made again.",)
    if not _is_day(report.decision.as_of):
        return (f"as_of is {report.decision.as_of!r:.40}, which is no date.",)
    found = [
        *_digests(report, report.policy),
        *_profile(report),
        *_references(report),
        *_decision(report, report.policy),
    ]
    return tuple([*found, *_gate(report, baseline)])


def _digests(report: Report, policy: Policy) -> Iterator[str]:
    said = report.inputs.get("policy", "")
    if policy.digest and policy.digest != policy_digest(policy):
        yield "policy.digest is not the digest of the policy in the report."
    if said != policy.digest:
        yield "inputs.policy is not the digest of the policy in the report."
    if "concept" in report.inputs and report.inputs["concept"] != report.concept.get("digest"):
        yield "inputs.concept is not the digest of the concept in the report."
    if report.gate.baseline != report.inputs.get("baseline", ""):
        yield "inputs.baseline is not the baseline that the exit code rests on."


def _profile(report: Report) -> Iterator[str]:
    """Rules of a wider profile are not asked: what its probes measured is not to be put aside by a word."""
    profile, measured = report.decision.profile, [m.metric for m in report.measurements]
    wider = [
        card.name for metric in measured if (card := card_of(metric)) in cards_beyond(profile) and card is not None
    ]
    if wider:
        yield f"profile is {profile!r}, but {', '.join(dict.fromkeys(wider))} measured, which it does not run."


def _references(report: Report) -> Iterator[str]:
    """What the role shows is made again from what each of several references showed; verdicts on likeness from their numbers."""
    from recerase.audit.references import alike, pooled, reference_names

    names = tuple(x.name for x in report.references)
    given = {name for name in report.inputs if name.partition(".")[0] == "reference"}
    if (names or len(given) > 1) and (names != reference_names(len(names)) or {*names} != given):
        yield f"references are {', '.join(names) or 'none'}, but inputs name {', '.join(sorted(given)) or 'none'}."
        return
    if report.likeness and len(names) < 2:
        yield "likeness is told, but there are no two references."
    if not names:
        return
    if any(m.role != "reference" for x in report.references for m in x.measurements):
        yield "what references showed holds a figure of another role."
    role = [m for m in report.measurements if m.role == "reference"]
    made = pooled([[m for m in x.measurements if m.kind == "value"] for x in report.references])
    told, again = (
        {m.metric: encode(m, Measurement, "") for m in some if isinstance(m, Measurement) and m.kind == "value"}
        for some in (role, made)
    )
    for metric in dict.fromkeys([*told, *again]):
        if told.get(metric) != again.get(metric):
            yield f"the reference's {metric} is not what its {len(names)} models come to together."
    yield from _compared(report)
    yield from _likeness(report)
    for row in report.likeness:
        if (verdict := alike(row)) != row.verdict:
            yield f"likeness of {row.metric} is {row.verdict!r}, but its own numbers give {verdict!r}."


def _compared(report: Report) -> Iterator[str]:
    """Comparisons with the mean of several references hold those with each of them."""
    from recerase.audit.references import alone

    plain = {(m.metric, m.role): m for m in report.measurements if m.kind == "value"}
    for m in report.measurements:
        own = plain.get((m.metric, m.role))
        if m.versus != "reference" or m.interval is None or own is None:
            continue
        golds = [g for x in report.references for g in x.measurements if g.kind == "value" and g.metric == m.metric]
        if not all(m.interval.low <= end <= m.interval.high for end in alone(m, own, golds)):
            yield f"the {m.role}'s {m.kind} of {m.metric} to the references does not hold that to each of them."


def _likeness(report: Report) -> Iterator[str]:
    """Rows of likeness are all there, their values those of the figures beside them, and their limits such as there can be."""
    from recerase.audit.equivalence import CEILING, FLOOR, LEAST_REFERENCES, LEGS
    from recerase.audit.likeness import LIMIT
    from recerase.audit.references import AUC

    own = {m.metric: m.value for m in report.measurements if m.role == "subject" and m.kind == "value"}
    golds = [{m.metric: m.value for m in x.measurements if m.kind == "value"} for x in report.references]
    bases = {name: [x[gold] for x in golds if gold in x] for name, gold in LEGS}
    wanted = [*(name for name, _ in LEGS if name in own and bases[name]), AUC]
    if sorted(row.metric for row in report.likeness) != sorted(wanted):
        yield f"likeness is told of {len(report.likeness)} figures, and not once of each of {', '.join(wanted)}."
        return
    itself = report.inputs.get("subject", "") in [report.inputs.get(x.name) for x in report.references]
    for row in report.likeness:
        if row.metric == AUC:
            among = math.nan if row.auc_references is None else row.auc_references
            value, limits = (math.nan if row.auc is None else row.auc) - among, (LIMIT, LIMIT)
        else:
            base, limits = bases[row.metric], (FLOOR, CEILING)
            value = own[row.metric] / math.exp(sum(map(math.log, base)) / len(base)) if min(base) > 0 else math.nan
        fits = row.value is None or math.isclose(row.value, value, rel_tol=1e-6, abs_tol=1e-12)
        if not fits or (itself and row.verdict != "not known"):
            yield f"likeness of {row.metric} is not what the figures of the references come to."
        few = row.metric != AUC and len(bases[row.metric]) < LEAST_REFERENCES
        if row.limit is not None and (few or not limits[0] - 1e-9 <= row.limit <= limits[1] + 1e-9):
            yield f"likeness of {row.metric} is held against {row.limit:g}, which is no limit of {len(golds)} references."


def _decision(report: Report, policy: Policy) -> Iterator[str]:
    decision, name = report.decision, str(report.concept.get("name", ""))
    today = date.fromisoformat(decision.as_of) if decision.as_of else date.min
    scope: Scope = "influence" if report.concept.get("scope") == "influence" else "output"
    given = (policy, report.measurements, report.skipped, name, today, decision.profile, scope)
    controls = judge_controls(*given, report.references)
    again = decide(policy, report.measurements, report.skipped, controls, name, today, decision.profile, scope)
    yield from _differing(_told(decision), _told(again))


def _gate(report: Report, baseline: Baseline | None) -> Iterator[str]:
    said = report.gate
    if baseline is not None and said.baseline == baseline.digest:
        again = gate(report.decision, said.fail_on, baseline)
    elif said.fail_on == "regression" and not said.baseline:
        yield "gate.baseline is empty, though the exit code is said to rest on one."
        return
    else:
        again = concluded(report.decision, said.fail_on, said.regressions, said.undecided, said.baseline)
        if not said.baseline:
            again = gate(report.decision, said.fail_on)
    yield from _differing(encode(said, Gate, "gate"), encode(again, Gate, "gate"), "gate.")


def _told(decision: Decision) -> dict[str, Any]:
    """A decision with its rules and controls by name, so that what differs can be named."""
    document = decision_document(decision)
    controls = {control.name: encode(control, Control, "") for control in decision.controls}
    rules = {f"{place} ({rule['rule']['id']:.60})": rule for place, rule in enumerate(document.pop("rules"))}
    return {**document, "controls": controls, "rules": rules}


def _differing(said: Mapping[str, Any], again: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """One sentence for each field, as deep as two objects go, that is not what it comes to when it is made again."""
    for key in sorted({*said, *again}):
        one, other = said.get(key), again.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differing(one, other, f"{where}{key}.")
        elif one != other:
            yield f"{where}{key} is {one!r:.80}, but the report's own numbers give {other!r:.80}."


def _is_day(text: str) -> bool:
    try:
        return not text or bool(date.fromisoformat(text))
    except ValueError:
        return False
