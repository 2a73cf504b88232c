"""Prompts as data: spelled as the tool's own tokenizer spells the whole text, and nothing changes where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.layouts.causal_fixtures import CODES, N, make_tokenizer, make_world, sid

from recerase.catalog.interactions import Histories
from recerase.erase.paths import SoftTokens, start
from recerase.errors import CheckpointError, UsageError
from recerase.layouts.lc_rec import PROMPT as LC_REC
from recerase.layouts.minionerec import PROMPT as MINIONEREC
from recerase.layouts.prompts import Template, load_tokenizer, make_prompt, read_template
from recerase.layouts.token_files import token_rows
from recerase.model.prompt import Prompt
from recerase.model.recommender import ModelConfig, Recommender, new_recommender, wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import IntArray

OWN = Template(text=("Past: {history}. Next: [",), separator=" | ", begin="[", end="]", empty="nothing")
TEMPLATES = {"minionerec": MINIONEREC, "lc-rec": LC_REC, "begin and end": OWN}


@pytest.fixture(scope="module", params=["qwen", "llama"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, int], bool]:
    """A tokenizer, its SID tokens, and whether it puts bos in front."""
    path = tmp_path_factory.mktemp(request.param)
    make_tokenizer(path, make_world(ragged=True).index, llama=request.param == "llama")
    return load_tokenizer(path), token_rows(path), request.param == "llama"


def the_table(rows: dict[str, int], ragged: bool) -> SidTable:
    world = make_world(ragged=ragged)
    spelled = []
    for level in range(3 + ragged):
        mine = {int(token[3:-1]): row for token, row in rows.items() if token[1] == "abcd"[level]}
        spelled.append(np.array([mine.get(code, -1) for code in range(1 + max(mine))], np.int64))
    schema = SidSchema(tuple(len(s) for s in spelled), tuple(spelled), 500, 0, -1, 10, "allowed")
    codes = world.codes.copy()
    codes[7] = -1
    return SidTable.build([str(i) for i in range(N)], codes, schema)


def whole_text(template: Template, table: SidTable, items: list[int]) -> tuple[str, ...]:
    shown = template.separator.join(template.begin + sid(table.codes[i]) + template.end for i in items)
    return tuple(piece.replace("{history}", shown if items else template.empty) for piece in template.text)


def as_minionerec(tokenizer: Any, text: str, bos: bool) -> list[int]:
    """What `Tokenizer.encode` of its data.py does: its own ends are taken off, then bos is put in front if there is one."""
    ids = list(tokenizer(text).input_ids)
    while ids[0] == tokenizer.bos_token_id:
        ids = ids[1:]
    return [tokenizer.bos_token_id, *ids] if bos and tokenizer.bos_token_id is not None else ids


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_histories_read_as_the_tool_writes_them(
    name: str, ragged: bool, tokenizer: tuple[Any, dict[str, int], bool]
) -> None:
    own, rows, _ = tokenizer
    template, table = TEMPLATES[name], the_table(rows, ragged)
    full = np.flatnonzero(table.lengths == table.levels)[:4]
    prompt = make_prompt(template, own, [sid(table.codes[i]) for i in full], table.rows()[full])
    histories = Histories.from_lists([[3, 4, 5], [], [7], [9], [10, 11, 10, 7, 1], list(range(20, 34))])
    model = bare_model("causal", table, prompt)
    tokens, lengths, (items, places) = model.placed(histories, table)
    for b in range(len(histories)):
        read = [i for i in histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist() if i != 7][-6:]
        pieces = whole_text(template, table, read)
        if template is MINIONEREC:
            meant = as_minionerec(own, pieces[0], True) + as_minionerec(own, pieces[1], False)
        else:
            meant = list(own(pieces[0]).input_ids)
        assert tokens[b, : int(lengths[b])].tolist() == meant
        assert (tokens[b, int(lengths[b]) :] == table.schema.pad).all()
        for h, item in enumerate(read):
            codes = table.lengths[item]
            assert items[b, h] == item
            assert tokens[b, places[b, h, :codes]].tolist() == table.rows()[item, :codes].tolist()
            assert (places[b, h, codes:] == -1).all()
        assert (places[b, len(read) :] == -1).all()


def bare_model(kind: str, table: SidTable, prompt: Prompt | None = None) -> Recommender:
    config = ModelConfig(kind=kind, width=8, layers=1, heads=2, feed_forward=8, window=6)  # type: ignore[arg-type]
    made = new_recommender(config, replace(table.schema, bos=max(table.schema.bos, 0)), 0)
    return wrap(made.module, table.schema, 6, prompt)


def todays(model: Recommender, histories: Histories, table: SidTable) -> tuple[IntArray, IntArray]:
    """Tokens and lengths as they were spelled before there were prompts, one history at a time."""
    out = []
    for b in range(len(histories)):
        items = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        read = [i for i in items if table.codes[i, 0] >= 0][-model.window :]
        rows = [int(row) for i in read for row in table.rows()[i] if row >= 0]
        out.append([model.schema.bos, *rows] if model.kind == "causal" else [*rows, model.schema.eos])
    width = max(map(len, out))
    padded = [row + [model.schema.pad] * (width - len(row)) for row in out]
    return np.array(padded, np.int64), np.array([len(row) for row in out], np.int64)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_without_a_prompt_nothing_changed(kind: str, ragged: bool) -> None:
    world = make_world(ragged=ragged)
    codes = world.codes.copy()
    codes[7] = -1
    schema = SidSchema.native([*CODES, *([2] if ragged else [])], "allowed")
    table = SidTable.build([str(i) for i in range(N)], codes, schema)
    histories = Histories.from_lists([[3, 4, 5], [], [7], [10], [10, 11, 10, 7, 1], list(range(20, 34))])
    model = bare_model(kind, table)
    tokens, lengths, (items, places) = model.placed(histories, table)
    meant, sizes = todays(model, histories, table)
    assert tokens.numpy().tobytes() == meant.tobytes()
    assert lengths.numpy().tobytes() == sizes.tobytes()
    row, column, level = np.nonzero(places >= 0)
    stood = tokens.numpy()[row, places[row, column, level]]
    assert (stood == table.rows()[items[row, column], level]).all()
    assert len(stood) == table.lengths[np.maximum(items, 0)][items >= 0].sum()


@pytest.mark.parametrize("name", [*TEMPLATES, "none"])
def test_soft_tokens_stand_where_the_codes_stood(name: str, tokenizer: tuple[Any, dict[str, int], bool]) -> None:
    """By brute force: every code of a concept item replaced by hand, then transformers' own forward."""
    own, rows, _ = tokenizer
    table = the_table(rows, ragged=False)
    prompt = None
    if name != "none":
        prompt = make_prompt(TEMPLATES[name], own, [sid(table.codes[i]) for i in (1, 2, 3)], table.rows()[[1, 2, 3]])
    else:
        table = SidTable.build(table.item_ids, table.codes, SidSchema.native(CODES, "allowed"))
    model = bare_model("causal", table, prompt)
    members = [0, 1, 2, 3]
    slot = torch.full((N,), -1)
    slot[members] = torch.arange(4)
    soft = SoftTokens(slot, torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)))
    histories = Histories.from_lists([[0, 20, 3, 0], [], [21, 22], [7, 2], [5, 6, 1, 8, 9, 10, 11, 2]])
    with torch.no_grad():
        found = start(model, table, histories, soft).log_probs
        tokens, lengths = model.tokens(histories, table)
        for b in range(len(histories)):
            read = [i for i in histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist() if i != 7][-6:]
            row = tokens[b, : int(lengths[b])]
            embeds = model.embed(row).clone()
            at = 0
            for item in read:  # SIDs stand in the order of the history, each after the one before
                wanted = table.rows()[item].tolist()
                at = next(k for k in range(at, len(row)) if row[k : k + 3].tolist() == wanted)
                if item in members:
                    embeds[at : at + 3] = soft.vectors[members.index(item)]
                at += 3
            logits = model.module(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]  # type: ignore[operator]
            torch.testing.assert_close(found[b], logits.log_softmax(-1), rtol=1e-5, atol=1e-5)


