"""The audit audits itself: models whose verdict is known beforehand must get it.

The decision that shaped this file: a layer is "failed" or "passed" by the same pure `policy.decide`, on the control's
own measurements put in the subject's place, so that the controls test the very rules that gate. Where the policy has
no rule for a layer, the shipped default policy's rules stand in: without any the audit could not tell. They cannot stand
in for every layer: no model fails a policy that asks nothing about the concept, so there the original shows nothing.
Left out are `aliasing.*`, a fact about a table that neither a filter nor a reference changes, and rules that compare the
control with itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Literal

from recerase.audit.cards import MetricSpec, metrics
from recerase.audit.policy import decide, default_policy, in_force
from recerase.limits import forgiven
from recerase.types import (
    Control,
    Finding,
    Layer,
    Measurement,
    Policy,
    Profile,
    ReferenceFigures,
    Result,
    Role,
    Rule,
    Scope,
    Skipped,
)

Outcome = Literal["fails", "passes", "undecided"]
ControlRole = Literal["original", "filter", "reference"]

EXPECTED: Mapping[ControlRole, tuple[str, Mapping[Layer, Outcome]]] = {
    "original": ("fails every layer", {"catalogue": "fails", "behaviour": "fails", "weights": "fails"}),
    "filter": (
        "passes catalogue, fails behaviour and weights",
        {"catalogue": "passes", "behaviour": "fails", "weights": "fails"},
    ),
    "reference": ("passes", {"catalogue": "passes", "behaviour": "passes", "weights": "passes"}),
}
"""What is said to be expected, and the layers on which it is tested; weights only where the profile measured that layer."""


def judge_controls(
    policy: Policy,
    measurements: Sequence[Measurement],
    skipped: Sequence[Skipped],
    concept: str,
    today: date,
    profile: Profile | None = None,
    scope: Scope = "output",
    references: Sequence[ReferenceFigures] = (),
) -> tuple[Control, ...]:
    """One Control each for original, filter and (only if it was measured) reference.

    Of several `references` each is judged on what it showed itself: their mean would hide one that knows the concept.
    `measurements` are those of every role, comparisons included. `holds` is None when the control was not run or its
    numbers decide neither way. Rules are those that an audit of that profile (None: the policy's) and scope asks. What stays in the
    weights decides a control where it was measured and the policy itself asks about it, in a rule that must be decided: the
    default policy's rules do not stand in, for its numbers would say nothing of the rules that gate.
    """
    profile = profile or policy.profile
    policy = in_force(policy, profile, scope)
    default = in_force(default_policy(), profile, scope)
    present = {m.role for m in measurements}
    controls = []
    for role, (expected, layers) in EXPECTED.items():
        if role in present:
            asked = {layer: layer_rules(policy, layer, role, default) for layer in layers}
            if role == "reference" and references:
                others = [m for m in measurements if m.role != role]
                each = [
                    _judge(role, expected, asked, policy, [*others, *x.measurements], x.skipped, concept, today)
                    for x in references
                ]
                controls.append(_all_of(each))
                continue
            controls.append(_judge(role, expected, asked, policy, measurements, skipped, concept, today))
        elif role != "reference":
            controls.append(Control(role, expected, "not run: no original checkpoint was given", None))
    return tuple(controls)


def _all_of(each: Sequence[Control]) -> Control:
    """The references as one control: it holds where every one does, and it says which does not."""
    holds = False if any(c.holds is False for c in each) else None if any(c.holds is None for c in each) else True
    said: dict[str, list[int]] = {}
    for i in sorted(range(len(each)), key=lambda i: ({False: 0, None: 1, True: 2}[each[i].holds], i)):
        said.setdefault(each[i].observed, []).append(i + 1)
    told = [
        f"{'references' if len(which) > 1 else 'reference'} {', '.join(map(str, which))}: {observed}"
        for observed, which in said.items()
    ]
    return replace(each[0], observed="; ".join(told), holds=holds)


def layer_rules(policy: Policy, layer: Layer, role: Role, default: Policy | None = None) -> tuple[Rule, ...]:
    """The rules on which `role` is judged in `layer`: the policy's own, or else, but for weights, those of `default` (the shipped
    policy)."""
    known = metrics()
    for source in (policy, default or default_policy()) if layer != "weights" else (policy,):
        rules = tuple(rule for rule in source.rules if _speaks(rule, layer, role, known))
        if rules:
            return rules
    return ()


def _speaks(rule: Rule, layer: Layer, role: Role, known: Mapping[str, MetricSpec]) -> bool:
    itself = role in (rule.max_ratio_to, rule.min_ratio_to, rule.max_drop_vs)
    return _asks(rule, (layer,), known) and not itself


def _asks(rule: Rule, layers: Collection[Layer], known: Mapping[str, MetricSpec]) -> bool:
    spec = known.get(rule.metric)
    return spec is not None and spec.layer in layers and not rule.metric.startswith("aliasing.")


def _judge(
    role: ControlRole,
    expected: str,
    asked: Mapping[Layer, tuple[Rule, ...]],
    policy: Policy,
    measurements: Sequence[Measurement],
    skipped: Sequence[Skipped],
    concept: str,
    today: date,
) -> Control:
    own = [replace(m, role="subject") for m in measurements if m.role == role]
    others = [m for m in measurements if m.role not in (role, "subject")]
    missing = [replace(s, role="subject") for s in skipped if s.role == role]
    observed, met = [], []
    layers = EXPECTED[role][1]
    for layer, rules in asked.items():
        if layer == "weights" and (why := _unjudged(own, rules)):
            observed.append(why)
            continue
        judged = replace(policy, rules=tuple(replace(rule, profile=None, scope=None) for rule in rules), waivers=())
        outcome, why = layer_outcome(decide(judged, [*own, *others], missing, (), concept, today).findings)
        observed.append(f"{outcome} {layer} ({why})" if why else f"{outcome} {layer}")
        met.append(None if outcome == "undecided" else outcome == layers[layer])
    holds = False if False in met else None if None in met else True
    if holds and not any(_asks(rule, layers, metrics()) and not rule.optional for rule in policy.rules):
        observed, holds = ["no rule that must be decided asks about the concept, so any model may pass"], None
    return Control(role, expected, "; ".join(observed), holds)


def _unjudged(own: Sequence[Measurement], rules: Sequence[Rule]) -> str:
    """Why what stays in the weights does not count for a control with these numbers, or nothing where it does."""
    if not any(m.layer == "weights" for m in own):
        return "weights layer not measured"
    return (
        "" if any(not rule.optional for rule in rules) else "no rule that must be decided asks about the weights layer"
    )


def layer_outcome(findings: Sequence[Finding]) -> tuple[Outcome, str]:
    """A layer fails when a rule fails, passes when every rule that is not forgiven passes; and on account of what.

    No rule passed is undecided: not measured is never passed.
    """
    failed = [f for f in findings if f.result is Result.FAIL]
    if failed:
        return "fails", _told(failed[0])
    open_ = [f for f in findings if f.result is Result.INCONCLUSIVE and not forgiven(f)]
    if open_ or not any(f.result is Result.PASS for f in findings):
        return "undecided", f"{open_[0].rule.metric}: {open_[0].reason}" if open_ else "no rule could be measured"
    return "passes", ""


def _told(finding: Finding) -> str:
    value = "" if finding.measurement is None else f" = {finding.measurement.value:.3g}"
    return f"{finding.rule.metric}{value}, limit {finding.limit}"
