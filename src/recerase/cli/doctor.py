"""`recerase doctor`: can this installation work, and does the gate that it is used for block?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recerase.cli.options import (
    DeviceOption,
    JsonOption,
    PolicyOption,
    QuietOption,
    SettingsOption,
    ThreadsOption,
    read_settings,
)
from recerase.cli.progress import emit, observing, say

if TYPE_CHECKING:
    from recerase.doctor import Check, Proof

SCHEMA = "recerase.doctor/1"


def doctor(
    place: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where outputs will go. Default: this directory.")
    ] = None,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Prove that the gate blocks: audit planted models that must fail, and one that must pass.",
            show_default=False,
        ),
    ] = False,
    policy: PolicyOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Check this installation; with --gate, prove that a gate stops a model that must be stopped.

    Packages are imported, torch and faiss are asked for what is known, a directory is published in. Offline; nothing of yours is
    read but recerase.toml, and what is written is removed again.

    --gate audits three planted models that recerase ships, under --policy (else recerase.toml's, else the shipped one). A model that
    recommends the concept to everybody, and the same weights with the concept only taken off the lists, must fail; a model that does
    not know the concept must pass, for a gate that stops everything proves nothing either. It takes half a minute of one core with
    the quick profile, longer with a wider one.

    Exit codes: 0 all is well (warnings included), 1 the gate does not block, or fails what is clean; 2 settings or policy cannot be
    used; 3 the installation cannot work (the gate is then not tried); 4 the planted models were changed; 5 the policy does not
    decide about a planted model.

    **Examples**

        recerase doctor

        recerase doctor --gate --policy policy.toml
    """
    from recerase.cli.tables import Rows
    from recerase.doctor import diagnose, prove_gate
    from recerase.doctor.gate import exit_code_of
    from recerase.runtime import RunConfig
    from recerase.store import canonical_json

    checks = diagnose(place, settings=settings, threads=threads)
    code = max((check.exit_code for check in checks if check.status == "fail"), default=0)
    if not as_json:
        heads = ("check", "state", "found", "what to do")
        emit(Rows("installation", heads, [(c.name, c.status, c.found, c.remedy) for c in checks]))
    proofs: tuple[Proof, ...] = ()
    if gate and not code:
        rules = policy or read_settings(settings).policy
        with observing(quiet) as observer:
            proofs = prove_gate(rules, run=RunConfig(threads=threads, device=device), observer=observer)
        code = exit_code_of(proofs)
        if not as_json:
            columns = ("planted model", "must", "verdict", "exit code", "state", "because")
            rows = [(p.model, p.must.value, p.verdict.value, p.exit_code, p.state, p.reason) for p in proofs]
            emit(Rows("gate", columns, rows))
    if as_json:
        told = {"schema": SCHEMA, "exit_code": code, "checks": [asdict(check) for check in checks]}
        emit(canonical_json({**told, "gate": [asdict(proof) for proof in proofs] if proofs else None}).decode())
    for sentence in _summary(checks, proofs, gate):
        say(sentence, quiet and code == 0)
    return code


def _summary(checks: Sequence[Check], proofs: Sequence[Proof], gate: bool) -> list[str]:
    """What it comes to, a sentence a line; what is wrong first."""
    failed = [check.name for check in checks if check.status == "fail"]
    warned = [check.name for check in checks if check.status == "warn"]
    said = [f"FAILED: {', '.join(failed)}"] if failed else []
    said += [_WRONG[proof.model, proof.state].format(proof) for proof in proofs if proof.state != "ok"]
    if gate and not proofs:
        said.append("the gate was not tried: mend the above first")
    elif gate and all(proof.state == "ok" for proof in proofs):
        said.append("the gate blocks what leaks, blocks what only hides, and lets through what is clean")
    if warned:
        said.append(f"warned of: {', '.join(warned)}")
    return said or ["the installation can work"]


_WRONG = {
    (
        "leak",
        "fail",
    ): "THE GATE DOES NOT BLOCK: a model that recommends the concept to everybody got {0.verdict.value} (exit code "
    "{0.exit_code}). Give the policy rules on exposure and on mass: `recerase policy init`.",
    (
        "leak",
        "undecided",
    ): "THE GATE DECIDES NOTHING: a model that recommends the concept to everybody breaks no rule, and is stopped "
    "only because the policy counts what it cannot decide as a failure.",
    (
        "filter",
        "fail",
    ): "THE GATE DOES NOT BLOCK: weights that recommend the concept got {0.verdict.value} (exit code {0.exit_code}) "
    "once it was taken off the lists. Give the policy rules on the behaviour layer: natural.mass.old, saturated.mass.old, replay.",
    (
        "filter",
        "undecided",
    ): "NOT PROVEN: no rule fails the weights that recommend the concept, once it was taken off the lists; with "
    "more users they might pass. Give the policy rules on the behaviour layer: natural.mass.old, saturated.mass.old, replay.",
    (
        "clean",
        "fail",
    ): "THE GATE FAILS WHAT IS CLEAN: a model that gives the concept 2e-5 of every next item fails. {0.reason}.",
    (
        "clean",
        "undecided",
    ): "NOT PROVEN: this policy does not let the planted clean model pass, which has 3,600 users. {0.reason}. "
    "If it asks for more users than a probe reads, it lets nothing pass.",
}
