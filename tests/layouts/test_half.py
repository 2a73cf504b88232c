"""Checkpoints of half precision: trained in float32, rounded once, and what nobody changed has the bits it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.layouts.causal_checks import tensors_of
from tests.layouts.causal_fixtures import lc_rec, make_world, write_data
from tests.layouts.foreign_fixtures import letter

from recerase.api import ConceptSpec
from recerase.assembly import choose_concept, open_checkpoint_for
from recerase.catalog import load_catalogue
from recerase.erase.examples import draw, examples
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.erase.precision import as_stored, in_single, student
from recerase.errors import EraseError
from recerase.layouts.native import Checkpoint, save_checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.model.mass import concept_mass
from recerase.runtime import RunConfig

PROMPT = '{"text": "next: {history}"}'


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in bfloat16 and with the same numbers in float32, data, a short prompt; read only."""
    home = tmp_path_factory.mktemp("half")
    world = make_world()
    write_data(home / "data", world)
    (home / "prompt.json").write_text(PROMPT)
    lc_rec(home / "half", world, dtype=torch.bfloat16)
    lc_rec(home / "single", world)
    state = trained(*opened(home, home / "single"))
    half = {name: state[name].bfloat16() for name in load_file(home / "single" / "model.safetensors")}
    save_file(half, home / "half" / "model.safetensors", metadata={"format": "pt"})
    single = {name: tensor.float() for name, tensor in half.items()}
    save_file(single, home / "single" / "model.safetensors", metadata={"format": "pt"})
    return home


def trained(checkpoint: Checkpoint, catalogue: Any) -> dict[str, torch.Tensor]:
    """The state of the model when it has learned to speak SIDs, more or less."""
    model, rng = checkpoint.recommender, np.random.default_rng(0)
    pairs = examples(catalogue.interactions, checkpoint.table, np.zeros(len(checkpoint.table), bool), 5).retain
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(40):
        batch = draw(pairs, 32, rng)
        rows = item_rows(model, checkpoint.table, batch.targets)[:, None]
        optimizer.zero_grad()
        (-sid_log_probs(model, start(model, checkpoint.table, batch), rows).mean()).backward()
        optimizer.step()
    return model.module.state_dict()


def opened(home: Path, place: Path) -> tuple[Checkpoint, Any]:
    catalogue = load_catalogue(home / "data")
    run = RunConfig(threads=1, device="cpu", layout_options=(("prompt", str(home / "prompt.json")),))
    return open_checkpoint_for(place, catalogue, run), catalogue


def erased(home: Path, place: Path, out: Path) -> Checkpoint:
    """What a method makes of a checkpoint, written and read back."""
    before, catalogue = opened(home, place)
    members = choose_concept(ConceptSpec(("brand=Acme",)), catalogue, None).members
    request = EraseRequest(before.recommender, before.table, catalogue.interactions, members)
    method, _ = get_method("renormalise")
    chosen = {"settle_steps": "40", "pool": "1", "batch": "8", "sequences": "0", "settle_lr": "1.5e-3"}
    made = method.run(request, make_config(method, None, chosen))
    named_layout(before.layout).write_back(before, made.model, made.table, _new(out))
    return opened(home, out)[0]


def _new(out: Path) -> Path:
    out.mkdir()
    return out


def mass(home: Path, checkpoint: Checkpoint) -> float:
    """Mean exact mass of the concept after some histories."""
    catalogue = load_catalogue(home / "data")
    members = choose_concept(ConceptSpec(("brand=Acme",)), catalogue, None).members
    histories = catalogue.interactions.split().test.take(np.arange(16))
    return float(concept_mass(checkpoint.recommender, checkpoint.table, members, histories).mass.mean())


