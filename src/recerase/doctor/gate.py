"""Does the gate block? Models whose verdicts are known beforehand are audited under the policy that a user gates with.

    leak      recommends the concept to everybody                             must fail
    filter    the same weights; the concept is only taken off the lists       must fail: hidden is not forgotten
    clean     gives the concept 2e-5 of every next item                       must pass: a gate that stops everything proves nothing

The one decision: they go the way of every checkpoint, by `api.audit` from directories to a report and its exit code; nothing here
looks at a measurement. They are shipped, and held to digests that stand in this file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recerase.api import ConceptSpec, audit, read_policy
from recerase.assembly import RUN
from recerase.errors import ArtefactError
from recerase.runtime import RunConfig
from recerase.store import publish, read_manifest, verify_manifest
from recerase.types import SILENT, Observer, Policy, Report, Result, Verdict

PLANTED = Path(__file__).parent / "planted"
CONCEPT = "category=Planted"
DIGESTS = {
    "data": "3b52db2b96cb9f2bbd3b04abf0d62c6cdb17b758b832455c619f902620423e8e",
    "leaky": "ace088fffc1cbe820863e771f498e6c8c01541c841e4f491e410b4f9741f617f",
    "clean": "04d2390a43caa926b717b89216d56d0087e715bcacd7f94473031eaecd1ecfab",
}
"""Of the manifests below `planted/`, which name the digest of every file there."""

ModelName = Literal["leak", "filter", "clean"]
State = Literal["ok", "fail", "undecided"]


@dataclass(frozen=True)
class Proof:
    """What the policy said of one planted model."""

    model: ModelName
    must: Verdict
    """The verdict that a gate that works gives it."""
    verdict: Verdict
    exit_code: int
    """What `recerase audit` ends with for it."""
    state: State
    """undecided: the policy's rules, or these models, do not tell."""
    reason: str
    """One plain sentence."""


def prove_gate(
    policy: str | Path | Policy | None = None, *, run: RunConfig = RUN, observer: Observer = SILENT
) -> tuple[Proof, ...]:
    """Audit leak, filter and clean under a policy (None: the shipped one), a `Proof` each, in that order.

    Writes to the temporary directory only. Raises PolicyError for a policy that cannot be used, ArtefactError when the planted
    models are not those that were shipped.
    """
    rules = read_policy(policy)
    _check_planted()
    with tempfile.TemporaryDirectory(prefix="recerase-doctor-") as room:
        hidden = Path(room) / "filter"
        _publish_filtered(hidden)
        subjects: dict[ModelName, Path] = {"leak": PLANTED / "leaky", "filter": hidden, "clean": PLANTED / "clean"}
        proofs = []
        for name, subject in subjects.items():
            observer.note(f"gate: auditing the planted model {name}")
            report = audit(
                subject,
                ConceptSpec((CONCEPT,)),
                PLANTED / "data",
                policy=rules,
                original=PLANTED / "leaky",
                reference=PLANTED / "clean",
                run=run,
                observer=observer,
            )
            proofs.append(judge(name, report))
    return tuple(proofs)


def judge(name: ModelName, report: Report) -> Proof:
    """Whether a planted model got the verdict that it must get.

    leak and filter must be failed by a rule: that a policy counts what it cannot decide as a failure stops everybody, and shows
    nothing of these two. clean must pass; where a rule could not be decided for it, nobody knows.
    """
    decision = report.decision
    broken = [finding.rule.id for finding in decision.findings if finding.result is Result.FAIL]
    must = Verdict.PASS if name == "clean" else Verdict.FAIL
    state: State
    if name == "clean":
        state = "ok" if decision.verdict is Verdict.PASS else "fail" if broken else "undecided"
    elif decision.verdict is Verdict.FAIL:
        state = "ok" if broken else "undecided"
    else:
        state = "undecided" if name == "filter" and decision.verdict is Verdict.INCONCLUSIVE else "fail"
    return Proof(name, must, decision.verdict, report.gate.exit_code, state, decision.reason)


def exit_code_of(proofs: tuple[Proof, ...]) -> int:
    """1 where a planted model got a wrong verdict, 5 where one got none, else 0."""
    states = {proof.state for proof in proofs}
    return 1 if "fail" in states else 5 if "undecided" in states else 0


def _check_planted() -> None:
    """Raise ArtefactError unless data and models are byte for byte those that were shipped."""
    for name, digest in DIGESTS.items():
        if read_manifest(PLANTED / name)["digest"] != digest:
            raise ArtefactError(f"{PLANTED / name} is not what recerase ships.", "Install recerase again.")
        verify_manifest(PLANTED / name)


def _publish_filtered(out: Path) -> None:
    """The leaking model's weights, and a table whose concept items are not listed."""
    from recerase.catalog import load_catalogue, parse_concept
    from recerase.layouts.native import load_checkpoint, save_checkpoint

    items = load_catalogue(PLANTED / "data").items
    leaky = load_checkpoint(PLANTED / "leaky", item_ids=items.item_ids)
    table = leaky.table.unlisted(parse_concept([CONCEPT], items).members)
    with publish(out) as made:
        save_checkpoint(made.directory, leaky.recommender, table, leaky.codebooks, leaky.embeddings)
        made.provenance = {"command": "doctor", "model": "filter"}
