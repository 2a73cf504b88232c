"""Where a number lies beside a rule's limit: what deciding, gating and every format of a report ask alike.

The one decision: an optional rule is forgiven what nobody could know, never what was measured on the wrong side.
"""

from __future__ import annotations

import math

from recerase.types import Finding, Result, Rule

__all__ = ["beyond", "forgiven"]


def beyond(rule: Rule, *values: float) -> frozenset[str]:
    """The sides, `high` and `low`, on which any of the values is beyond the rule's limits; what is no number is beyond none."""
    most = rule.max_drop if rule.max_drop_vs is not None else rule.max
    too_high = most is not None and any(value > most for value in values)
    too_low = rule.min is not None and any(value < rule.min for value in values)
    return frozenset(name for name, holds in (("high", too_high), ("low", too_low)) if holds)


def forgiven(finding: Finding) -> bool:
    """Whether a verdict does not wait for it: an optional rule that is undecided, and was not measured or respects its limit.

    A value that is beyond the limit, or is no number, must be decided though the rule is optional.
    """
    if finding.result is not Result.INCONCLUSIVE or not finding.rule.optional:
        return False
    found = finding.measurement
    return found is None or not (math.isnan(found.value) or beyond(finding.rule, found.value))
