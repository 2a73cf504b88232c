"""MiniOneRec from end to end: inspected, audited, erased, written back, and read by what its users read it with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts.causal_checks import (
    EASY,
    FAST,
    OURS,
    csv_reader,
    files_of,
    info_reader,
    loads,
    old_reader,
    tensors_of,
)
from tests.layouts.causal_fixtures import make_world, minionerec, sid, write_data
from tests.layouts.onerec_fixtures import audit_little

from recerase import api
from recerase.__main__ import run as main
from recerase.errors import ArtefactError, CheckpointError, EraseError, TableError, UsageError
from recerase.layouts.minionerec import write_back
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.runtime import RunConfig

ACME = api.ConceptSpec(("brand=Acme",))
RUN = RunConfig(threads=1, device="cpu")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model (tied, bfloat16, in shards), untied (float32, one file), ragged, data, policy.toml; read only."""
    home = tmp_path_factory.mktemp("mini")
    world = make_world()
    minionerec(home / "model", world, shard="8KB")
    minionerec(home / "untied", world, tied=False, dtype=torch.float32)
    minionerec(home / "ragged", make_world(ragged=True))
    write_data(home / "data", world)
    (home / "policy.toml").write_text(EASY)
    return home


def erased(shop: Path, model: str, out: Path, method: str, overrides: list[str] | None = None) -> Path:
    api.erase(
        shop / model, ACME, shop / "data", out, method=method, overrides=overrides or (), policy=shop / "policy.toml",
        max_users=10, run=RUN,
    )  # fmt: skip
    return out


def test_it_is_recognised_and_described(shop: Path) -> None:
    assert detect_layout(shop / "model").name == "minionerec"
    found = api.inspect(shop / "model")
    assert found.kind.startswith("minionerec")
    assert (found.facts["levels"], found.facts["dtype"], found.facts["embedding and head"]) == (3, "bfloat16", "tied")
    assert found.facts["window (history items)"] == 10
    assert found.problems == ()
    assert "left behind" not in found.facts


def test_tracer_rewrites_every_sid_and_nothing_else(shop: Path, tmp_path: Path) -> None:
    source = shop / "model"
    before = files_of(source)
    out = erased(shop, "model", tmp_path / "out", "tracer", FAST)
    assert files_of(source) == before
    after = files_of(out)
    assert set(after) == set(before) | OURS
    assert len([name for name in before if name.startswith("model-")]) > 1
    carrying = {name for name in before if name.endswith((".csv", ".txt", "Toys.index.json", ".safetensors"))}
    assert {name for name in before if after[name] != before[name]} <= carrying

    old, new = (json.loads((path / "Toys.index.json").read_text()) for path in (source, out))
    new = {item: tokens for item, tokens in new.items() if not item.startswith("recerase-tombstone")}
    moved = {item for item in old if old[item] != new[item]}
    assert moved
    assert moved <= {str(i) for i in range(8)}
    assert info_reader(out) == {item: "".join(tokens) for item, tokens in new.items()}
    for history, sids, item, target in csv_reader(out):
        assert sids == ["".join(new[i]) for i in history]
        assert target == "".join(new[item])
    for name in carrying - {"Toys.index.json"}:
        if not name.endswith(".safetensors"):  # all but the SIDs is as it was: titles, quotes, a title that holds a SID
            text, was = after[name].decode(), before[name].decode()
            for item in moved:
                assert "".join(old[item]) in was
            assert text.count("Speaks of <a_1><b_2><c_3>") == was.count("Speaks of <a_1><b_2><c_3>")
            assert len(text.splitlines()) == len(was.splitlines())

    was, now = tensors_of(source), tensors_of(out)
    assert list(was) == list(now)
    assert all(now[name].dtype == tensor.dtype == torch.bfloat16 for name, tensor in was.items())
    assert any(not torch.equal(was[name], now[name]) for name in was)
    opened = open_checkpoint(out)
    ids = old_reader(out)
    assert {item: opened.table.rows()[row].tolist() for row, item in enumerate(opened.table.item_ids)} == {
        item: ids[item] for item in opened.table.item_ids
    }
    model = loads(out)
    tokens, lengths = opened.recommender.tokens(_histories(), opened.table)
    with torch.no_grad():
        for b in range(len(tokens)):
            row = tokens[b : b + 1, : int(lengths[b])]
            plain = model(input_ids=row, use_cache=False).logits[0, -1]
            assert torch.equal(plain, opened.recommender.module(input_ids=row, use_cache=False).logits[0, -1])  # type: ignore[operator]


def _histories() -> object:
    from recerase.catalog.interactions import Histories

    return Histories.from_lists([[8, 9, 10], [20], []])


