"""RESULTS.md and the README's table from results.json: a summary over all groups, then each comparison's own tables.

Pure text from values: nothing is measured here, and a figure that is not there is a dash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recerase.report.codec import document_bytes
from recerase.report.compared import Comparison, Figure, Row, parse_comparison
from recerase.report.compared_markdown import table_blocks

_READING = """\
How to read it. No filter stands between model and list except in the row `filter`: concept items stay in the catalogue under
their current SIDs. `reference`: models trained without the concept's interactions, which read histories without concept items,
under the old SIDs. Settings are the methods' own unless a table says that they were searched, which is done on validation users;
figures are of test users. An interval is over users (95 %), and as wide as the values of all seeds.
"""


def results_markdown(results: Mapping[str, Any]) -> str:
    """The whole of RESULTS.md."""
    groups = {name: (group, _comparison(group)) for name, group in sorted(results["groups"].items())}
    parts = ["# Results of erasing", _made(results), _READING, *_summary(groups)]
    for name, (group, comparison) in groups.items():
        parts += [f"## {name}", _about(group, comparison), *table_blocks(comparison, 3)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def write_readme(results: Mapping[str, Any], readme: Path) -> None:
    """Replace what stands between the two result marks of the README."""
    groups = {name: (group, _comparison(group)) for name, group in sorted(results["groups"].items())}
    body = "\n\n".join(["<!-- results -->", "## Results", _made(results), *_summary(groups), "<!-- /results -->"])
    text = readme.read_text("utf-8")
    pattern = r"<!-- results -->.*<!-- /results -->"
    readme.write_text(re.sub(pattern, lambda _: body, text, count=1, flags=re.S), "utf-8")


def _comparison(group: Mapping[str, Any]) -> Comparison:
    return parse_comparison(document_bytes(group["comparison"]))


def _made(results: Mapping[str, Any]) -> str:
    model, training, where = results["model"], results["training"], results["environment"]
    return (
        f"Made {results['date']} with `{results['command']}`; {where['threads']} torch thread a process, {where['device']}, torch "
        f"{where['torch']}, {where['platform']}. The models are {model['kind']}, {model['layers']} layers of width {model['width']}, "
        f"dropout {training['dropout']}. Original and every method's model are of one training; references have their own seeds."
    )


def _about(group: Mapping[str, Any], comparison: Comparison) -> str:
    concept = comparison.concept
    found = ", ".join(f"{v['recall@10']:.4f}" for v in group["validation"])
    return (
        f"`{group['data']}`, concept `{group['spec']}`: {concept['items']:,} items, {concept['interactions']:,} interactions, "
        f"{concept['users']:,} users. Validation recall@10 of the original, then of the references: {found}."
    )


Groups = Mapping[str, tuple[Mapping[str, Any], Comparison]]
_TARGETS = ["target", "1/3 to 3", "1/3 to 3", "0.99", "0.98", "at most 5%", "in six of nine"]
_MASSES = tuple(f"{stem}.mass.{side}" for side in ("old", "new") for stem in ("natural", "saturated"))


def _summary(groups: Groups) -> Iterator[str]:
    """A table a scope: every method in every group, by where it stands and by its likeness."""
    scopes = sorted({scope for _, comparison in groups.values() for scope in comparison.scopes}, reverse=True)
    for scope in scopes:
        yield f"## Summary, scope {scope}"
        yield "Where each method stands on the front of forgetting against utility (concept mass against the references', NDCG@10):"
        yield _standings(groups, scope)
        yield "`tracer/default` beside the references, below the targets of the project:"
        yield _flagship(groups, scope)


def _standings(groups: Groups, scope: str) -> str:
    names = [row.name for _, c in groups.values() for row in c.rows if row.kind == "method" and row.scope == scope]
    rows = []
    for name in dict.fromkeys(names):
        rows.append([name, *(_standing(_row(c, name, scope)) for _, c in groups.values())])
    return _table(["method", *groups], rows)


def _standing(row: Row | None) -> str:
    if row is None:
        return "-"
    return "failed" if not row.seeds else row.standing or "-"


def _flagship(groups: Groups, scope: str) -> str:
    head = [
        "group",
        "mass / reference, old SIDs: natural, concept only",
        "new SIDs",
        "NDCG@10 / reference",
        "neighbours / reference",
    ]
    head += ["of training", "alone on the front"]
    rows = [_TARGETS]
    for name, (_, comparison) in groups.items():
        row, gold = _row(comparison, "tracer/default", scope), _row(comparison, "reference", scope)
        if row is None or gold is None:
            continue
        cost = comparison.run.get("cost", {}).get(scope, {}).get(row.name, {})
        share = cost.get("share") if cost.get("cpu_share") is None else cost["cpu_share"]
        old, new = (", ".join(_ratio(row, gold, x) for x in _MASSES if x.endswith(side)) for side in ("old", "new"))
        near, ndcg = (_ratio(row, gold, x) for x in ("utility_neighbours.ndcg@10", "utility.ndcg@10"))
        alone = "yes" if row.standing == "alone" else "no"
        rows.append([name, old, new, ndcg, near, "-" if share is None else f"{share:.1%}", alone])
    return _table(head, rows)


def _ratio(row: Row, gold: Row, metric: str) -> str:
    """A figure of a row over that of the references, which have no new SIDs: theirs of the old ones stands for both."""
    found: Figure | None = row.figures.get(metric)
    base = gold.figures.get(metric.replace(".new", ".old"))
    if not found or not base or not base.value:
        return "-"
    ratio = found.value / base.value
    return f"{ratio:.3f}" if "ndcg" in metric else f"{ratio:.2g}"


def _row(comparison: Comparison, name: str, scope: str) -> Row | None:
    aliases = {name, name.removesuffix("/default")}
    return next((row for row in comparison.rows if row.name in aliases and row.scope == scope), None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
