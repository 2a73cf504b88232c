"""`recerase policy`: write, check and explain the rules an audit decides by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recerase.cli.options import ForceOption, JsonOption
from recerase.cli.progress import emit

if TYPE_CHECKING:
    from recerase.types import Rule

app = typer.Typer(help="Write, check and explain policies.", no_args_is_help=True)

PolicyArgument = Annotated[
    Path | None, typer.Argument(metavar="POLICY.toml", help="Policy file. Default: the one recerase ships.")
]


@app.command("init")
def init(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path("policy.toml"),
    force: ForceOption = False,
) -> int:
    """Write the shipped policy to a file, as a start for your own.

    **Examples**

        recerase policy init --out policy.toml
    """
    from recerase import api

    emit(str(api.init_policy(out, force=force)))
    return 0


@app.command("check")
def check(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="POLICY.toml...", help="Policy files. Default: the one recerase ships."),
    ] = None,
) -> int:
    """Check policies: every unknown key, metric, duplicate and bad waiver of every file at once. Exit code 2 when there is one.

    **Examples**

        recerase policy check policy.toml
    """
    from recerase import api
    from recerase.errors import PolicyError

    problems: list[PolicyError] = []
    chosen: list[Path | None] = [*paths] if paths else [None]
    for path in chosen:
        try:
            policy = api.read_policy(path)
        except PolicyError as error:
            problems.append(error)
            continue
        emit(f"{path or 'the shipped policy'}: {len(policy.rules)} rules, {len(policy.waivers)} waivers, all usable")
    if problems:
        remedies = " ".join(dict.fromkeys(error.remedy for error in problems if error.remedy))
        raise PolicyError(" ".join(error.message for error in problems), remedies)
    return 0


@app.command("explain")
def explain(path: PolicyArgument = None, as_json: JsonOption = False) -> int:
    """Say in words what each rule asks, and which probe answers it.

    **Examples**

        recerase policy explain
    """
    from recerase import api
    from recerase.cli.tables import Rows, facts_table
    from recerase.store import canonical_json

    policy = api.read_policy(path)
    columns, rows = ("rule", "asks", "answered by"), [_explained(rule) for rule in policy.rules]
    sure = {
        "confidence": policy.confidence,
        "users at least": policy.min_users,
        "inconclusive counts as": policy.on_inconclusive,
        "profile": policy.profile,
        "digest": policy.digest,
    }
    if as_json:
        rules = [dict(zip(columns, row, strict=True)) for row in rows]
        emit(canonical_json({"rules": rules, **sure}).decode())
        return 0
    emit(Rows("rules", columns, rows))
    emit(facts_table("how sure", sure))
    return 0


def _explained(rule: Rule) -> tuple[Any, ...]:
    """The rule's id, what it asks in words, and the question of the probe that answers it."""
    from recerase.audit.cards import PROBES

    asks = []
    if rule.max is not None:
        of = f" times the {rule.max_ratio_to}'s" if rule.max_ratio_to else ""
        asks.append(f"{rule.metric} is at most {rule.max:g}{of}")
    if rule.min is not None:
        of = f" times the {rule.min_ratio_to}'s" if rule.min_ratio_to else ""
        asks.append(f"{rule.metric} is at least {rule.min:g}{of}")
    if rule.max_drop is not None:
        asks.append(f"{rule.metric} drops by at most {rule.max_drop:.2%} against the {rule.max_drop_vs}")
    words = " and ".join(asks) + ", with the whole interval" + ("; optional" if rule.optional else "")
    stem = rule.metric.split("@")[0]
    goals = [card.goal for card in PROBES.values() if stem in {spec.name.split("@")[0] for spec in card.metrics}]
    return rule.id, words, goals[0] if goals else ""
