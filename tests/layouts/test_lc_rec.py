"""LC-Rec on LLaMA from end to end; its adapters are in test_adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.layouts.causal_checks import EASY, FAST, OURS, files_of, loads, old_reader, tensors_of
from tests.layouts.causal_fixtures import lc_rec, make_world, sid, write_data

from recerase import api
from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError, EraseError, UsageError
from recerase.layouts.prompts import load_tokenizer
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.runtime import RunConfig

ACME = api.ConceptSpec(("brand=Acme",))
RUN = RunConfig(threads=1, device="cpu")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model (untied, float32), data, policy.toml; read only."""
    home = tmp_path_factory.mktemp("lc")
    world = make_world()
    lc_rec(home / "model", world)
    write_data(home / "data", world)
    (home / "policy.toml").write_text(EASY)
    return home


def test_it_is_recognised_and_described(shop: Path) -> None:
    assert detect_layout(shop / "model").name == "lc-rec"
    found = api.inspect(shop / "model")
    assert (found.facts["window (history items)"], found.facts["embedding and head"]) == (20, "untied")
    assert found.problems == ()


def test_from_end_to_end(shop: Path, tmp_path: Path) -> None:
    source, out = shop / "model", tmp_path / "out"
    before = files_of(source)
    api.erase(source, ACME, shop / "data", out, overrides=FAST, policy=shop / "policy.toml", max_users=10, run=RUN)
    assert files_of(source) == before
    after = files_of(out)
    assert set(after) == set(before) | OURS
    assert {name for name in before if after[name] != before[name]} == {"Toys.index.json", "model.safetensors"}
    was, now = tensors_of(source), tensors_of(out)
    assert {n: (t.shape, t.dtype) for n, t in was.items()} == {n: (t.shape, t.dtype) for n, t in now.items()}
    opened, ids = open_checkpoint(out), old_reader(out)
    table = opened.table
    assert all(ids[item] == table.rows()[row].tolist() for row, item in enumerate(table.item_ids))
    old = json.loads((source / "Toys.index.json").read_text())
    new = json.loads((out / "Toys.index.json").read_text())
    assert {item for item in old if old[item] != new[item]} <= {str(i) for i in range(8)}
    assert {t for tokens in old.values() for t in tokens} <= {t for tokens in new.values() for t in tokens}
    assert (
        opened.recommender.module(input_ids=torch.arange(9)[None]).logits == loads(out)(torch.arange(9)[None]).logits
    ).all()  # type: ignore[operator]


def test_two_copies_of_a_tied_matrix_stay_two_and_equal(shop: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = lc_rec(tmp_path / "tied", make_world(), tied=True, dtype=torch.bfloat16)
    tensors = load_file(place / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    settings = ["settle_steps=1", "pool=1", "batch=8", "sequences=8"]
    api.erase(
        place, ACME, shop / "data", tmp_path / "out", method="renormalise", overrides=settings,
        policy=shop / "policy.toml", max_users=10, run=RUN,
    )  # fmt: skip
    now = tensors_of(tmp_path / "out")
    assert torch.equal(now["lm_head.weight"], now["model.embed_tokens.weight"])
    assert not torch.equal(now["lm_head.weight"], tensors["lm_head.weight"])
    loads(tmp_path / "out")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="ties embedding and head"):
        open_checkpoint(place)


def test_what_the_layout_cannot_say_is_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(EraseError, match="cannot say that an item is not to be recommended"):
        api.erase(
            shop / "model", ACME, shop / "data", tmp_path / "out", method="filter", policy=shop / "policy.toml", run=RUN
        )
    assert not (tmp_path / "out").exists()


def test_the_window_is_an_option(shop: Path) -> None:
    assert open_checkpoint(shop / "model", options={"window": "3"}).recommender.window == 3
    with pytest.raises(UsageError, match="window of 'many'"):
        open_checkpoint(shop / "model", options={"window": "many"})


def as_lc_rec(items: list[str], numbered: bool) -> str:
    """What LC-Rec's data.py and sft_prompt make of a history, with or without add_prefix."""
    shown = [f"{place + 1}. {item}" for place, item in enumerate(items)] if numbered else items
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\nThe user has interacted with items {', '.join(shown)} in chronological order. "
        "Can you predict the next possible item that the user may expect?\n\n### Response:"
    )


@pytest.mark.parametrize("numbered", [False, True])
def test_numbered_histories_are_read_as_they_are_written(shop: Path, numbered: bool) -> None:
    options = {"add_prefix": "yes"} if numbered else {}
    opened = open_checkpoint(shop / "model", options=options)
    own = load_tokenizer(shop / "model")
    histories = [[8], [3, 4, 5], [], list(range(20)), list(range(7, 36))]
    tokens, lengths, (items, places) = opened.recommender.placed(Histories.from_lists(histories), opened.table)
    codes = make_world().codes
    for b, history in enumerate(histories):
        read = history[-20:]
        row = tokens[b, : int(lengths[b])].tolist()
        text = as_lc_rec([sid(codes[i]) for i in read], numbered)
        assert row == own(text).input_ids
        assert items[b, : len(read)].tolist() == read
        for h, item in enumerate(read):
            assert [row[at] for at in places[b, h]] == opened.table.rows()[item].tolist()
    layout = named_layout("lc-rec")
    assert layout.digest is not None
    assert opened.digest == layout.digest(shop / "model", options)
    assert (opened.digest == layout.digest(shop / "model")) == (not numbered)


def test_a_history_longer_than_its_numbers_is_refused(shop: Path) -> None:
    opened = open_checkpoint(shop / "model", options={"add_prefix": "yes", "window": "4"})
    assert opened.recommender.prompt is not None
    assert opened.recommender.prompt.longest(4, 3) == len(
        opened.recommender.prompt.spell(opened.table.rows()[None, :4], 0)[0][0]
    )
    with pytest.raises(UsageError, match="numbers its items up to 4, and a history has 5"):
        opened.recommender.tokens(Histories.from_lists([[1, 2, 3, 4, 5]]), opened.table, window=5)
    with pytest.raises(UsageError, match="neither yes nor no"):
        open_checkpoint(shop / "model", options={"add_prefix": "true"})