BROKEN = (
    "[]",
    "{",
    '{"separator": ","}',
    '{"text": "none"}',
    '{"text": "{history} {history}"}',
    '{"text": 3}',
    '{"text": "{history}", "bos": "often"}',
    '{"text": "{history}", "prefix": ""}',
    '{"text": ["{history}", 1]}',
)


def test_a_prompt_file_is_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps(OWN.to_json()))
    assert read_template(file) == OWN
    file.write_text('{"text": "Now: {history}>"}')
    assert read_template(file) == Template(text=("Now: {history}>",))
    for broken in BROKEN:
        file.write_text(broken)
        with pytest.raises(UsageError, match="is no prompt") as told:
            read_template(file)
        assert "{history}" in told.value.remedy


def test_a_tokenizer_that_breaks_sids_is_found_out(tokenizer: tuple[Any, dict[str, int], bool]) -> None:
    own, rows, _ = tokenizer
    table = the_table(rows, ragged=False)
    with pytest.raises(CheckpointError, match="does not keep the SID"):
        make_prompt(OWN, own, ["<a_99><b_99><c_99>"], table.rows()[[1]])


def test_a_prompt_of_another_vocabulary_is_refused() -> None:
    table = SidTable.build(["a"], np.zeros((1, 3), np.int32), SidSchema.native(CODES))
    model = bare_model("causal", table)
    for prompt in (Prompt((900,), (), (), (1,)), Prompt((), (), (), ())):
        with pytest.raises(CheckpointError, match="prompt names"):
            wrap(model.module, table.schema, 6, prompt)


