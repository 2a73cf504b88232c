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
    parts = ["# Results of erasing", _made(results), _READING, *_summary(results["groups"])]
    for name, group in sorted(results["groups"].items()):
        parts += [f"## {name}", _about(group)]
        for title, found in group["passes"].items():
            parts += [f"### {name}: {TITLES.get(title, title)}", *table_blocks(_comparison(found["comparison"]), 4)]
        if "ablation" in group:
            parts += [f"### {name}: from the paper's settings to ours", _ablation(group["ablation"])]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def write_readme(results: Mapping[str, Any], readme: Path) -> None:
    """Replace what stands between the two result marks of the README."""
    parts = ["<!-- results -->", "## Results", _made(results), *_summary(results["groups"]), "<!-- /results -->"]
    text = readme.read_text("utf-8")
    body = "\n\n".join(parts)
    readme.write_text(
        re.sub(r"<!-- results -->.*<!-- /results -->", lambda _: body, text, count=1, flags=re.S), "utf-8"
    )


def _comparison(found: Mapping[str, Any]) -> Comparison:
    return parse_comparison(document_bytes(found))


def _made(results: Mapping[str, Any]) -> str:
    model, where = results["model"], results["environment"]
    epochs, dropout = (", ".join(f"{n} ({name})" for name, n in results[key].items()) for key in ("epochs", "dropout"))
    sids = ", ".join(f"{told} ({name})" for name, told in results["sids"].items())
    return (
        f"Made {results['date']} with `{results['command']}` (its steps may be run one by one); {where['threads']} torch thread "
        f"a process, {where['device']}, torch {where['torch']}, {where['platform']}. The models are {model['kind']}, "
        f"{model['layers']} layers of width {model['width']}, dropout {dropout}, epochs {epochs}. Original and every "
        f"method's model are of one training; references have their own seeds. SIDs: {sids}. {_searched(results['searched'])}"
    )


def _searched(told: Mapping[str, Any]) -> str:
    if told["budget"] < 2:
        return (
            "**Untuned**: every method runs with its own settings; those of `tracer` and `renormalise` were chosen on validation "
            "users of these data sets, beside references of all their concepts but beauty's."
        )
    without = "".join(
        f" On {name} nothing was searched: every method runs with its own." for name in told.get("without", ())
    )
    return (
        f"Settings: {told['budget']} a method (its own first) were tried on the first concept of a data set, on {told['users']:,} "
        "validation users, and those chosen are used for all its concepts. `tracer` and `renormalise` run as they are shipped; their "
        "settings were chosen by hand, on validation users of amazon_industrial and ml-100k." + without
    )


def _about(group: Mapping[str, Any]) -> str:
    concept = _comparison(next(iter(group["passes"].values()))["comparison"]).concept
    found = ", ".join(f"{v['recall@10']:.4f}" for v in group["validation"])
    pairs = {pair for found in group["passes"].values() for pair in found["settings"]}
    changed = ", ".join(f"`{pair}`" for pair in sorted(pairs)) or "none"
    return (
        f"`{group['data']}`, concept `{group['spec']}`: {concept['items']:,} items, {concept['interactions']:,} interactions, "
        f"{concept['users']:,} users. Validation recall@10 of the original, then of the references: {found}. Settings that the "
        f"search changed: {changed}." + _late(group.get("behind", ())) + _other(group.get("other_code", ()))
    )


def _other(parts: Sequence[str]) -> str:
    """Which tables were made with other code than that of the table of all methods."""
    tables = ", ".join(TITLES.get(part, part) for part in parts)
    return f" **Made with other code than the table of all methods: {tables}.**" if parts else ""


def _late(behind: Sequence[str]) -> str:
    """What is said of tables that were made before the search had chosen."""
    tables = ", ".join(TITLES[part] for part in behind)
    return f" **Made before the search had chosen, with the methods' own settings: {tables}.**" if behind else ""


TITLES = {
    "methods": "all methods, one seed",
    "seeds": "three seeds, and relearning",
    "influence": "scope influence (concept items of a history are to count for nothing)",
    "ahead": "tracer with relearning looked ahead at (an option), three seeds",
    "ucan": "U-CAN's figures",
}


