"""A policy in words: what a rule asks, who answers it, what its passing does not mean, how many users it needs, and what to mend.

The one decision: words are made of the rule and of its probe's card alone, so that they are there before a model is loaded, and
the numbers in them come from the same functions that decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date

from recerase.audit.card import PROFILES
from recerase.audit.cards import card_of, metrics
from recerase.audit.policy import limit_text
from recerase.audit.policy_file import is_day
from recerase.audit.power import doubt_of, power_of_metric
from recerase.stats import enough_n
from recerase.types import Policy, Rule


def asks(rule: Rule) -> str:
    """What a rule asks, in words."""
    said = []
    if rule.max is not None:
        of = f" times the {rule.max_ratio_to}'s" if rule.max_ratio_to else ""
        said.append(f"{rule.metric} is at most {rule.max:g}{of}")
    if rule.min is not None:
        of = f" times the {rule.min_ratio_to}'s" if rule.min_ratio_to else ""
        said.append(f"{rule.metric} is at least {rule.min:g}{of}")
    if rule.max_drop is not None:
        said.append(f"{rule.metric} drops by at most {rule.max_drop:.2%} against the {rule.max_drop_vs}")
    from_ = f"; from the {rule.profile} profile on" if rule.profile else ""
    scope = f"; in scope {rule.scope}" if rule.scope else ""
    return " and ".join(said) + ", with the whole interval" + ("; optional" if rule.optional else "") + from_ + scope


def explained(rule: Rule, policy: Policy) -> Mapping[str, str]:
    """Everything there is to say of one rule, name -> words, in the order of reading."""
    told = {"rule": rule.id, "asks": asks(rule), "limit": limit_text(rule)}
    spec, card = metrics().get(rule.metric), card_of(rule.metric)
    if spec is not None:
        told["layer"] = spec.layer
    if card is not None:
        said = {"asks": "its question", "how": "how", "costs": "what it costs", "source": "source"}
        facts = card.facts
        told |= {"probe": card.name} | {name: facts[key] for key, name in said.items()}
        told |= {"needs": facts["needs"]} if "needs" in facts else {}
        told |= {"probe is run": f"from the {card.profile} profile on", "a pass does not mean": card.misses}
    told["tells apart"] = power_of_metric(rule.metric)
    told["is decided"] = (
        "passes with the whole interval within the limit, fails with the whole of it beyond (or a value beyond that has none), and "
        "is inconclusive between"
    )
    told["where it cannot be measured"] = (
        "it is told, and the verdict does not wait for it; nor where users are too few, unless the value itself is beyond the limit"
        if rule.optional
        else "no verdict is a pass"
    )
    told["users it needs"] = users_needed(rule, policy)
    told["waived"] = "; ".join(
        f"for {w.concept} until {w.expires}: {w.reason}" for w in policy.waivers if w.rule == rule.id
    )
    return {name: words for name, words in told.items() if words}


def users_needed(rule: Rule, policy: Policy) -> str:
    """How many users or histories a rule needs before it can pass, as far as that is known without a number of the model."""
    least, sure = policy.min_users, policy.confidence
    compared = rule.max_ratio_to or rule.min_ratio_to or rule.max_drop_vs
    spec = metrics().get(rule.metric)
    if compared is None and rule.max == 0:
        return "all there are: that a share is 0 is shown by no sample, only by counting everything"
    share = spec is not None and spec.most == 1.0
    if compared is None and share and rule.max is not None and rule.min is None and 0 < rule.max < 1:
        none = math.ceil(-math.log1p(-sure) / rule.max)
        half = enough_n(rule.max / 2, rule.max * 2, rule.max, 1, "wilson", sure)
        return (
            f"{max(least, none):,} with no hit among them; about {max(least, half or 0):,} where half the limit is the truth and a "
            "user is a hit or none (to pass four audits of five)"
        )
    return f"{least:,} at least; how many more depends on how far users differ, and a report that cannot decide says how many"


def warnings_of(policy: Policy, today: date) -> tuple[str, ...]:
    """What can be used and will not do what its writer thinks, one sentence each."""
    found = []
    for waiver in policy.waivers:
        if not is_day(waiver.expires) or today > date.fromisoformat(waiver.expires):
            found.append(
                f"The waiver of {waiver.rule!r} for {waiver.concept!r} is no waiver: it expired on {waiver.expires}."
            )
    for rule in policy.rules:
        doubt, card = doubt_of(rule), card_of(rule.metric)
        if doubt:
            found.append(f"Rule {rule.id!r} gates on {rule.metric}, but {doubt}.")
        spec = metrics().get(rule.metric)
        if spec is not None and spec.units is not None and spec.units < policy.min_users:
            found.append(
                f"Rule {rule.id!r} is on {rule.metric}, which is counted over {spec.units} at most, and the policy wants "
                f"{policy.min_users:,} behind a number: it can fail and cannot pass; take a metric that is counted over more, or "
                f"a min_users of {spec.units} at most."
            )
        if card is None:
            continue
        asked = rule.profile or policy.profile
        if PROFILES.index(card.profile) > PROFILES.index(asked):
            remedy = (
                f'run `audit --profile {card.profile}`, or give it profile = "{card.profile}" to be asked from there on'
            )
            found.append(
                f"Rule {rule.id!r} is asked in the {asked} profile, which does not run its probe {card.name}: inconclusive; {remedy}."
            )
    return tuple(found)
