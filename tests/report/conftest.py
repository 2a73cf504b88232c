"""A report of every kind, made without a model: erased and audited, untouched, or full of hostile text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recerase.types import (
    Control,
    Decision,
    Example,
    Finding,
    Gate,
    Interval,
    Measurement,
    Move,
    Policy,
    Report,
    Result,
    Role,
    Rule,
    Skipped,
    Verdict,
)

N = 4210
ORIGINAL = {
    "natural.exposure@10": 0.0712,
    "natural.hit@10": 0.318,
    "natural_concept_users.exposure@10": 0.214,
    "saturated.exposure@10": 0.836,
    "neighbours.exposure@10": 0.287,
    "replay.exposure@10": 0.0712,
    "natural.mass.old": 0.0684,
    "natural.mass.new": 0.0684,
    "natural_concept_users.mass.old": 0.205,
    "saturated.mass.old": 0.794,
    "nearest.leak@r25": 0.0921,
    "free.old_concept": 0.0655,
    "aliasing.shared_sid": 0.0,
}
ERASED = {
    **dict.fromkeys(ORIGINAL, 0.0),
    "natural.mass.old": 8.3e-5,
    "natural.mass.new": 2.1e-5,
    "natural_concept_users.mass.old": 1.7e-4,
    "saturated.mass.old": 2.4e-3,
    "nearest.leak@r25": 0.0031,
}
REFERENCE = {**dict.fromkeys(ORIGINAL, 0.0), "natural.mass.old": 6.2e-5, "saturated.mass.old": 9.0e-5}
UTILITY = {
    "utility.recall@10": (0.1421, 0.1409, 0.1432),
    "utility.ndcg@10": (0.0832, 0.0826, 0.0838),
    "utility_concept_users.ndcg@10": (0.0790, 0.0761, 0.0801),
    "utility_neighbours.ndcg@10": (0.0911, 0.0858, 0.0934),
    "utility.coverage@10": (0.712, 0.704, 0.709),
}
HOSTILE = (
    "<script>alert('titles are data')</script>",
    "</td></table><img src=x onerror=alert(1)>",
    ']]> CDATA & <!-- comment --> "quotes" {{ 7 * 7 }} {% raw %}',
    "Vape kit \U0001f32c️ \U0001f469‍\U0001f469‍\U0001f467 deluxe",
    "سيجارة إلكترونية قابلة لإعادة الشحن",
    "override \u202e gnp.exe and a bell \x07 and \x1b[31mred\x1b[0m",
    "[bold red]markup[/] | pipes | `ticks` *stars* _under_ [link](javascript:alert(1))",
    "x" * 10_000,
    "",
    "line\nbreaks\r\nand\ttabs",
)

MakeReport = Callable[..., Report]


def interval(value: float, n: int, width: float = 0.12) -> Interval:
    if value == 0:
        return Interval(0.0, -math.log(0.05) / n, 0.95, "rule-of-three")
    return Interval(value * (1 - width), value * (1 + width), 0.95, "bootstrap")


def measurement(metric: str, role: Role, value: float, **more: Any) -> Measurement:
    layer = "utility" if metric.startswith("utility") else "behaviour" if "mass" in metric else "catalogue"
    better = "higher" if layer == "utility" else "lower"
    around = Interval(value, value, 0.95, "exact") if metric.startswith("aliasing") else interval(value, N)
    made = Measurement(metric, role, value, N, layer, around, better=better, values=np.full(3, value))
    return replace(made, **more)


def measurements(roles: dict[Role, dict[str, float]]) -> tuple[Measurement, ...]:
    order: dict[Role, int] = {"original": 0, "filter": 0, "subject": 1, "reference": 2}
    plain = [measurement(metric, role, value) for role, by in roles.items() for metric, value in by.items()]
    plain += [measurement(metric, role, by[order[role]]) for role in roles for metric, by in UTILITY.items()]
    drops = [
        measurement(
            metric,
            "subject",
            1 - by[1] / by[0],
            kind="drop",
            versus="original",
            better="lower",
            interval=Interval(0.5 - by[1] / by[0] * 0.5 - 0.011, 1.2 - by[1] / by[0] * 1.2 + 0.009, 0.95, "bootstrap"),
            values=None,
        )
        for metric, by in UTILITY.items()
        if "original" in roles and "coverage" not in metric
    ]
    return (*plain, *drops)


def findings(found: tuple[Measurement, ...], failing: bool) -> tuple[Finding, ...]:
    by = {(m.metric, m.role, m.kind): m for m in found}
    limits = {
        "natural.exposure@10": 0.001,
        "saturated.exposure@10": 0.01,
        "natural.mass.old": 0.001,
        "saturated.mass.old": 0.01,
        "nearest.leak@r25": 0.01,
        "aliasing.shared_sid": 0.0,
    }
    made = []
    for metric, limit in limits.items():
        own = by[metric, "subject", "value"]
        result = Result.FAIL if own.value > limit else Result.PASS
        reason = f"{own.value:.3g} is {'above' if result is Result.FAIL else 'within'} the limit."
        made.append(Finding(Rule(metric.split("@")[0], metric, max=limit), result, reason, own, f"<= {limit:g}"))
    drop = by.get(("utility.ndcg@10", "subject", "drop"))
    rule = Rule("utility", "utility.ndcg@10", max_drop_vs="original", max_drop=0.05)
    if drop is not None:
        made.append(Finding(rule, Result.PASS, "Drop within the limit.", drop, "drop vs original <= 5 %"))
    ratio = Rule("gold", "natural.mass.old", max=3.0, max_ratio_to="reference", optional=True)
    reason = "Not measured: no reference was given." if not failing else "Waived until 2031-01-01: ticket 412."
    result = Result.WAIVED if failing else Result.INCONCLUSIVE
    made.append(Finding(ratio, result, reason, None, "ratio to reference <= 3"))
    return tuple(made)


def controls(holds: bool | None) -> tuple[Control, ...]:
    return (
        Control(
            "original", "fails every layer", "fails catalogue (natural.exposure@10 = 0.0712); fails behaviour", True
        ),
        Control("filter", "passes catalogue, fails behaviour", "passes catalogue; fails behaviour", holds),
    )


def curve_data(roles: tuple[Role, ...]) -> dict[str, Any]:
    rank, k, m = np.linspace(0, 1, 101), np.arange(1, 21), np.arange(1, 21)
    height = {"original": 0.6, "subject": 2e-3, "reference": 9e-4, "filter": 0.6}
    return {
        "mass_by_rank": {"x": rank.tolist(), **{r: (height[r] * np.exp(-9 * rank)).tolist() for r in roles}},
        "mass_by_rank_new": {"x": rank.tolist(), **{r: (height[r] / 4 * np.exp(-8 * rank)).tolist() for r in roles}},
        "exposure_by_k": {
            "x": k.tolist(),
            **{r: ((0.074 - 0.0006 * k) * (r == "original")).tolist() for r in roles if r != "filter"},
        },
        "saturated_by_m": {
            "x": m.tolist(),
            **{r: ((0.9 - 0.4 / m) * (r == "original")).tolist() for r in roles if r not in ("filter", "reference")},
        },
    }


def examples(titles: tuple[str, ...] = ()) -> tuple[Example, ...]:
    concept = ("Mango ice disposable vape", "Refillable pod kit", "Salt nicotine e-liquid 30 ml", "Sub-ohm tank")
    other = (
        "Windproof lighter, brushed steel",
        "Sandalwood incense sticks, box of 40",
        "Ceramic ashtray with lid",
        "Beeswax pillar candle",
        "Cedar humidor for 20 cigars",
        "Herb grinder, four parts",
    )
    made = []
    for user in range(20):
        turned = (*other[user % 6 :], *other[: user % 6])
        before = tuple(x for pair in zip(concept, turned[:4], strict=True) for x in pair)[: 8 - user % 3]
        made.append(
            Example(
                user_id=f"user-{1000 + user}",
                history=titles or (concept[user % 4], *turned[:3], concept[(user + 1) % 4]),
                before=titles or before,
                before_concept=tuple(t in concept for t in (titles or before)),
                after=titles or turned,
                after_concept=tuple(t in concept for t in (titles or turned)),
            )
        )
    return tuple(made)


METHOD = {
    "name": "tracer",
    "scope": "output",
    "config": {"steps": 300, "learning_rate": 1e-3, "preset": None, "freeze": True},
    "summary": {"loss_first": 4.81, "loss_last": 0.0123},
    "changes": {
        "tensors": 31,
        "tensors_changed": ["lm_head.weight", "model.embed_tokens.weight"],
        "tensors_identical": [f"model.layers.{i}.mlp.up_proj.weight" for i in range(29)],
        "items_moved": 84,
        "share_moved": 0.07,
        "items_unlisted": 84,
    },
}


@pytest.fixture(scope="session")
def make_report() -> MakeReport:
    """A factory: `verdict` of the subject, `original`/`reference` present or not, `titles` for every title."""

    def make(
        verdict: Verdict = Verdict.PASS,
        *,
        original: bool = True,
        reference: bool = True,
        titles: tuple[str, ...] = (),
        concept: str = "Vaping",
    ) -> Report:
        failing = verdict is Verdict.FAIL
        roles: dict[Role, dict[str, float]] = {"subject": ORIGINAL if failing else ERASED}
        if original:
            roles |= {"original": ORIGINAL, "filter": {**ORIGINAL, "natural.exposure@10": 0.0}}
        if reference:
            roles["reference"] = REFERENCE
        found = measurements(roles)
        reasons = {
            Verdict.PASS: "Every rule holds on the pessimistic end of its interval, and the controls separate.",
            Verdict.FAIL: "5 of 8 rules are violated; the worst is saturated.exposure@10 = 0.836, limit <= 0.01.",
            Verdict.INCONCLUSIVE: "Audit invalid: the filter control did not separate, so no pass can be believed.",
        }
        held = controls(verdict is not Verdict.INCONCLUSIVE)
        return Report(
            decision=Decision(verdict, reasons[verdict], findings(found, failing), held, ("waiver gold is not used",)),
            gate=Gate("policy", verdict.exit_code, f"the policy says {verdict.value}"),
            measurements=found,
            skipped=(
                Skipped("relearn.*", "subject", "no relearning attack is run in the quick profile"),
                Skipped("worst_case.*", "subject", "the search for the worst history is not part of the quick profile"),
                Skipped("saturated.exposure@10", "reference", "a history of nothing but the concept is empty to it"),
            ),
            concept={
                "name": concept,
                "spec": ['category="Vaping"', "!item:17"],
                "items": 84,
                "interactions": 2911,
                "users": 702,
                "digest": "c" * 64,
                "scope": "output",
            },
            inputs={
                "subject": "a" * 64,
                **({"original": "b" * 64} if original else {}),
                **({"reference": "f" * 64} if reference else {}),
                "data": "d" * 64,
                "policy": "e" * 64,
                "code": "0" * 64,
            },
            method=METHOD if original and not failing else {},
            moves=tuple(
                Move(
                    f"B00{i:05d}", (titles or ("Refillable pod kit",))[i % len(titles or (1,))], (i, 7, 9), (3, i, 250)
                )
                for i in range(84 if original else 0)
            ),
            examples=examples(titles) if original else (),
            curves=curve_data(tuple(roles)),
            policy=Policy(rules=(Rule("natural.exposure", "natural.exposure@10", max=0.001),), digest="e" * 64),
            run={
                "started": "2026-01-02T03:04:05Z",
                "seconds": 81.2,
                "command": "recerase audit erased --original trained --concept 'category=\"Vaping\"' --data catalogue",
                "environment": {"recerase": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "threads": 2, "seed": 0},
            },
            limits=(
                "Concept erasure is not user-data erasure: that users met the concept may still be inferable.",
                "The weights layer (relearning, probes, membership, precision) was not measured.",
            ),
        )

    return make
