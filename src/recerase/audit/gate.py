"""The exit code of an audit: the verdict's own, or what the user asked to fail on instead. Pure.

The one decision: the verdict never changes. What a build does about it is a second, smaller value beside it.
"""

from __future__ import annotations

from recerase.types import Decision, FailOn, Gate


def gate(decision: Decision, fail_on: FailOn = "policy") -> Gate:
    """The exit code of a decision."""
    if fail_on == "never":
        return Gate(fail_on, 0, "the caller asked to fail on nothing")
    return Gate(fail_on, decision.verdict.exit_code, f"the policy says {decision.verdict.value}")
