"""RESULTS.md from results.json: one table a group, a measure a line, a model a column.

Pure text from values: nothing is measured here, and a figure that is not there is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("original", "reference", "filter", "npo", "tracer/paper", "tracer/default")

LINES = (
    ("natural.exposure@10", "exposure@10, all test users", "share"),
    ("concept_users.exposure@10", "exposure@10, concept users", "share"),
    ("saturated.exposure@10", "exposure@10, histories of concept items only", "share"),
    ("replay.exposure@10", "exposure@10, stale client (old SIDs in and out), concept users", "share"),
    ("natural.mass.old", "exact mass, all users, old SIDs", "mass"),
    ("natural.mass.new", "exact mass, all users, new SIDs", "mass"),
    ("concept_users.mass.old", "exact mass, concept users, old SIDs", "mass"),
    ("concept_users.mass.new", "exact mass, concept users, new SIDs", "mass"),
    ("saturated.mass.old", "exact mass, concept items only, old SIDs", "mass"),
    ("saturated.mass.new", "exact mass, concept items only, new SIDs", "mass"),
    ("nearest.leak@r25", "nearest-item leak (r25), concept users", "share"),
    ("retain.ndcg@10", "retain NDCG@10", "interval"),
    ("retain.drop", "retain NDCG@10, drop against the original", "drop"),
    ("neighbours.ndcg@10", "NDCG@10 on the concept's neighbours", "share"),
    ("recall@10", "recall@10, all targets", "share"),
    ("moved", "concept items on a new SID", "percent"),
    ("new_sid_shared", "new SIDs shared with a retained item", "count"),
)

STRESS = (
    ("natural.exposure@10", "filter removed, all users"),
    ("replay.exposure@10", "filter removed, old SIDs, concept users"),
    ("saturated.exposure@10", "concept items only"),
    ("saturated_replay.exposure@10", "concept items only, old SIDs"),
)

_READING = """\
How to read it. No filter stands between model and list except in the column `filter`: concept items stay in the
catalogue under their current SIDs. A *concept user* has a concept item in the history. `reference` was trained without
the concept's interactions and reads histories without concept items, under the old SIDs; its line for histories of
concept items only is read on concept users' histories without them. Brackets: 95 % intervals (drops: paired bootstrap
over users, positive = worse). *seconds* are CPU seconds of the erasing (original and reference: recorded wall seconds
of training, on one thread of a machine shared with other work); the share is of the original's training. One seed:
a difference of NDCG between two trainings is not a difference between methods.
"""


def results_markdown(results: Mapping[str, Any]) -> str:
    """The whole of RESULTS.md."""
    parts = ["# Results of erasing\n", _made(results), _READING, _stress(results["groups"])]
    parts += [_group(name, group, results["erase_code"]) for name, group in sorted(results["groups"].items())]
    return "\n".join(part for part in parts if part)


def _made(results: Mapping[str, Any]) -> str:
    """When, where and with which sizes."""
    settings, where = results["settings"], results["environment"]
    model, training, audit = settings["model"], settings["training"], settings["audit"]
    plural = "s" if where["threads"] != 1 else ""
    users = f"{audit['max_users']} sampled" if audit["max_users"] else "all"
    return (
        f"Made {results['date']} with `{results['command']}`; seed {settings['seed']} throughout; {where['threads']} "
        f"torch thread{plural}, {where['device']}, torch {where['torch']}, {where['platform']}. This file is written "
        f"by the command: do not edit it.\n\n"
        f"The model is {model['kind']}, {model['layers']} layers of width {model['width']}, trained for at most "
        f"{training['epochs']} epochs (it stops after {training['patience']} validations without gain). Beam "
        f"{audit['beam']}, k = 10. Read on: {users} test users (lists); at most {audit['mass_users']} users and as "
        f"many concept users (exact mass, stale client); {audit['saturated_histories']} histories of 1 to "
        f"{audit['saturated_items']} concept items drawn by popularity ({settings['saturated_mass']} for mass); at "
        f"most {settings['nearest_users']} concept users (nearest-item leak).\n"
    )


def _stress(groups: Mapping[str, Any]) -> str:
    rows = []
    for name, group in sorted(groups.items()):
        row = group["models"].get("tracer/default", {})
        if "figures" in row:
            rows.append([name, *(_cell(row["figures"].get(key), "share") for key, _ in STRESS)])
    if not rows:
        return ""
    head = ["exposure@10", *(title for _, title in STRESS)]
    return "## tracer/default without any help\n\n" + _table(head, rows)


def _group(name: str, group: Mapping[str, Any], code: str) -> str:
    models = group["models"]
    shown = [m for m in COLUMNS if m in models]
    head = [f"{m} †" if models[m].get("erase_code", code) != code else m for m in shown]
    rows = []
    for key, title, kind in LINES:
        found = [models[m].get("figures", {}).get(key) for m in shown]
        units = sorted({f["n"] for f in found if f and kind != "count"})
        n = f" (n = {_span(units)})" if units else ""
        rows.append([title + n, *(_cell(f, kind) for f in found)])
    rows.append(["seconds", *(_seconds(models[m]) for m in shown)])
    rows.append(["share of training", *(_percent(models[m].get("share_of_training")) for m in shown)])
    text = (
        f"## {name}\n\n`{group['data']}`, SIDs `{group['sids']}` ({group['levels']} levels), concept "
        f"`{group['spec']}`: {group['concept_items']} of {group['items']} items, "
        f"{group['concept_interactions']:.1%} of interactions.\n\n" + _table(["", *head], rows)
    )
    failed = [f"- {m}: {models[m]['failed']}" for m in shown if "failed" in models[m]]
    old = ["† made by an earlier version of `recerase.erase`."] if any("†" in h for h in head) else []
    return "\n".join([text, *failed, *old]) + ("\n" if failed or old else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(found: Mapping[str, Any] | None, kind: str) -> str:
    if not found or found["value"] is None:
        return "-"
    value = found["value"]
    if kind == "mass":
        return f"{value:.1e}"
    if kind == "percent":
        return _percent(value)
    if kind == "count":
        return f"{value} of {found['n']}" if found["n"] else "-"
    if kind == "interval":
        return f"{_short(value)} [{_short(found['low'])}, {_short(found['high'])}]"
    if kind == "drop":
        return f"{value:+.1%} [{found['low']:+.1%}, {found['high']:+.1%}]" if "low" in found else "-"
    hits = found.get("hits")
    return _short(value) + (f" ({hits} hit)" if hits is not None and value < 0.01 else "")


def _short(value: float) -> str:
    """Four decimals without the leading zero; nothing at all is a plain 0, something tiny is not."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 5e-4 else f"{value:.4f}".replace("0.", ".", 1)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _seconds(model: Mapping[str, Any]) -> str:
    facts = model.get("facts", {})
    spent = facts.get("cpu_seconds") if facts.get("cpu_seconds") is not None else facts.get("wall_seconds")
    return "-" if spent is None else f"{spent:.0f}"


def _span(units: Sequence[int]) -> str:
    return f"{units[0]:,}" if len(units) == 1 else f"{units[0]:,}-{units[-1]:,}"
