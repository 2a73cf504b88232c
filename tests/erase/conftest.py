"""A small world to erase from: 40 items in five tastes, the first taste and one item of the second being the concept.

Users walk from an item to the next of the same taste, so a trained model is nearly sure of the concept where a history
leads to it, and a random one with large weights has an opinion on every token. Item 37 is retained and unlisted, items 6
(concept) and 39 (retained) have no SID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.cases import CASES, Kept, Listening, bits, brief, settings_of
from torch import Tensor

from recerase.catalog.interactions import Histories, Interactions
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.methods import get_method
from recerase.model.recommender import ModelConfig, Recommender, new_recommender, wrap
from recerase.model.training import TrainConfig, train
from recerase.sid.codebooks import Codebooks, Recipe, nearest_codes
from recerase.sid.resolve import resolve_collisions
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import BoolArray, FloatArray

CODES = (5, 6, 8)
N, TASTE, WIDTH = 40, 8, 6
KINDS = ("causal", "seq2seq")
SHAPE = {"width": 16, "layers": 1, "heads": 2, "feed_forward": 24, "window": 5, "dropout": 0.1}
RECIPE = TrainConfig(epochs=20, batch=32, lr=3e-2, validate_every=20, validation_users=20, seed=3, dropout=0.0)


@dataclass(frozen=True, eq=False)
class World:
    """Everything but a model."""

    table: SidTable
    interactions: Interactions
    concept: BoolArray
    embeddings: FloatArray
    codebooks: Codebooks

    @property
    def members(self) -> BoolArray:
        """[N] concept items that have a SID."""
        return self.concept & self.table.present

    @property
    def retained(self) -> BoolArray:
        """[N] other items that have a SID."""
        return ~self.concept & self.table.present


def walks(users: int, seed: int, first: int = 0) -> list[list[int]]:
    """Sequences of 2 to 9 items; after an item mostly the next of its taste, else any."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(users):
        walk = [int(rng.integers(first, N))]
        for _ in range(int(rng.integers(1, 9))):
            taste, place = divmod(walk[-1], TASTE)
            stays = rng.random() < 0.85
            walk.append(taste * TASTE + (place + 1) % TASTE if stays else int(rng.integers(first, N)))
        out.append(walk)
    return out


def interactions_of(lists: list[list[int]]) -> Interactions:
    """Interactions of users with these sequences."""
    items = np.concatenate([np.asarray(x, np.int32) for x in lists])
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    names = np.array([f"u{u:02d}" for u in range(len(lists))], dtype=object)
    return Interactions(names, offsets, items, np.arange(len(items), dtype=np.int64), "interactions")


@cache
def the_world() -> World:
    rng = np.random.default_rng(12)
    taste = np.arange(N) // TASTE
    embeddings = (2.0 * rng.normal(size=(5, WIDTH))[taste] + rng.normal(size=(N, WIDTH))).astype(np.float32)
    recipe = Recipe(embeddings.mean(0), True, True)
    words: list[FloatArray] = []
    residual = Codebooks((), recipe, False, ()).enter(embeddings)
    for level, size in enumerate(CODES):  # codewords: the residuals of some items
        words.append(residual[rng.permutation(N)[:size]].astype(np.float32))
        books = Codebooks(tuple(words), recipe, False, (1.0,) * (level + 1))
        residual = books.leave(residual, nearest_codes(residual, words[level]), level)
    codes, resolved = resolve_collisions(books.encode(embeddings), books, embeddings)
    codes[[6, 39]] = -1
    listed = np.ones(N, bool)
    listed[[6, 37, 39]] = False
    ids = [f"i{i:02d}" for i in range(N)]
    table = SidTable.build(ids, codes, SidSchema.native(CODES), listed=listed, resolved=resolved)
    concept = np.arange(N) <= TASTE
    return World(table, interactions_of(walks(80, 1)), concept, embeddings, books)


def small(kind: str) -> ModelConfig:
    """The shape of every recommender here."""
    return ModelConfig(**{**SHAPE, "kind": kind})  # type: ignore[arg-type]


@cache
def _trained(kind: str) -> Recommender:
    world = the_world()
    model = new_recommender(small(kind), world.table.schema, RECIPE.seed)
    train(model, world.table, world.interactions.split(), RECIPE)
    return model


@pytest.fixture(scope="session")
def world() -> World:
    return the_world()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trained() -> Callable[[str], Recommender]:
    """trained(kind): a copy of a recommender that has learned the walks."""

    def build(kind: str) -> Recommender:
        model = _trained(kind)
        twin = new_recommender(small(kind), model.schema, 0).module
        twin.load_state_dict(model.module.state_dict())
        return wrap(twin, model.schema, model.window)

    return build


