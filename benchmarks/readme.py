"""Puts the short table of README.md together from results.json (`make results` runs it after the cells)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
MODELS = ("original", "reference", "filter", "npo", "tracer/paper", "tracer/default")
HEAD = (
    "model",
    "exposure@10 natural / concept-only",
    "exact mass, old SIDs: all / concept users",
    "exact mass, new SIDs: all / concept users",
    "nearest-item leak",
    "retain NDCG@10",
    "drop against the original",
    "neighbours' NDCG@10",
    "moved",
    "seconds (share of training)",
)


def main() -> None:
    """Replace what stands between the two result marks of the README."""
    results = json.loads((HERE / "results.json").read_text("utf-8"))
    parts = [
        "<!-- results -->",
        "## Results",
        "`make results` on data that is not ours to ship; one seed, one torch thread, 0.7 M-parameter causal models, settings of "
        "`tracer/default` chosen on validation interactions, figures on test users. The whole tables, with every n, are in "
        "`benchmarks/RESULTS.md`. *Filter* is the only row with a filtering trie: for all others the concept's items stay in the "
        "catalogue under their current SIDs.",
    ]
    for name, group in results["groups"].items():
        if "tracer/default" not in group["models"]:
            continue
        parts.append(
            f"**{name}**: `{group['data']}`, concept `{group['spec']}`, {group['concept_items']} of {group['items']} items, "
            f"{group['concept_interactions']:.1%} of interactions; {group['users']:,} test users."
            if isinstance(group["concept_interactions"], float)
            else f"**{name}**: `{group['data']}`, concept `{group['spec']}`, {group['concept_items']} of {group['items']} items; "
            f"{group['users']:,} test users."
        )
        rows = [_row(m, group["models"][m], group["models"]["original"]) for m in MODELS if m in group["models"]]
        parts.append("\n".join(["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", *rows]))
    text = README.read_text("utf-8")
    body = "\n\n".join([*parts, "<!-- /results -->"])
    pattern = r"<!-- results -->(.*<!-- /results -->)?"
    README.write_text(re.sub(pattern, lambda _: body, text, count=1, flags=re.S), "utf-8")


def _row(name: str, model: Mapping[str, Any], original: Mapping[str, Any]) -> str:
    found = model.get("figures")
    if not found:
        return f"| {name} | failed: {model.get('failed', 'not measured')} |" + " |" * (len(HEAD) - 2)

    def value(key: str, form: str = ".2g") -> str:
        return format(found[key]["value"], form) if key in found else "-"

    drop = found.get("retain.drop")
    shown = f"{drop['value']:+.1%} [{drop['low']:+.1%}, {drop['high']:+.1%}]" if drop else "-"
    facts = model["facts"]
    seconds = facts["cpu_seconds"] if facts.get("cpu_seconds") is not None else facts["wall_seconds"]
    share = model.get("share_of_training")
    cells = (
        name,
        f"{value('natural.exposure@10')} / {value('saturated.exposure@10')}",
        f"{value('natural.mass.old')} / {value('concept_users.mass.old')}",
        f"{value('natural.mass.new')} / {value('concept_users.mass.new')}",
        value("nearest.leak@r25"),
        value("retain.ndcg@10", ".4f"),
        shown,
        value("neighbours.ndcg@10", ".4f"),
        value("moved", ".0%"),
        f"{seconds:.0f}" + (f" ({share:.0%})" if share is not None else ""),
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
