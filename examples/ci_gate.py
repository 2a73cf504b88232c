"""A release gate: audit a checkpoint under a policy and let the verdict decide the exit code.

On the command line this is `recerase audit CHECKPOINT --original BEFORE --concept SPEC --data DATA --policy FILE`. As a
program it can also say what to look at. Exit codes are those of the command: 0 pass, 1 a rule is violated, 2 the policy
or the concept cannot be used, 4 an artefact is missing or corrupt, 5 too little evidence. Only 0 may ship.

    python examples/ci_gate.py CHECKPOINT DATA --concept brand=Acme --original BEFORE --policy policy.toml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recerase import api
from recerase.errors import RecEraseError
from recerase.runtime import RunConfig
from recerase.types import Result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--concept", action="append", required=True, help="repeat for a union")
    parser.add_argument("--original", type=Path, help="the checkpoint before erasure: without it nothing can pass")
    parser.add_argument("--policy", type=Path, help="default: the policy recerase ships")
    parser.add_argument("--report", type=Path, action="append", default=[], help=".json, .md or .html; repeat")
    parser.add_argument("--max-users", type=int)
    parser.add_argument("--threads", type=int, help="default: all cores")
    given = parser.parse_args(arguments)
    try:
        report = api.audit(
            given.checkpoint,
            api.ConceptSpec(tuple(given.concept)),
            given.data,
            original=given.original,
            policy=given.policy,
            outputs=given.report,
            max_users=given.max_users,
            run=RunConfig(threads=given.threads),
        )
    except RecEraseError as error:
        print(f"gate: no verdict. {error}", file=sys.stderr)
        return error.exit_code
    for finding in report.decision.findings:
        if finding.result is not Result.PASS:
            print(f"gate: {finding.rule.id}: {finding.result.value}. {finding.reason}")
    print(f"gate: {report.decision.verdict.value}. {report.decision.reason}")
    return report.decision.verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