@pytest.fixture
def loud() -> Callable[..., Recommender]:
    """loud(kind, schema=the world's): untrained, with weights so large that every token and position matters."""

    def build(kind: str, schema: SidSchema | None = None, seed: int = 0) -> Recommender:
        model = new_recommender(small(kind), schema or the_world().table.schema, seed)
        with torch.no_grad():
            for name, weight in model.module.named_parameters():
                if weight.dim() == 2:
                    weight.mul_({"causal": 8.0, "seq2seq": 1.5}[kind] if "relative" not in name else 4.0)
        model.module.eval()
        return model

    return build


@pytest.fixture
def ask(world: World, trained: Callable[[str], Recommender]) -> Callable[..., EraseRequest]:
    """ask(kind, **changes): a request on the trained recommender."""

    def build(kind: str = "causal", **changes: Any) -> EraseRequest:
        values: dict[str, Any] = {
            "model": trained(kind),
            "table": world.table,
            "interactions": world.interactions,
            "concept": world.concept,
            "embeddings": world.embeddings,
            "codebooks": world.codebooks,
            "training": {"model": asdict(small(kind)), "training": asdict(RECIPE)},
        }
        return EraseRequest(**{**values, **changes})

    return build


@pytest.fixture
def batch() -> Histories:
    """Histories with and without the concept, without a readable item, empty, and longer than the window."""
    lists = [[9, 10, 11], [16, 2, 17, 3], [], [5, 1, 2, 3, 4, 0], [39, 6], [33, 25, 8, 20, 12, 13, 38, 9], [24]]
    return Histories.from_lists(lists, targets=[12, 18, 20, 6, 30, 10, 25])


@pytest.fixture
def plain() -> Callable[[Recommender, SidTable, list[int], Tensor], Tensor]:
    """plain(model, table, items, paths [P, L]): next-row log-probs [P, L, V] along paths, by transformers' forward."""
    return forward


def forward(model: Recommender, table: SidTable, items: list[int], paths: Tensor, embeds: Any = None) -> Tensor:
    """The brute force: one history, no cache, no tree. `embeds` maps an item to the vectors [L, D] that stand for it."""
    read = [i for i in items if table.codes[i, 0] >= 0][-model.window :]
    embed = model.module.get_input_embeddings()
    spelled = [embed(torch.tensor(table.rows()[i])) for i in read]
    if embeds:
        spelled = [embeds.get(i, vectors) for i, vectors in zip(read, spelled, strict=True)]
    many, levels = paths.shape
    if model.kind == "causal":
        before = torch.cat([embed(torch.tensor([model.schema.bos])), *spelled])[None].expand(many, -1, -1)
        logits = model.module(inputs_embeds=torch.cat([before, embed(paths)], 1)).logits[:, -levels - 1 : -1]
    else:
        before = torch.cat([*spelled, embed(torch.tensor([model.schema.eos]))])[None].expand(many, -1, -1)
        begin = torch.full((many, 1), model.schema.pad)
        decoder = torch.cat([begin, paths[:, :-1]], 1)
        logits = model.module(inputs_embeds=before, decoder_input_ids=decoder).logits
    return logits.double().log_softmax(-1)


def items_of(histories: Histories, b: int) -> list[int]:
    """History b as a list."""
    return [int(i) for i in histories.items[histories.offsets[b] : histories.offsets[b + 1]]]


_DONE: dict[tuple[str, str], tuple[EraseRequest, Erased, dict[str, Any]]] = {}


@pytest.fixture
def done(case: str, kind: str, ask: Callable[..., EraseRequest]) -> tuple[EraseRequest, Erased, dict[str, Any]]:
    """The request, the result, and what was seen around the run; run once a case."""
    if (case, kind) not in _DONE:
        observer, pieces = Listening(), Kept()
        request = ask(kind, observer=observer, state=pieces, training=brief(ask(kind).training))
        weights, random = bits(request.model), torch.get_rng_state()
        numpy_state = str(np.random.get_state())  # noqa: NPY002 - the state that must not be touched
        erased = get_method(case)[0].run(request, settings_of(case))
        around = {
            "weights": weights,
            "random": torch.equal(random, torch.get_rng_state()),
            "numpy": numpy_state == str(np.random.get_state()),  # noqa: NPY002
            "observer": observer,
            "pieces": pieces,
        }
        _DONE[case, kind] = (request, erased, around)
    return _DONE[case, kind]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)