def test_what_a_prompt_begins_with_needs_no_bos() -> None:
    """Special tokens that a prompt spells itself, or does without, may be missing from the schema."""
    schema = SidSchema.native(CODES)
    table = SidTable.build(["a"], np.zeros((1, 3), np.int32), schema)
    prompt = Prompt((1,), (), (2,), (1, 2))
    for kind in ("causal", "seq2seq"):
        bare = replace(schema, pad=-1, bos=-1, eos=-1)
        model = wrap(bare_model(kind, table).module, bare, 6, prompt)
        tokens, lengths = model.tokens(Histories.from_lists([[0], []]), table)
        assert tokens.tolist() == [[1, *table.rows()[0].tolist(), 2], [1, 2, 0, 0, 0]]
        assert lengths.tolist() == [5, 2]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_prompt_counts_among_the_positions(kind: str) -> None:
    """Angles that change with the length are computed where no history is long enough, its prompt included."""
    table = SidTable.build(["a", "b"], np.array([[0, 0, 0], [1, 1, 1]], np.int32), SidSchema.native(CODES))
    made = bare_model("causal", table)
    prompt = Prompt((1,) * 7, (2, 2), (1,) * 5, (1,))
    config: Any = made.module.config
    tokens, _ = wrap(made.module, table.schema, 6, prompt).tokens(Histories.from_lists([[0, 1] * 4]), table)
    reach = tokens.shape[1] + table.levels
    for limit in (reach, reach - 1):
        own = {"original_max_position_embeddings": limit} if kind == "longrope" else {}
        config.max_position_embeddings = limit if kind == "dynamic" else 1000
        config.rope_parameters = {"rope_type": kind, "rope_theta": 10.0, "factor": 2.0, **own}
        if limit == reach:
            wrap(made.module, table.schema, 6, prompt)
            continue
        with pytest.raises(CheckpointError, match=f"rope_type '{kind}'.* longest"):
            wrap(made.module, table.schema, 6, prompt)
