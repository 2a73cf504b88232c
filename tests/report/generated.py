"""Reports of every shape, drawn from a seed: odd names, markup of every format in every text, empty and huge lists.

A number is a seed's and nothing else's, so a failure names the report that shows it: `generated(217)`.
"""

from __future__ import annotations

import functools
import math
import random
from typing import Any

from recerase.types import (
    Control,
    Decision,
    Example,
    Finding,
    Gate,
    Interval,
    LikenessRow,
    Measurement,
    Move,
    Policy,
    ReferenceFigures,
    Report,
    Result,
    Rule,
    Skipped,
    Verdict,
    Waiver,
)

PIECES = (
    "<script>alert(1)</script>",
    "</td></tr></table></svg></style><img src=x onerror=alert(1)>",
    "]]> --> <!-- <![CDATA[ <?xml version='1.0'?> <!DOCTYPE x [<!ENTITY y 'z'>]> &y; &#0; &lt;",
    "\"quoted\" 'single' \\ back\\nslash",
    "| pipe || `tick` ```\n---\n# PASS\n* star * _under_ ~~out~~ [a](javascript:alert(1)) ![i](http://evil.example/i.png)",
    "--- \nverdict: pass\n... %YAML 1.2 &anchor *alias !!python/object:os.system [x]",
    "::error title=x::y\n::add-mask::z\r\n##[error]w%0A%25::stop-commands::t",
    "$(rm) ${{ github.token }} {{ 7 * 7 }} {% raw %}",
    "[bold red]markup[/] [link=http://evil.example]x[/link] \x1b[31mred\x1b[0m \x9b31m",
    "nul\x00 bell\x07 \x0b\x0c\x1c\x85\u2028\u2029 del\x7f",
    "\u202egnp.exe \u2066iso\u2069 \u200b\ufeff \u061c",
    "lone \ud800 and \udfff surrogates, noncharacters \ufffe \uffff \U0001fffe",
    "سيجارة إلكترونية 電子タバコ \U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301\u0302\u0303",
    "@octocat #1 https://evil.example www.evil.example mailto:x@evil.example",
    "plain words",
    "natural.exposure@10",
    "null",
    "1e-07",
    " ",
    "",
)
METRICS = (
    "natural.exposure@10",
    "natural.mass.old",
    "saturated.mass.old",
    "replay.exposure@10",
    "nearest.leak@r25",
    "relearn.steps_to_half",
    "relearn.forget.steps",
    "precision.mass.old",
    "spill.held_out.mass",
    "spill.held_out.exposure@10",
    "within.advantage",
    "within.heldout.old",
    "influence.history",
    "aliasing.shared_sid",
    "utility.ndcg@10",
    "utility.recall@10",
)
METHODS = ("wilson", "bootstrap", "gaffke", "rule-of-three", "exact", "references", "items", "welch")
CURVES = ("mass_by_rank", "mass_by_rank_new", "exposure_by_k", "saturated_by_m", "relearn_forget", "relearn_benign")
ROLES = ("subject", "original", "filter", "reference")
LAYERS = ("catalogue", "behaviour", "weights", "utility")


@functools.cache
def generated(seed: int, plots: bool = True) -> Report:
    """The report of a seed; every fiftieth is huge, every seventh empty where it can be. `plots` False: without curves."""
    return _Drawn(seed).report(plots)