def test_it_gets_as_far_as_float32(shop: Path, tmp_path: Path) -> None:
    before, half, single = (
        mass(shop, opened(shop, shop / "half")[0]),
        mass(shop, erased(shop, shop / "half", tmp_path / "half")),
        mass(shop, erased(shop, shop / "single", tmp_path / "single")),
    )
    assert single < 0.5 * before
    assert half == pytest.approx(single, rel=0.05)
    made = tensors_of(tmp_path / "half")
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    rounded = {name: tensor.bfloat16() for name, tensor in tensors_of(tmp_path / "single").items()}
    same = sum(int((made[name] == rounded[name]).sum()) for name in made) / sum(t.numel() for t in made.values())
    assert same > 0.95  # the teacher of both is one, and so are the steps


def test_what_was_not_touched_has_its_bits(shop: Path, tmp_path: Path) -> None:
    """Layers that take no gradient, rows that nothing read; and a model that no step was taken on is written as it was."""
    checkpoint, catalogue = opened(shop, shop / "half")
    model = checkpoint.recommender
    members = choose_concept(ConceptSpec(("brand=Acme",)), catalogue, None).members
    model.module.get_submodule("model.layers.0").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    method, _ = get_method("npo")
    request = EraseRequest(model, checkpoint.table, catalogue.interactions, members)
    made = method.run(request, make_config(method, None, {"steps": "3", "batch": "8"})).model.module
    after = made.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("layers.0." in name for name in changed)
    assert "model.embed_tokens.weight" in changed
    asked = checkpoint.recommender.prompt
    assert asked is not None
    read = {*np.unique(checkpoint.table.rows()).tolist(), *asked.rows}
    unread = [row for row in range(len(before["model.embed_tokens.weight"])) if row not in read]
    assert unread
    assert torch.equal(before["model.embed_tokens.weight"][unread], after["model.embed_tokens.weight"][unread])
    again = as_stored(student(in_single(model)), model)
    named_layout("lc-rec").write_back(checkpoint, again, checkpoint.table, _new(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (shop / "half" / "model.safetensors").read_bytes()


def test_a_native_checkpoint_keeps_its_dtype(shop: Path, tmp_path: Path) -> None:
    checkpoint, catalogue = opened(shop, shop / "half")
    members = choose_concept(ConceptSpec(("brand=Acme",)), catalogue, None).members
    method, _ = get_method("npo")
    request = EraseRequest(checkpoint.recommender, checkpoint.table, catalogue.interactions, members)
    made = method.run(request, make_config(method, None, {"steps": "1", "batch": "4"}))
    out = _new(tmp_path / "out")
    save_checkpoint(out, made.model, made.table, None, None)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    angles = made.model.module.get_buffer("model.rotary_emb.inv_freq")
    assert angles.dtype == torch.float32


def test_what_half_precision_cannot_hold_is_refused(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, catalogue = opened(shop, shop / "half")
    model = checkpoint.recommender.around(checkpoint.recommender.module.to(torch.float16))

    def grown(request: EraseRequest, config: object) -> Erased:
        made = student(request.model)
        assert next(made.module.parameters()).dtype == torch.float32
        with torch.no_grad():
            next(made.module.parameters())[0, 0] = 1e6
        return Erased(made, request.table, {})

    monkeypatch.setattr("recerase.erase.npo.erase", grown)
    method, _ = get_method("npo")
    request = EraseRequest(model, checkpoint.table, catalogue.interactions, np.ones(len(checkpoint.table), bool))
    with pytest.raises(EraseError, match="no longer finite"):
        method.run(request, make_config(method, None, {}))


def test_float32_is_not_copied_and_ties_stay(shop: Path, tmp_path: Path) -> None:
    model = opened(shop, shop / "single")[0].recommender
    assert in_single(model) is model
    model.module.get_submodule("model.layers.0").requires_grad_(False)
    own, copied = model.module.state_dict(keep_vars=True), student(model).module.state_dict(keep_vars=True)
    assert all((own[name] is copied[name]) == ("layers.0." in name) for name in own)  # frozen ones alone are shared
    tied = open_checkpoint(letter(tmp_path / "t5")).recommender
    tied.module.bfloat16()
    for twin in (in_single(tied), student(in_single(tied))):
        module: Any = twin.module
        assert module.lm_head.weight is module.shared.weight is module.encoder.embed_tokens.weight
        assert module.shared.weight.dtype == torch.float32