def _summary(groups: Mapping[str, Any]) -> Iterator[str]:
    """Where every method stands in every group, and the flagship beside its targets."""
    wide = {
        name: _comparison(group["passes"]["methods"]["comparison"])
        for name, group in sorted(groups.items())
        if "methods" in group["passes"]
    }
    close = {
        name: _comparison(group["passes"]["seeds"]["comparison"])
        for name, group in sorted(groups.items())
        if "seeds" in group["passes"]
    }
    if wide:
        yield "**Where each method stands** on the front of forgetting (likeness of concept mass to the references') and utility:"
        yield _standings(wide)
        yield (
            "How many orders of magnitude its concept mass is from the references', at worst (natural, concept users, concept-only; "
            "old and new SIDs):"
        )
        yield _figures_table(wide, "apart")
    if close:
        yield "**TRACER beside the references**, and what the project asks for:"
        yield _flagship(close)


def _standings(groups: Mapping[str, Comparison]) -> str:
    rows = [[name, *(_standing(_row(c, name)) for c in groups.values())] for name in _methods(groups)]
    return _table(["method", *groups], rows)


def _figures_table(groups: Mapping[str, Comparison], figure: str) -> str:
    rows = [[name, *(_value(_row(c, name), figure) for c in groups.values())] for name in _methods(groups)]
    return _table(["method", *groups], rows)


def _methods(groups: Mapping[str, Comparison]) -> list[str]:
    return list(dict.fromkeys(row.name for c in groups.values() for row in c.rows if row.kind == "method"))


def _standing(row: Row | None) -> str:
    if row is None:
        return "-"
    return "failed" if not row.seeds else STANDINGS.get(row.standing, row.standing) or "-"


STANDINGS = {"alone": "**alone**", "front": "front", "remembers": "does not forget"}

TARGETS = (
    ("natural.mass.old ratio/reference", "mass / reference, old SIDs", "1/3 to 3"),
    ("saturated.mass.old ratio/reference", "concept-only histories", "1/3 to 3"),
    ("natural.mass.new ratio/reference", "mass / reference, new SIDs", "1/3 to 3"),
    ("saturated.mass.new ratio/reference", "concept-only histories", "1/3 to 3"),
    ("equivalent", "share of masses equivalent (TOST)", "1"),
    ("likeness.auc", "classifier: AUC against a reference", ""),
    ("likeness.auc of/reference", "AUC between references", ""),
    ("likeness.auc difference/reference", "difference", "at most .05"),
    ("utility.ndcg@10 drop/reference", "NDCG@10: drop against the references", "at most .01"),
    ("utility_neighbours.ndcg@10 ratio/reference", "neighbours' NDCG@10 / reference", "at least .98"),
    ("relearn.forget.steps ratio/reference", "relearning, concept pairs: steps / slowest reference", "at least 1"),
    ("relearn.benign.steps ratio/reference", "relearning, retained pairs", "at least 1"),
)


def _flagship(groups: Mapping[str, Comparison]) -> str:
    rows = []
    for key, title, target in TARGETS:
        rows.append([title, target, *(_value(_row(c, "tracer"), key, whole=True) for c in groups.values())])
    rows.append(["cost, share of training", "at most .05", *(_share(c) for c in groups.values())])
    return _table(["tracer", "target", *groups], rows)


def _share(comparison: Comparison) -> str:
    cost = comparison.run.get("cost", {}).get("output", {}).get("tracer", {})
    share = cost.get("cpu_share") or cost.get("share")
    return "-" if share is None else f"{share:.3f}"


def _value(row: Row | None, name: str, whole: bool = False) -> str:
    found: Figure | None = row.figures.get(name) if row else None
    if found is None:
        return "-"
    value = f"{found.value:.2g}"
    if whole and found.interval is not None:
        value += f" [{found.interval.low:.2g}, {found.interval.high:.2g}]"
    return value


def _row(comparison: Comparison, name: str) -> Row | None:
    return next((row for row in comparison.rows if row.name == name and row.scope == comparison.scopes[0]), None)


ABLATION = (
    ("apart", "orders from the references"),
    ("natural.exposure@10", "exposure@10"),
    ("natural.mass.old", "mass, old SIDs"),
    ("natural.mass.new", "new SIDs"),
    ("saturated.mass.old", "concept-only, old"),
    ("utility.ndcg@10", "NDCG@10"),
    ("utility.ndcg@10 drop/original", "drop against the original"),
)


def _ablation(steps: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for step in steps:
        comparison = _comparison(step["comparison"])
        row = next(row for row in comparison.rows if row.kind == "method")
        cost = comparison.run.get("cost", {}).get("output", {}).get(row.name, {})
        figures = (
            [_value(row, key) for key, _ in ABLATION] if row.seeds else [row.failures[0], *["-"] * (len(ABLATION) - 1)]
        )
        rows.append([step["label"], *figures, f"{cost['seconds']:.0f}" if "seconds" in cost else "-"])
    return _table(["settings", *(title for _, title in ABLATION), "seconds"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