class _Drawn:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.most = 0 if seed % 7 == 3 else 40 if seed % 50 == 5 else 5

    def text(self) -> str:
        rng = self.rng
        drawn = "".join(rng.choice(PIECES) for _ in range(rng.choice((1, 1, 2, 4))))
        wild = "".join(chr(rng.randrange(0x250 if rng.random() < 0.5 else 0x110000)) for _ in range(rng.randrange(9)))
        return (drawn + wild) * (50 if self.most == 5 and rng.random() < 0.03 else 1)

    def count(self) -> int:
        return self.rng.randint(0, self.most)

    def texts(self) -> tuple[str, ...]:
        return tuple(self.text() for _ in range(min(self.count(), 8)))

    def number(self) -> float:
        rng = self.rng
        return rng.choice((0.0, 1.0, -0.0, 5e-324, 1e30, rng.random(), -rng.random(), 10 ** rng.uniform(-12, 6)))

    def interval(self) -> Interval | None:
        low, high = sorted((self.number(), self.number()))
        high = self.rng.choice((high, high, math.inf))
        method = self.rng.choice((*METHODS, self.text()))
        return self.rng.choice((None, Interval(low, high, self.rng.choice((0.9, 0.95, 0.999)), method)))

    def measurement(self, metric: str) -> Measurement:
        rng = self.rng
        kind: Any = rng.choice(("value", "value", "value", "drop", "ratio"))
        versus: Any = None if kind == "value" else rng.choice(ROLES[1:])
        role: Any = rng.choice(ROLES)
        layer: Any = rng.choice(LAYERS)
        better: Any = rng.choice(("lower", "higher", "neither"))
        n = rng.choice((0, 1, 5000, 2**53))
        value = rng.choice((*[self.number() for _ in range(20)], math.inf, -math.inf, math.nan))
        return Measurement(metric, role, value, n, layer, self.interval(), versus, kind, better)

    def rule(self, i: int) -> Rule:
        rng = self.rng
        metric = rng.choice((*METRICS, self.text()))
        limits: dict[str, Any] = rng.choice(
            (
                {"max": self.number()},
                {"min": self.number()},
                {"max": self.number(), "max_ratio_to": "reference"},
                {"max_drop": self.number(), "max_drop_vs": "original"},
                {"min": 0.1, "max": 3.0, "min_ratio_to": "reference", "max_ratio_to": "reference"},
            )
        )
        limits["profile"] = rng.choice((None, None, "quick", "standard", "thorough"))
        limits["scope"] = rng.choice((None, None, "output", "influence"))
        return Rule(f"{i} {self.text()}"[: rng.choice((20, 5000))], metric, optional=rng.random() < 0.3, **limits)

    def finding(self, i: int) -> Finding:
        rule, result = self.rule(i), self.rng.choice(tuple(Result))
        found = self.rng.choice((None, self.measurement(rule.metric)))
        enough = self.rng.choice((None, 1, 2996, 2**60)) if result is Result.INCONCLUSIVE else None
        return Finding(rule, result, self.text(), found, self.text(), enough)

    def facts(self, depth: int = 2) -> dict[str, Any]:
        rng = self.rng
        values = [self.text(), self.number(), None, True, rng.randrange(10**9), list(self.texts()), "inf"]
        nested = [self.facts(depth - 1)] if depth else []
        return {self.text(): rng.choice(values + nested) for _ in range(min(self.count(), 6))}

    def example(self) -> Example:
        before, after = self.texts(), self.texts()
        draw = self.rng.random
        marks = tuple(draw() < 0.5 for _ in before), tuple(draw() < 0.5 for _ in after)
        return Example(self.text(), self.texts(), before, marks[0], after, marks[1])

    def move(self) -> Move:
        old, new = (tuple(self.rng.randrange(256) for _ in range(self.rng.choice((0, 1, 3, 8)))) for _ in range(2))
        return Move(self.text(), self.text(), old, new)

    def curves(self) -> dict[str, Any]:
        x = [float(i) for i in range(self.rng.randint(2, 20))]
        roles = self.rng.sample(ROLES, self.rng.randint(1, 4))
        names = (*self.rng.sample(CURVES, self.rng.randint(1, len(CURVES))), self.text())
        return {name: {"x": x, **{role: [self.rng.random() for _ in x] for role in roles}} for name in names}

    def decision(self) -> Decision:
        rng = self.rng
        findings = tuple(self.finding(i) for i in range(self.count()))
        names: Any = ("original", "filter", "reference")
        holds = (True, False, None)
        controls = tuple(Control(name, self.text(), self.text(), rng.choice(holds)) for name in names[: self.count()])
        as_of = rng.choice(("", "2026-01-02"))
        profile: Any = rng.choice(("quick", "standard", "thorough"))
        return Decision(rng.choice(tuple(Verdict)), self.text(), findings, controls, self.texts(), as_of, profile)

    def policy(self) -> Policy | None:
        waivers = tuple(Waiver(self.text(), self.text(), self.text(), "2999-12-31") for _ in range(self.count()))
        profile: Any = self.rng.choice(("quick", "standard", "thorough"))
        rules, confidence = tuple(self.rule(i) for i in range(self.count())), self.rng.choice((0.5, 0.95, 0.999))
        stop: Any = self.rng.choice(("fail", "inconclusive"))
        whole = Policy(rules, waivers, profile, confidence, self.rng.choice((1, 1000)), stop, self.sha())
        return self.rng.choice((None, whole))

    def sha(self) -> str:
        return f"{self.rng.getrandbits(256):064x}"

    def report(self, plots: bool) -> Report:
        rng, decision = self.rng, self.decision()
        fail_on: Any = rng.choice(("policy", "regression", "any", "never"))
        about = {"name": self.text(), "spec": list(self.texts()), "items": rng.randrange(10**6), "digest": self.sha()}
        role: Any = rng.choice(ROLES)
        curves = self.curves()
        references = tuple(self.reference(i) for i in range(rng.choice((0, 2, 3))))
        named = ["subject", "data", "policy", "held out", self.text()][: self.count()]
        return Report(
            decision=decision,
            gate=Gate(fail_on, rng.choice((0, 1, 5)), self.text(), self.texts(), self.texts(), rng.choice(("", self.sha()))),
            measurements=tuple(self.measurement(rng.choice((*METRICS, self.text()))) for _ in range(4 * self.count())),
            skipped=tuple(self.skips(role)),
            concept=rng.choice((about, about, {**about, "scope": self.scope(), "users": 3, "interactions": 9}, {})),
            inputs={name: self.sha() for name in [*named, *(x.name for x in references)]},
            method=rng.choice(({}, {"name": self.text(), "config": self.facts(), "changes": self.facts(1)})),
            moves=tuple(self.move() for _ in range(self.count())),
            examples=tuple(self.example() for _ in range(self.count())),
            curves=curves if plots and self.most else {},
            policy=self.policy(),
            run=rng.choice(({}, {"started": self.text(), "seconds": 1.5, "command": self.text(), "environment": self.facts()})),
            limits=self.texts(),
            references=references,
            likeness=tuple(self.likeness() for _ in range(self.count())),
        )  # fmt: skip

    def scope(self) -> str:
        return self.rng.choice(("output", "influence"))

    def reference(self, i: int) -> ReferenceFigures:
        found = tuple(self.measurement(self.rng.choice(METRICS)) for _ in range(self.count()))
        name = "reference" if i == 0 else f"reference.{i + 1}"
        return ReferenceFigures(name, found, tuple(self.skips("reference")))

    def skips(self, role: Any) -> list[Skipped]:
        return [Skipped(self.text(), role, self.text()) for _ in range(self.count())]

    def likeness(self) -> LikenessRow:
        verdict: Any = self.rng.choice(("equivalent", "not equivalent", "too few", "not known"))
        value, limit, auc = (self.rng.choice((None, self.number())) for _ in range(3))
        interval = self.rng.choice((None, Interval(self.number(), self.number(), 0.9, "welch")))
        name = self.rng.choice((*METRICS, "auc", self.text()))
        return LikenessRow(name, verdict, self.text(), self.rng.randrange(9999), value, interval, limit, auc, auc)
