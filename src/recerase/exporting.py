"""What a serving stack needs to stop showing a concept with the model it has: a blocklist, and the table of allowed prefixes.

The one decision: both say what they cannot do. Hiding is not erasing; a SID that retained items share hides those too when it is
blocked, and leads to the concept's item when it is not. So such SIDs are listed with all items that have them, and left to whoever
serves.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.assembly import (
    RUN,
    ConceptSpec,
    choose_concept,
    concept_facts,
    given_paths,
    open_checkpoint_for,
    open_sids,
    with_codebooks,
)
from recerase.catalog import Catalogue, Concept, load_catalogue
from recerase.errors import UsageError
from recerase.layouts.tables import is_table
from recerase.prefixes import Ends, prefix_json, prefix_table
from recerase.runtime import RunConfig
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie
from recerase.store import check_file_output, parquet_bytes, pretty_json, write_bytes, write_parts
from recerase.types import SILENT, BoolArray, Observer

if TYPE_CHECKING:
    import pyarrow as pa

    from recerase.layouts.native import Checkpoint

BLOCKLIST, PREFIXES = "recerase.blocklist/1", "recerase.prefixes/1"
HIDING = (
    "Hiding is not erasing: the model still knows the concept, and still lets it steer what else it recommends. In an audit, the "
    "control that hides the concept and changes nothing is expected to fail the behaviour layer."
)
_MINIONEREC_TAIL = 3
"""Rows of the prompt that MiniOneRec looks up before the first code (prefix_index in its evaluate.py, but for gpt2)."""


@dataclass(frozen=True)
class Blocked:
    """What `export_blocklist` wrote."""

    path: Path
    items: int
    sids: int
    """Distinct SIDs of these items."""
    shared: int
    """Those of them that retained items have too."""
    retained: int
    """Retained items that have one of these."""
    without: int
    """Items of the concept without a SID: the model cannot name them."""


@dataclass(frozen=True)
class Prefixes:
    """What `export_prefixes` wrote."""

    path: Path
    prefixes: int
    sids: int
    hidden: int
    """Listed items of the concept that the table leaves out."""
    reachable: tuple[str, ...]
    """Listed items of the concept that it cannot leave out: retained items have their SIDs."""


def export_blocklist(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Blocked:
    """Write every item of a concept with its SID (codes, vocabulary rows, tokens) and the retained items that share it.

    JSON, JSONL, CSV (lists as JSON in their cells) or parquet, by the extension of `out`; all hold the same rows. `checkpoint` may be
    a SID table without a model, which says nothing of vocabulary rows.
    """
    out = _checked(out, (".json", ".jsonl", ".csv", ".parquet"), given_paths(checkpoint, data, concept, run), force)
    table, facts, spelled, chosen = _blocked(Path(checkpoint), concept, data, run, observer)
    rows = blocklist_table(table, chosen.members, spelled)
    if facts["model"] is False:
        rows = rows.set_column(rows.column_names.index("rows"), "rows", _nothing(rows))
    codes = table.codes[chosen.members & table.present]
    also = np.unique(table.codes[chosen.members][~rows["alone"].to_numpy()], axis=0)
    retained = len(rows["retained_items"].combine_chunks().flatten().unique())
    made = Blocked(out, len(chosen), len(np.unique(codes, axis=0)), len(also), retained, len(chosen) - len(codes))
    counts = {name: getattr(made, name) for name in ("items", "sids", "shared", "retained", "without")}
    facts = {**facts, "note": HIDING, "counts": counts}
    write_bytes(out, _rendered(rows, facts, out.suffix.lower()))
    return made


def blocklist_table(table: SidTable, members: BoolArray, tokens: Mapping[int, str] | None = None) -> pa.Table:
    """One row an item of `members` [N]: item_id, codes, rows and tokens of its SID (null without), listed, `alone`, retained_items.

    `alone` says that no item outside `members` has the SID, so that blocking the SID hides nobody else.
    """
    import pyarrow as pa

    place = np.flatnonzero(members)
    absent = pa.array(~table.present[place])
    length = np.append(0, np.cumsum(table.lengths[place])).astype(np.int32)
    there = table.codes[place] >= 0
    codes, rows = table.codes[place][there], table.rows()[place][there]
    spelled: Any = pa.nulls(len(place), pa.list_(pa.string()))
    if tokens is not None:
        text = pa.array([tokens.get(row) for row in rows.tolist()], pa.string())
        spelled = pa.ListArray.from_arrays(pa.array(length), text, mask=absent)
    groups = table.groups()
    others = np.flatnonzero(~members & table.present & np.isin(groups, groups[members & table.present]))
    others = others[np.argsort(groups[others], kind="stable")]
    first = np.searchsorted(groups[others], groups[place], "left")
    many = np.where(table.present[place], np.searchsorted(groups[others], groups[place], "right") - first, 0)
    ends = np.append(0, np.cumsum(many))
    at = np.repeat(first - ends[:-1], many) + np.arange(ends[-1])
    retained = pa.ListArray.from_arrays(
        pa.array(ends.astype(np.int32)), pa.array(table.item_ids[others[at]].tolist(), pa.string())
    )
    return pa.table(
        {
            "item_id": pa.array(table.item_ids[place].tolist(), pa.string()),
            "codes": pa.ListArray.from_arrays(pa.array(length), pa.array(codes, pa.int32()), mask=absent),
            "rows": pa.ListArray.from_arrays(pa.array(length), pa.array(rows, pa.int64()), mask=absent),
            "tokens": spelled,
            "listed": pa.array(table.listed[place]),
            "alone": pa.array(many == 0),
            "retained_items": retained,
        }
    )


def export_prefixes(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    concept: ConceptSpec | None = None,
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Prefixes:
    """Write which vocabulary rows may follow which, for constrained decoding: of all listed items, or of those outside a concept.

    JSON holds `allowed`, a dict of "row-row" (the rows generated so far) to next rows, for `prefix_allowed_tokens_fn` (`allowed_rows`
    makes one); parquet a line a step: depth, prefix, next, code, token. MiniOneRec's evaluate.py looks up the last rows of the prompt
    before the first code: for it `allowed` has that key too, and may stand in the place of its `hash_dict`. The tries of genrec, GRID
    and RQ-VAE-Recommender are of codes and not of rows: parquet has both.
    """
    out = _checked(out, (".json", ".parquet"), given_paths(checkpoint, data, concept, run), force)
    if is_table(Path(checkpoint), run.layout):
        raise UsageError(
            f"{checkpoint} is a SID table without a model, and prefixes are of rows of a model's vocabulary.",
            "Give the checkpoint, or hide items by id: `recerase export blocklist`.",
        )
    opened, catalogue, chosen = _opened(checkpoint, concept, data, run, observer)
    table = opened.table
    members = chosen.members if chosen is not None else np.zeros(len(table), bool)
    if opened.recommender.kind not in ("causal", "seq2seq"):
        raise UsageError(
            f"A model of layout {opened.layout} does not write SIDs code by code, so that no prefix allows a next one.",
            "Hide items by id: `recerase export blocklist`.",
        )
    trie = Trie.build(table, table.listed & ~members)
    if trie.n_nodes(trie.levels) == 0:
        raise UsageError("No listed item is left to be generated.", "Name a smaller concept.")
    ends = Ends.of(table.schema.eos, _last_row(opened))
    groups = table.groups()
    hidden = table.listed & table.present & members
    still = hidden & np.isin(groups, groups[trie.leaf_items])
    reachable = tuple(str(item) for item in table.item_ids[still])
    facts = {
        **_facts(PREFIXES, opened, chosen, catalogue),
        "levels": table.levels,
        "begin": _begins(opened),
        "end": list(ends.rows),
        "otherwise": [max(table.schema.pad, 0)],
        "still_reachable": list(reachable),
        "note": HIDING if chosen is not None else None,
    }
    if out.suffix.lower() == ".parquet":
        spelled = _spelling(opened)
        made = prefix_table(trie, table.schema, ends, spelled)
        write_bytes(out, parquet_bytes(made.replace_schema_metadata({"recerase": pretty_json(facts)})))
    else:
        write_parts(out, prefix_json(facts, trie, ends, _tail(opened), observer))
    prefixes = sum(int((trie.tokens[depth] >= 0).sum()) for depth in range(1, trie.levels + 1))
    return Prefixes(out, prefixes, trie.n_nodes(trie.levels), int((hidden & ~still).sum()), reachable)


def allowed_rows(document: Mapping[str, Any], begin: int) -> Callable[[int, Any], list[int]]:
    """A `prefix_allowed_tokens_fn` for transformers' generate, from the content of a JSON table of prefixes.

    `begin` is how many rows stand before the generated ones: `len(document["begin"])` for an encoder-decoder, the length of the prompt
    (padding included) for a causal model. Beams that transformers keeps alive without a probability get the row `otherwise`.
    """
    allowed, otherwise = document["allowed"], document["otherwise"]

    def following(batch: int, rows: Any) -> list[int]:
        found: list[int] = allowed.get("-".join(map(str, rows.tolist()[begin:])), otherwise)
        return found

    return following


def _begins(opened: Checkpoint) -> list[int] | None:
    """The rows before the first code: None for a prompt, none at all where the decoder begins with a vector that is no row."""
    module: Any = opened.recommender.module
    if opened.recommender.kind != "seq2seq":
        return None
    start = getattr(module.config, "decoder_start_token_id", None)
    return [] if opened.recommender.per_level or start is None else [int(start)]


def _checked(out: str | Path, kinds: tuple[str, ...], inputs: list[Path], force: bool) -> Path:
    """Where to write. Raises UsageError for another extension, OutputError for a place that is taken."""
    out = Path(out)
    if out.suffix.lower() not in kinds:
        raise UsageError(f"{out} has no known format.", f"Use one of {', '.join(kinds)}.")
    check_file_output(out, inputs=inputs, force=force)
    return out


def _opened(
    checkpoint: str | Path, concept: ConceptSpec | None, data: str | Path, run: RunConfig, observer: Observer
) -> tuple[Checkpoint, Catalogue, Concept | None]:
    """Checkpoint, catalogue and concept; where a concept asks for likeness, in the embeddings that an audit would use."""
    catalogue = load_catalogue(data)
    observer.note(f"reading {checkpoint}")
    opened = open_checkpoint_for(checkpoint, catalogue, run)
    if concept is None:
        return opened, catalogue, None
    if run.embeddings is not None or any("like:" in spec for spec in concept.specs):
        opened = with_codebooks(opened, catalogue.items, observer, run.embeddings)
    return opened, catalogue, choose_concept(concept, catalogue, opened.embeddings)


def _blocked(
    path: Path, concept: ConceptSpec, data: str | Path, run: RunConfig, observer: Observer
) -> tuple[SidTable, dict[str, Any], dict[int, str] | None, Concept]:
    """Table, facts, tokens of rows and concept, for a checkpoint or a SID table without a model."""
    if not is_table(path, run.layout):
        opened, catalogue, chosen = _opened(path, concept, data, run, observer)
        assert chosen is not None
        return opened.table, {**_facts(BLOCKLIST, opened, chosen, catalogue), "model": True}, _spelling(opened), chosen
    catalogue = load_catalogue(data)
    table, _, points = open_sids(path, catalogue.items, run.embeddings, observer)
    chosen = choose_concept(concept, catalogue, points)
    told = {"schema": BLOCKLIST, "checkpoint": table.digest, "layout": run.layout, "model": False}
    return table, {**told, "concept": concept_facts(chosen, catalogue)}, None, chosen


def _nothing(rows: pa.Table) -> pa.Array:
    """A column of null lists: rows are those of a model, and there is none."""
    import pyarrow as pa

    return pa.nulls(len(rows), pa.list_(pa.int64()))


def _facts(schema: str, opened: Checkpoint, concept: Concept | None, catalogue: Catalogue) -> dict[str, Any]:
    told = concept_facts(concept, catalogue) if concept is not None else None
    return {"schema": schema, "checkpoint": opened.digest, "layout": opened.layout, "concept": told}


def _spelling(opened: Checkpoint) -> dict[int, str] | None:
    """The token of a vocabulary row, where the layout spells codes as tokens."""
    tokens = opened.extra.get("tokens")
    return {row: token for token, row in tokens.items()} if tokens else None


def _last_row(opened: Checkpoint) -> int:
    """The row that ends a generation where it is not the one that ends a SID: eos behind MiniOneRec's line end; else -1."""
    if opened.layout != "minionerec":
        return -1
    from recerase.layouts.prompts import load_tokenizer

    row = load_tokenizer(opened.path).eos_token_id
    return -1 if row is None else int(row)


def _tail(opened: Checkpoint) -> tuple[int, ...]:
    """The rows before the first code that a tool looks up in place of none."""
    prompt = opened.recommender.prompt
    return prompt.suffix[-_MINIONEREC_TAIL:] if opened.layout == "minionerec" and prompt is not None else ()


def _rendered(rows: pa.Table, facts: Mapping[str, Any], kind: str) -> bytes:
    if kind == ".parquet":
        return parquet_bytes(rows.replace_schema_metadata({"recerase": pretty_json(facts)}))
    if kind == ".json":
        return pretty_json({**facts, "blocked": rows.to_pylist()})
    if kind == ".jsonl":
        return b"".join(_line(row).encode() + b"\n" for row in rows.to_pylist())
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows(_cells(rows))
    return text.getvalue().encode()


def _cells(rows: pa.Table) -> Iterator[list[str]]:
    for row in rows.to_pylist():
        yield [value if isinstance(value, str) else "" if value is None else _line(value) for value in row.values()]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
