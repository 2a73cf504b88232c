"""LETTER-TIGER comes back as it was: tokens of codes in use alone, one SID table, and a tokenizer that nothing makes again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from transformers import T5ForConditionalGeneration

from recerase.catalog import Histories
from recerase.errors import ArtefactError, EraseError, TableError
from recerase.layouts.describe import describe
from recerase.layouts.index_json import TOMBSTONE
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.layouts.token_files import token_rows
from recerase.sid.table import SidTable
from recerase.store import publish


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.letter(tmp_path_factory.mktemp("letter") / "ckpt")


def written(source: Checkpoint, out: Path, table: SidTable | None = None) -> Path:
    with publish(out) as result:
        named_layout("letter-tiger").write_back(source, source.recommender, table or source.table, result.directory)
    return out


def rebuilt(index: dict[str, list[str]]) -> dict[str, int]:
    """The vocabulary that LETTER's test script makes from the table: sorted tokens behind T5's own."""
    return {
        token: fixtures.BASE + place for place, token in enumerate(sorted({t for sid in index.values() for t in sid}))
    }


def test_it_reads_as_the_class_it_was_saved_with(place: Path) -> None:
    found = open_checkpoint(place)
    plain = T5ForConditionalGeneration.from_pretrained(place, local_files_only=True).eval()
    state = found.recommender.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    index = json.loads((place / "Toy.index.json").read_text())
    rows = json.loads((place / "added_tokens.json").read_text())
    assert token_rows(place) == {token: row for token, row in rows.items() if token != "<extra_id_0>"} == rebuilt(index)
    for item, sid in zip(found.table.item_ids, found.table.rows().tolist(), strict=True):
        assert sid == [rows[token] for token in index[item]]
    tokens, lengths = found.recommender.tokens(Histories.from_lists([[3, 4], [7]]), found.table)
    assert tokens[0].tolist() == [*(rows[t] for item in "34" for t in index[item]), 1]  # SIDs, then eos
    assert lengths.tolist() == [9, 5]
    mask = (torch.arange(9) < lengths[:, None]).long()
    with torch.inference_mode():
        wanted = plain(
            input_ids=tokens, attention_mask=mask, decoder_input_ids=torch.zeros(2, 1, dtype=torch.long)
        ).logits
        assert torch.allclose(found.recommender.start(tokens, lengths).logits, wanted[:, 0], atol=1e-5)


def test_nothing_changed_is_written_back_byte_for_byte(place: Path, tmp_path: Path) -> None:
    source = open_checkpoint(place)
    out = written(source, tmp_path / "out")
    names = {file.name for file in place.iterdir()} - {"optimizer.pt"}
    assert {file.name for file in out.iterdir()} == names | {"recerase.json"}
    assert all((out / name).read_bytes() == (place / name).read_bytes() for name in names)
    assert open_checkpoint(out).digest == source.digest == named_layout("letter-tiger").digest(out)


def test_published_files_are_readable_and_alone(place: Path, tmp_path: Path) -> None:
    """Trap 7: safetensors writes mode 0600 and may leave a temporary file; we write its bytes ourselves, with a digest."""
    import os
    import stat

    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "theirs.safetensors")
    theirs = stat.S_IMODE((tmp_path / "theirs.safetensors").stat().st_mode)
    old = os.umask(0o022)
    try:
        out = written(open_checkpoint(place), tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o644
    assert theirs in (0o600, 0o644)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        open_checkpoint(out)


def test_one_moved_item_changes_one_entry(place: Path, tmp_path: Path) -> None:
    source = open_checkpoint(place)
    with torch.no_grad():
        source.recommender.module.shared.weight[25] += 1
    table = source.table.replace(np.array([58]), source.table.codes[[57]] * [1, 1, 1, 0] + [0, 0, 0, 3])
    out = written(source, tmp_path / "out", table)
    old, new = (json.loads((x / "Toy.index.json").read_text()) for x in (place, out))
    assert list(old) == list(new)
    assert [key for key in old if old[key] != new[key]] == ["58"]
    before, after = (T5ForConditionalGeneration.from_pretrained(x).state_dict() for x in (place, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    header = 8 + int.from_bytes((place / "model.safetensors").read_bytes()[:8], "little")
    assert (out / "model.safetensors").read_bytes()[:header] == (place / "model.safetensors").read_bytes()[:header]


def test_a_code_without_a_token_is_refused_and_never_given(place: Path, tmp_path: Path) -> None:
    """Trap 1: <a_2> has no row and would be read as unknown."""
    import shutil

    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    index = json.loads((path / "Toy.index.json").read_text())
    index["5"][0] = "<a_2>"
    (path / "Toy.index.json").write_text(json.dumps(index))
    with pytest.raises(TableError, match="Item 5 has <a_2>"):
        open_checkpoint(path)
    table = open_checkpoint(place).table
    with pytest.raises(TableError, match="cannot spell"):
        table.replace(np.array([5]), np.array([[2, 1, 1, 1]]))


def test_reassignment_and_random_sids_keep_to_spelled_codes(place: Path) -> None:
    """Trap 1, with codebooks that know every code: the nearest codewords are those of codes without a row."""
    from types import SimpleNamespace

    from recerase.audit.nearest import random_codes
    from recerase.erase.reassign import CommitConfig, commit, quantiser
    from recerase.sid.codebooks import Codebooks, Recipe

    table = open_checkpoint(place).table
    rng = np.random.default_rng(0)
    points = rng.normal(size=(len(table), 5)).astype(np.float32)
    vectors = []
    for rows in table.schema.rows:
        words = rng.normal(size=(len(rows), 5)).astype(np.float32) * 3
        words[rows < 0] *= 0.01  # the nearest of all
        vectors.append(words)
    codebooks = Codebooks(tuple(vectors), Recipe(np.zeros(5, np.float32), False, False), True, (0.5,) * 4)
    members = np.arange(len(table)) % 6 == 0
    quant = quantiser(table, members, codebooks, points)
    phi = [torch.zeros_like(d) for d in quant.distances]
    moved = commit(table, members, codebooks, points, quant, phi, CommitConfig(candidates=200))
    assert (moved.rows() >= 0).all()
    assert moved.moved(table)[members].all()
    world = SimpleNamespace(random=lambda purpose: np.random.default_rng(1))
    drawn = random_codes(world, table.schema)
    assert all((table.schema.rows[level][drawn[:, level]] >= 0).all() for level in range(table.levels))


def test_the_last_user_of_a_code_leaves_a_tombstone(place: Path, tmp_path: Path) -> None:
    """Trap 2: LETTER makes the vocabulary again from the table, and a lost token would shift the ids of all behind it."""
    source = open_checkpoint(place)
    column = source.table.codes[:, 2]
    lost = int(column[40])
    mine = np.flatnonzero(column == lost)
    other = int(column[column != lost][0])
    codes = source.table.codes[mine].copy()
    codes[:, 2] = other
    table = source.table.replace(mine, codes)
    naive = fixtures.index_of(table.codes)
    true = rebuilt(json.loads((place / "Toy.index.json").read_text()))
    assert rebuilt(naive) != true  # the trap
    out = written(source, tmp_path / "out", table)
    new = json.loads((out / "Toy.index.json").read_text())
    assert rebuilt(new) == true
    stones = [key for key in new if key.startswith(TOMBSTONE)]
    assert stones == [f"{TOMBSTONE}0"]
    assert {key: sid for key, sid in new.items() if key not in stones} == naive
    taken = {tuple(sid) for sid in fixtures.index_of(source.table.codes).values()}
    assert tuple(new[stones[0]]) not in taken | {tuple(sid) for sid in naive.values()}
    back = open_checkpoint(out)
    assert len(back.table) == len(source.table)  # a tombstone is no item
    assert (
        written(back, tmp_path / "again").joinpath("Toy.index.json").read_text() == (out / "Toy.index.json").read_text()
    )


def test_generation_config_is_copied_and_never_used(place: Path, tmp_path: Path) -> None:
    """Trap 4: a top_k of 2 would leave hardly a beam valid."""
    import shutil

    from recerase.model.decode import recommend

    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    (path / "generation_config.json").write_text('{"top_k": 2, "num_beams": 1, "do_sample": true}')
    histories = Histories.from_lists([[3, 4], [7]])
    one, two = (open_checkpoint(where) for where in (place, path))
    lists = [recommend(x.recommender, x.table, histories, k=10) for x in (one, two)]
    assert np.array_equal(lists[0].items, lists[1].items)
    assert (lists[1].items >= 0).all()
    assert (written(two, tmp_path / "out") / "generation_config.json").read_bytes() == (
        path / "generation_config.json"
    ).read_bytes()
    assert any("generation_config.json" in what for what, _ in describe(path).traps)


def test_tokenizer_files_that_contradict_are_refused(place: Path, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    rows = json.loads((path / "added_tokens.json").read_text())
    token = next(iter(rows))
    (path / "added_tokens.json").write_text(json.dumps({**rows, token: 3}))
    with pytest.raises(TableError, match=token):
        open_checkpoint(path, layout="letter-tiger")


def test_what_the_layout_cannot_say_is_refused(place: Path, tmp_path: Path) -> None:
    source = open_checkpoint(place)
    with pytest.raises(EraseError, match="not to be recommended"):
        written(source, tmp_path / "out", source.table.unlisted(np.arange(len(source.table)) < 3))
    assert not (tmp_path / "out").exists()


def test_inspect_names_what_is_there(place: Path) -> None:
    found = describe(place)
    assert found.kind.startswith("letter-tiger")
    assert found.facts["embedding and head"] == "tied"
    assert found.facts["levels"] == 4
    assert found.facts["items sharing their SID"] >= 2
    assert found.facts["left behind"] == ["optimizer.pt"]
    assert sum(found.facts["codes with a vocabulary row"]) == len(token_rows(place))
    assert not found.problems
    assert all(what and remedy for what, remedy in found.traps)


@pytest.mark.parametrize("name", ["amazon_beauty_2014/sids_letter.json", "amazon_industrial/sids_letter_native.json"])
def test_a_public_table_goes_through(data_directory: Path, tmp_path: Path, name: str) -> None:
    file = data_directory / name
    if not file.is_file():
        pytest.skip(f"no {file}")
    index = json.loads(file.read_text())
    path = fixtures.letter(tmp_path / "ckpt", index, width=8)
    (path / "Toy.index.json").write_bytes(file.read_bytes())
    source = open_checkpoint(path)
    present = source.table.codes
    assert len(source.table) == len(index)
    assert source.table.schema.collisions == "allowed"
    assert source.table.collision_rate > 0
    lone = [(level, code) for level in range(4) for code in np.flatnonzero(source.table.usage(level) == 1)]
    rng = np.random.default_rng(0)
    items = rng.choice(len(present), 40, replace=False)
    items = np.union1d(items, [np.flatnonzero(present[:, level] == code)[0] for level, code in lone[:3]]).astype(
        np.int64
    )
    out = written(source, tmp_path / "out", source.table.replace(items, np.roll(present[items], 1, axis=0)))
    new = json.loads((out / "Toy.index.json").read_text())
    assert {t for sid in new.values() for t in sid} == {t for sid in index.values() for t in sid}
    assert list(new)[: len(index)] == list(index)
    assert sum(new[key] != index[key] for key in index) <= len(items)
    assert open_checkpoint(out).table.schema.vocabulary == source.table.schema.vocabulary
