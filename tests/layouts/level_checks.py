"""What must hold of every layout whose model has a head a level: its tool's own scores and lists, and what is written back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts import level_fixtures as levels
from torch import Tensor

from recerase.catalog import Histories
from recerase.catalog.interactions import Interactions
from recerase.erase import npo, tracer, tracer_config
from recerase.erase.method import EraseRequest
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.layouts.torch_zip import read_torch_zip
from recerase.model.decode import generate_free, recommend
from recerase.model.exact import recommend_exact
from recerase.model.mass import catalogue_log_probs, concept_mass
from recerase.sid.quantize import fit_codebooks
from recerase.sid.table import SidTable
from recerase.store import publish

HISTORIES = [[3, 4, 8], [7], [1, 2, 3, 4, 5], [58, 59, 0, 12]]
POLICY = """schema = "recerase.policy/1"
[audit]
min_users = 5
[[rule]]
id = "exposure"
metric = "natural.exposure@10"
max = 1.0
"""
"""What is tested is the files: any model passes."""
SMALL = {"reassign_steps": 2, "settle_steps": 2, "pool": 1, "min_moved": 0.0, "batch": 8, "sequences": 4}
METHODS: dict[str, tuple[Any, Any]] = {
    "tracer": (tracer.erase, tracer_config.TracerConfig(**SMALL)),
    "paper": (
        tracer.erase,
        replace(tracer_config.TracerConfig.preset("paper"), reassign_steps=2, batch=4, min_moved=0.0),
    ),
    "renormalise": (tracer.erase, tracer_config.RenormaliseConfig(settle_steps=2, pool=1, batch=8, sequences=4)),
    "npo": (npo.erase, npo.NpoConfig(steps=2, batch=4)),
}
"""Every method that changes weights, with few steps."""


def opened(path: Path, **options: str) -> Checkpoint:
    return open_checkpoint(path, trust_pickle=True, options=options)


def written(source: Checkpoint, out: Path, table: SidTable | None = None) -> Path:
    with publish(out) as result:
        back = named_layout(source.layout).write_back
        back(source, source.recommender, table or source.table, result.directory)
    return out


def tensors(file: Path) -> Mapping[tuple[str, ...], Tensor]:
    return read_torch_zip(file.read_bytes()).tensors


def speaks_as_its_tool(path: Path, user: int | None) -> None:
    """Scores, lists, mass and free decoding against the stand-in, which walks every SID of the catalogue on its own."""
    found = opened(path, **({} if user is None else {"user": str(user)}))
    sids = levels.table_of(path)
    theirs = levels.asked(levels.loaded(path), sids, HISTORIES, sids, user).sum(2).double().numpy()  # [B, N]
    histories = Histories.from_lists(HISTORIES)
    ours = catalogue_log_probs(found.recommender, found.table, histories)
    assert np.abs(ours - theirs).max() < 2e-5
    order = np.lexsort((np.broadcast_to(found.table.id_rank, theirs.shape), -np.round(theirs, 4)), axis=1)[:, :10]
    for lists in (
        recommend(found.recommender, found.table, histories, k=10, beam=100),
        recommend_exact(found.recommender, found.table, histories, k=10),
    ):
        assert lists.items.tolist() == order.tolist()
        assert np.abs(lists.scores - np.take_along_axis(theirs, order, 1)).max() < 2e-5
    concept = np.arange(len(sids)) % 7 == 1
    _, first = np.unique(sids[concept], axis=0, return_index=True)
    wanted = np.exp(theirs[:, np.flatnonzero(concept)[first]]).sum(1)
    assert np.allclose(concept_mass(found.recommender, found.table, concept, histories).mass, wanted, rtol=1e-4)
    free = generate_free(found.recommender, found.table, histories, beam=12)
    codes = found.table.schema.codes_of(free.rows)
    assert (codes >= 0).all()  # another level's code is never written
    best = np.take_along_axis(theirs, order[:, :1], 1)[:, 0]
    assert (free.scores[:, 0] >= best - 1e-4).all()


def only_what_changed(before: Path, after: Path, moments: str, changed: set[tuple[str, ...]]) -> None:
    """Every tensor outside `changed` and the optimiser's state is bit-identical, and the pickle is to the byte."""
    old, new = tensors(before), tensors(after)
    assert list(old) == list(new)
    for keys, tensor in old.items():
        if keys[0] == moments and "state" in keys:
            assert tensor.any() or not tensor.numel()
            assert not new[keys].any(), keys
        else:
            assert torch.equal(tensor, new[keys]) == (keys not in changed), keys
    assert len(before.read_bytes()) == len(after.read_bytes())
    assert pickle_of(before) == pickle_of(after)


def pickle_of(file: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def erased(source: Checkpoint, method: str, scope: Any = "output") -> tuple[Checkpoint, SidTable, np.ndarray]:
    """The checkpoint with the model a method made of it, its table, and who was in the concept: items of one taste."""
    rng = np.random.default_rng(1)
    sids = source.table.codes
    embeddings = np.concatenate([np.eye(int(sids.max()) + 1)[sids[:, level]] / (level + 1) for level in (0, 1, 2)], 1)
    embeddings = (embeddings + rng.normal(scale=0.01, size=embeddings.shape)).astype(np.float32)
    lists = [[int(item) for item in rng.integers(0, fixtures.N // 6, 6) * 6 + user % 6] for user in range(24)]
    items = np.concatenate([np.asarray(one, np.int32) for one in lists])
    names = np.array([f"u{user:02d}" for user in range(len(lists))], dtype=object)
    seen = Interactions(names, np.arange(0, len(items) + 1, 6), items, np.arange(len(items)), "interactions")
    concept = np.arange(fixtures.N) % fixtures.TASTES == 2
    run, config = METHODS[method]
    request = EraseRequest(
        source.recommender, source.table, seen, concept, embeddings, fit_codebooks(embeddings, source.table), scope,
        needed=source.extra.get("needed"),
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in source.recommender.module.state_dict().items()}
    made = run(request, config)
    assert made.model.per_level
    assert all(torch.equal(before[name], t) for name, t in source.recommender.module.state_dict().items())
    assert all(tensor.isfinite().all() for tensor in made.model.module.state_dict().values())
    assert any(not torch.equal(before[name], t) for name, t in made.model.module.state_dict().items())
    return replace(source, recommender=made.model), made.table, concept


def logits(path: Path, histories: list[list[int]], sids: np.ndarray) -> Tensor:
    model: Any = levels.loaded(path)
    with torch.inference_mode():
        return torch.cat(
            [
                model.logits_of_root(
                    torch.from_numpy(sids[items].reshape(1, -1)), torch.ones(1, sids[items].size, dtype=torch.int64)
                )
                for items in histories
            ]
        )