def test_filtering_takes_items_off_the_list_and_changes_no_other_byte(shop: Path, tmp_path: Path) -> None:
    out = erased(shop, "untied", tmp_path / "out", "filter")
    before, after = files_of(shop / "untied"), files_of(out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"info/Toys_5_2016-10-2018-11.txt"}
    kept = [
        line for line in before[changed.pop()].decode().split("\n") if line.split("\t")[-1] not in map(str, range(8))
    ]
    assert info_reader(out).keys() == {str(i) for i in range(8, 40)}
    assert set(kept) >= set(after["info/Toys_5_2016-10-2018-11.txt"].decode().split("\n"))
    again = open_checkpoint(out)
    assert again.table.listed.tolist() == [i >= 8 for i in range(40)]
    assert any("not on the item list" in told for told, _ in detect_layout(out).remarks(again))


def test_an_untied_head_stays_untied_and_no_other_file_changes(shop: Path, tmp_path: Path) -> None:
    out = erased(
        shop, "untied", tmp_path / "out", "renormalise", ["settle_steps=2", "pool=1", "batch=8", "sequences=8"]
    )
    was, now = tensors_of(shop / "untied"), tensors_of(out)
    assert not torch.equal(was["lm_head.weight"], now["lm_head.weight"])
    assert not torch.equal(now["lm_head.weight"], now["model.embed_tokens.weight"])
    changed = {name for name, data in files_of(shop / "untied").items() if files_of(out)[name] != data}
    assert changed == {"model.safetensors"}
    loads(out)


def test_unchanged_means_byte_for_byte(shop: Path, tmp_path: Path) -> None:
    for model in ("model", "untied", "ragged"):
        opened = open_checkpoint(shop / model)
        write_back(opened, opened.recommender, opened.table, tmp_path / model) if (
            tmp_path / model
        ).mkdir() is None else None
        assert files_of(tmp_path / model) == files_of(shop / model)


def test_sids_of_different_lengths_end_in_the_line_end(shop: Path) -> None:
    opened = open_checkpoint(shop / "ragged")
    assert opened.table.ragged
    from recerase.layouts.prompts import load_tokenizer

    tokenizer = load_tokenizer(shop / "ragged")
    world = make_world(ragged=True)
    for item in (0, 10):
        spelled = tokenizer.encode(sid(world.codes[item]) + "\n", add_special_tokens=False)
        rows = [int(row) for row in opened.table.rows()[item] if row >= 0]
        assert rows == spelled[: len(rows)]
    with pytest.raises(UsageError, match="one length"):
        api.erase(shop / "ragged", ACME, shop / "data", shop / "never", policy=shop / "policy.toml", run=RUN)


def test_an_audit_reads_it_inside_its_prompt(shop: Path, tmp_path: Path) -> None:
    report = api.audit(shop / "model", ACME, shop / "data", policy=shop / "policy.toml", max_users=10, run=RUN)
    assert report.decision.verdict.value in ("pass", "inconclusive")
    file = tmp_path / "prompt.json"
    file.write_text('{"text": "Next after {history}:", "separator": ","}')
    other = RunConfig(threads=1, device="cpu", layout_options=(("prompt", str(file)),))
    found = api.audit(shop / "model", ACME, shop / "data", policy=shop / "policy.toml", max_users=10, run=other)
    assert found.inputs["subject"] != report.inputs["subject"]
    assert [m.value for m in found.measurements] != [m.value for m in report.measurements]


def spoiled(shop: Path, to: Path) -> Path:
    return Path(shutil.copytree(shop / "untied", to))


def test_directories_whose_files_disagree_are_refused(shop: Path, tmp_path: Path) -> None:
    place = spoiled(shop, tmp_path / "info")
    file = next((place / "info").glob("*.txt"))
    file.write_text(file.read_text().replace("<a_", "<a_1", 1))
    with pytest.raises(TableError, match=r"gives item '0' the SID"):
        open_checkpoint(place)
    place = spoiled(shop, tmp_path / "csv")
    file = next((place / "valid").glob("*.csv"))
    head, _, rest = file.read_text().partition("\n")
    file.write_text(f"{head}\n" + "<c_9".join(rest.rsplit("<c_", 1)))
    with pytest.raises(TableError, match=r"record 60: item_sid says"):
        open_checkpoint(place)
    place = spoiled(shop, tmp_path / "index")
    index = json.loads((place / "Toys.index.json").read_text())
    index["3"][0] = "<a_77>"
    (place / "Toys.index.json").write_text(json.dumps(index))
    with pytest.raises(TableError):
        open_checkpoint(place)
    place = spoiled(shop, tmp_path / "code")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "layer_types": ["sliding_attention"] * 2}))
    with pytest.raises(CheckpointError, match="sliding"):
        open_checkpoint(place)


