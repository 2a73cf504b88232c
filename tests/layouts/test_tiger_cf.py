"""tiger-cf comes back as it was: an untied T5 bit for bit, a table with unsorted keys, and nothing read from a pickle unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from transformers import T5Config, T5ForConditionalGeneration

from recerase.catalog import Histories
from recerase.errors import CheckpointError, PickleError, TableError, UsageError
from recerase.layouts.describe import describe
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.store import publish

WEIGHTS, INDEX, CONFIG = "tiger_toy_final_state.pth", "index_rqkmeans.json", "tiger_kmeans_train_config.json"
SIZE, LEVELS, USERS = 32, 4, 12
ROWS = SIZE * LEVELS + USERS + 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.tiger_cf(tmp_path_factory.mktemp("tiger") / "ckpt")


def opened(path: Path, **options: str) -> Checkpoint:
    return open_checkpoint(path, trust_pickle=True, options=options)


def written(source: Checkpoint, out: Path, table=None) -> Path:
    with publish(out) as result:
        named_layout("tiger-cf").write_back(source, source.recommender, table or source.table, result.directory)
    return out


def test_a_pickle_is_read_only_when_trusted(place: Path) -> None:
    with pytest.raises(PickleError, match=r"\.pth is a pickle") as refused:
        open_checkpoint(place)
    assert "--trust-pickle" in refused.value.remedy
    with pytest.raises(PickleError):
        describe(place)


def test_a_plain_load_loses_the_embedding_and_ours_does_not(place: Path) -> None:
    """Trap 3: transformers 5 says all keys matched, and `shared` is `lm_head` afterwards."""
    state = {name.removeprefix("model."): t for name, t in torch.load(place / WEIGHTS, weights_only=True).items()}
    assert not torch.equal(state["shared.weight"], state["lm_head.weight"])
    plain = T5ForConditionalGeneration(
        T5Config(vocab_size=ROWS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, tie_word_embeddings=False)
    )
    told = plain.load_state_dict(state, strict=True)
    assert not told.missing_keys
    assert not torch.equal(plain.state_dict()["shared.weight"], state["shared.weight"])  # the trap
    ours = opened(place).recommender.module
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in state.items())
    assert ours.shared.weight is not ours.lm_head.weight
    assert ours.config.scale_decoder_outputs is False


@pytest.mark.parametrize("tie", [False, True])
def test_logits_are_those_of_the_other_tool(tmp_path: Path, tie: bool) -> None:
    """History as its forward builds it: codes plus l * K, then the user's row, left-padded; decoder from its start token."""
    path = fixtures.tiger_cf(tmp_path / "ckpt", tie=tie)
    found = opened(path, user="5")
    state = {name.removeprefix("model."): t for name, t in torch.load(path / WEIGHTS, weights_only=True).items()}
    reference = T5ForConditionalGeneration(
        T5Config(
            vocab_size=ROWS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=ROWS - 1,
            decoder_start_token_id=ROWS - 3, tie_word_embeddings=tie,
        )
    ).eval()  # fmt: skip
    reference.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"].clone())
    reference.shared.weight.data.copy_(state["shared.weight"])
    inner = {name: t for name, t in state.items() if name not in ("shared.weight", "lm_head.weight")}
    for name, tensor in inner.items():
        reference.get_parameter(name).data.copy_(tensor)
    sids = fixtures.codes()
    wanted = []
    for items in ([3, 4], [7]):
        flat = (sids[items] + np.arange(LEVELS) * SIZE).reshape(-1)
        padded = np.full(8, ROWS - 1)
        padded[8 - len(flat) :] = flat
        tokens = torch.from_numpy(np.append(padded, LEVELS * SIZE + 5))[None]
        mask = torch.tensor([[0] * (8 - len(flat)) + [1] * (len(flat) + 1)])
        with torch.inference_mode():
            wanted.append(
                reference(input_ids=tokens, attention_mask=mask, decoder_input_ids=torch.tensor([[ROWS - 3]])).logits[
                    0, 0
                ]
            )
    order = {item: row for row, item in enumerate(found.table.item_ids)}
    histories = Histories.from_lists([[order["3"], order["4"]], [order["7"]]])
    tokens, lengths = found.recommender.tokens(histories, found.table)
    assert lengths.tolist() == [9, 5]
    assert tokens[0, :8].tolist() == (sids[[3, 4]] + np.arange(LEVELS) * SIZE).reshape(-1).tolist()
    assert tokens[0, 8] == LEVELS * SIZE + 5
    with torch.inference_mode():
        logits = found.recommender.start(tokens, lengths).logits
    assert torch.allclose(logits, torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("tie", [False, True])
def test_nothing_changed_is_written_back_byte_for_byte(tmp_path: Path, tie: bool) -> None:
    source = opened(fixtures.tiger_cf(tmp_path / "ckpt", tie=tie))
    out = written(source, tmp_path / "out")
    for name in (WEIGHTS, INDEX, CONFIG):
        assert (out / name).read_bytes() == (tmp_path / "ckpt" / name).read_bytes(), name
    assert {file.name for file in out.iterdir()} == {WEIGHTS, INDEX, CONFIG, "recerase.json"}
    assert opened(out).digest == source.digest == named_layout("tiger-cf").digest(out)


@pytest.mark.parametrize("tie", [False, True])
def test_changed_tensors_alone_change(tmp_path: Path, tie: bool) -> None:
    path = fixtures.tiger_cf(tmp_path / "ckpt", tie=tie)
    source = opened(path)
    with torch.no_grad():
        source.recommender.module.lm_head.weight[7] += 1
    table = source.table.replace(np.array([0]), np.array([[31, 30, 29, 28]]))
    out = written(source, tmp_path / "out", table)
    before, after = (torch.load(x / WEIGHTS, weights_only=True) for x in (path, out))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    every = ["model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    assert list(before) == list(after)
    assert sorted(changed) == sorted(["model.lm_head.weight", *(every if tie else [])])
    old, new = (json.loads((x / INDEX).read_text()) for x in (path, out))
    assert list(old) == list(new)  # unsorted, and as unsorted as before
    assert [key for key in old if old[key] != new[key]] == [str(source.table.item_ids[0])]
    assert new[str(source.table.item_ids[0])] == [31, 30, 29, 28]
    assert list(old) != sorted(old, key=int)


def test_a_file_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    from recerase.errors import ArtefactError

    path = fixtures.tiger_cf(tmp_path / "ckpt")
    source = opened(path)
    (path / CONFIG).write_text((path / CONFIG).read_text() + " ")
    with pytest.raises(ArtefactError, match=CONFIG):
        written(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="user=12"):
        opened(place, user="12")
    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    shutil.copy2(path / WEIGHTS, path / "other.pth")
    with pytest.raises(CheckpointError, match=r"2 \.pth files") as refused:
        opened(path)
    assert "weights=FILE" in refused.value.remedy
    assert opened(path, weights=WEIGHTS).digest == opened(place).digest
    (path / INDEX).write_text('{"0": [1, 2, 3, 32]}')
    with pytest.raises(TableError, match="below 32"):
        opened(path, weights=WEIGHTS)


def test_inspect_tells_the_traps(place: Path) -> None:
    found = describe(place, trust_pickle=True)
    assert found.facts["layout"] == "tiger-cf"
    assert found.facts["embedding and head"] == "untied"
    assert found.facts["vocabulary rows"] == ROWS
    assert not found.broken
    assert any("transformers 5" in what for what, _ in found.traps)
    assert any("bucket 0 of 12" in what for what, _ in found.traps)
