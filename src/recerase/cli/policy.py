"""`recerase policy`: write, check and explain the rules an audit decides by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recerase.cli.options import ForceOption, JsonOption
from recerase.cli.progress import emit, say
from recerase.errors import UsageError

if TYPE_CHECKING:
    from recerase.types import Policy, Rule

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

    What can be used and will not do what it looks like (a waiver that expired, a rule whose probe its profile does not run, a rule
    that must be met on a metric which was not seen to tell models with a concept from models without) is a warning on stderr.

    **Examples**

        recerase policy check policy.toml
    """
    from datetime import date

    from recerase import api
    from recerase.audit.explain import warnings_of
    from recerase.errors import PolicyError

    problems: list[PolicyError] = []
    chosen: list[Path | None] = [*paths] if paths else [None]
    for path in chosen:
        try:
            policy = api.read_policy(path)
        except PolicyError as error:
            problems.append(error)
            continue
        for warning in warnings_of(policy, date.today()):
            say(f"warning: {warning}" if path is None else f"warning: {path}: {warning}")
        emit(f"{path or 'the shipped policy'}: {len(policy.rules)} rules, {len(policy.waivers)} waivers, all usable")
    if problems:
        remedies = " ".join(dict.fromkeys(error.remedy for error in problems if error.remedy))
        raise PolicyError(" ".join(error.message for error in problems), remedies)
    return 0


@app.command("explain")
def explain(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POLICY.toml] [RULE]", help="A policy file (default: the one recerase ships), a rule's id."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Say in words what each rule asks, and which probe answers it; of one rule, everything.

    Of one rule also: how its probe works and what it costs, what a pass does not mean, and how many users it needs.

    **Examples**

        recerase policy explain

        recerase policy explain exposure

        recerase policy explain policy.toml exposure
    """
    from recerase import api
    from recerase.audit.explain import explained
    from recerase.cli.tables import Rows, facts_table
    from recerase.store import canonical_json

    path, rule = _named(what or [])
    policy = api.read_policy(path)
    if rule is not None:
        facts = explained(_one_rule(policy, rule), policy)
        emit(canonical_json(dict(facts)).decode() if as_json else facts_table(f"rule {rule}", facts))
        return 0
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


def _named(what: list[str]) -> tuple[Path | None, str | None]:
    """The policy file and the rule among the arguments: a file is what ends in .toml, or is there and is the first of two."""
    if len(what) > 2:
        raise UsageError(
            f"{len(what)} arguments are too many.", "Give a policy file, a rule's id, or both in this order."
        )
    if len(what) == 2:
        return Path(what[0]), what[1]
    if what and (what[0].endswith(".toml") or Path(what[0]).is_file()):
        return Path(what[0]), None
    return None, what[0] if what else None


def _one_rule(policy: Policy, rule: str) -> Rule:
    """The rule of that id. Raises UsageError with the nearest one when there is none."""
    from difflib import get_close_matches

    rules = {known.id: known for known in policy.rules}
    if rule in rules:
        return rules[rule]
    near = get_close_matches(rule, rules, n=1)
    raise UsageError(
        f"There is no rule {rule!r}.", f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(rules)}."
    )


def _explained(rule: Rule) -> tuple[Any, ...]:
    """The rule's id, what it asks in words, and the question of the probe that answers it."""
    from recerase.audit.cards import card_of
    from recerase.audit.explain import asks

    card = card_of(rule.metric)
    return rule.id, asks(rule), card.goal if card is not None else ""