def test_what_changes_while_it_is_in_use_is_not_published(shop: Path, tmp_path: Path) -> None:
    place = spoiled(shop, tmp_path / "source")
    opened = open_checkpoint(place)
    (place / "tokenizer_config.json").write_text("{}")
    (tmp_path / "staging").mkdir()
    with pytest.raises(ArtefactError, match=r"tokenizer_config\.json was changed"):
        write_back(opened, opened.recommender, opened.table, tmp_path / "staging")


def test_without_an_item_list_nothing_can_be_taken_off_it(shop: Path, tmp_path: Path) -> None:
    place = spoiled(shop, tmp_path / "source")
    shutil.rmtree(place / "info")
    opened = open_checkpoint(place)
    (tmp_path / "staging").mkdir()
    with pytest.raises(EraseError, match="no item list"):
        write_back(opened, opened.recommender, opened.table.unlisted(np.arange(40) < 8), tmp_path / "staging")


def apart(shop: Path, to: Path) -> tuple[Path, Path]:
    """Weights alone, and a data directory of two shops as MiniOneRec comes with: index/, info/, train/, valid/, test/."""
    weights, data = Path(shutil.copytree(shop / "untied", to / "weights")), to / "Amazon"
    data.mkdir()
    for folder in ("info", "train", "valid", "test"):
        shutil.move(weights / folder, data / folder)
        for file in list((data / folder).iterdir()):
            shutil.copy(file, file.with_name(file.name.replace("Toys", "Tools")))
    (data / "index").mkdir()
    shutil.move(weights / "Toys.index.json", data / "index" / "Toys.index.json")
    (data / "index" / "Tools.index.json").write_text('{"0": ["<a_1>"]}')
    return weights, data


def test_weights_and_data_may_lie_apart(shop: Path, tmp_path: Path) -> None:
    weights, data = apart(shop, tmp_path)
    options = {"data": str(data), "sids": str(data / "index" / "Toys.index.json")}
    with pytest.raises(CheckpointError, match=r"holds no \*\.index\.json"):
        open_checkpoint(weights)
    with pytest.raises(CheckpointError, match="holds 2 SID tables"):
        open_checkpoint(weights, options={"data": str(data)})
    opened = open_checkpoint(weights, options=options)
    digest = named_layout("minionerec").digest
    assert digest is not None
    assert opened.recommender.window == 10
    assert opened.digest == digest(weights, options)
    before = files_of(tmp_path)
    for name, item in (("same", None), ("moved", 3)):
        out = tmp_path / name
        out.mkdir()
        table = opened.table if item is None else opened.table.replace(np.array([item]), opened.table.codes[[30]])
        write_back(opened, opened.recommender, table, out)
        mine = {file: content for file, content in files_of(data).items() if "Tools" not in file}
        assert files_of(out).keys() == files_of(weights).keys() | mine.keys()
        changed = {file for file, content in {**files_of(weights), **mine}.items() if files_of(out)[file] != content}
        assert all(Path(file).parent.name in ("index", "info", "train", "valid", "test") for file in changed)
        assert bool(changed) == (item is not None)
        again = open_checkpoint(out)  # what was published is whole, and read with its own files whatever is said
        assert again.digest == open_checkpoint(out, options=options).digest == digest(out) == digest(out, options)
        assert (again.digest == opened.digest) == (item is None)
        assert (again.table.codes == table.codes).all()
        spelled = {str(i): sid(codes) for i, codes in enumerate(table.codes.tolist())}
        assert info_reader(out) == spelled
        assert all(
            sids == [spelled[i] for i in history] and target == spelled[last]
            for history, sids, last, target in csv_reader(out)
        )
    assert {file: content for file, content in files_of(tmp_path).items() if file in before} == before
    with pytest.raises(CheckpointError, match="There is no directory"):
        open_checkpoint(weights, options={"data": str(tmp_path / "nowhere")})


def test_a_report_is_verified_with_the_options_it_was_made_with(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_little(monkeypatch)
    weights, data = apart(shop, tmp_path)
    options = {"data": str(data), "sids": str(data / "index" / "Toys.index.json")}
    run = RunConfig(threads=1, device="cpu", layout_options=tuple(options.items()))
    report = tmp_path / "audit.json"
    api.audit(weights, ACME, shop / "data", policy=shop / "policy.toml", max_users=2, outputs=[report], run=run)
    said = [f"--layout-set={key}={value}" for key, value in options.items()]
    assert main(["report", "verify", str(report), "--subject", str(weights), *said]) == 0
    assert main(["report", "verify", str(report), "--subject", str(weights)]) == 4
    assert main(["report", "verify", str(report), "--subject", str(weights), "--layout-set=datum=x"]) == 2
    assert api.verify_report(report, subject=shop / "untied") != ()
    file = next((data / "info").glob("Toys*.txt"))
    file.write_text(file.read_text().replace("Item 2\t", "Item two\t"))
    assert "its digest differs" in " ".join(api.verify_report(report, subject=weights, options=options))
