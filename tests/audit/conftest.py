"""A small world with known truths: 36 items in three groups of twelve, the first group being the concept.

The planted recommender is a bigram model: its embedding of row r is the r-th unit vector, attention and feed-forward
add nothing, and the head turns the last row into the logits that a transition table gives. So every probability is
known: after a whole SID (or the start) the first code is `favourite` almost surely, and the second code is even.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit.probes import AuditConfig, AuditModel, AuditWorld, build_world
from recerase.catalog.concept import Concept
from recerase.catalog.interactions import Catalogue, Interactions
from recerase.catalog.items import Items
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.quantize import Codebooks, Recipe
from recerase.sid.table import SidSchema, SidTable

GROUPS, IN_GROUP, SECOND = 3, 12, 16
N = GROUPS * IN_GROUP
SEARCH = {"worst_items": 5, "worst_starts": 4, "worst_rounds": 4}
CONFIG = AuditConfig(
    k=(5, 10, 20), mass_users=40, saturated_histories=40, neighbours=6, free_beam=6, batch=32, **SEARCH
)


@pytest.fixture
def items() -> Items:
    ids = np.array([f"i{i:02d}" for i in range(N)], dtype=object)
    titles = tuple(f"Item {i}" for i in range(N))
    return Items(ids, titles, titles, (("all",),) * N, (None,) * N, np.full(N, np.nan), "items")


@pytest.fixture
def interactions() -> Interactions:
    """60 users of 3 to 9 interactions with any item; 10 of them never touch the concept before their target."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 10, size=60)
    drawn = rng.integers(0, N, size=int(lengths.sum()))
    clean = np.repeat(np.arange(60) < 10, lengths)
    drawn = np.where(clean, IN_GROUP + drawn % (N - IN_GROUP), drawn).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = np.array([f"u{u:02d}" for u in range(60)], dtype=object)
    return Interactions(users, offsets, drawn, np.arange(len(drawn), dtype=np.int64), "interactions")


@pytest.fixture
def concept() -> Concept:
    return Concept("group=0", ("group=0",), np.arange(N) < IN_GROUP, "concept")


@pytest.fixture
def schema() -> SidSchema:
    return SidSchema.native((GROUPS, SECOND))


@pytest.fixture
def table(items: Items, schema: SidSchema) -> SidTable:
    """Item i has codes (i // 12, i % 12); the last four codes of the second level are free."""
    codes = np.stack([np.arange(N) // IN_GROUP, np.arange(N) % IN_GROUP], axis=1).astype(np.int32)
    return SidTable(items.item_ids, codes, np.ones(N, dtype=bool), schema, np.zeros(N, dtype=bool))


@pytest.fixture
def codebooks() -> Codebooks:
    """Group centres far apart on one axis each, and small steps within a group."""
    rng = np.random.default_rng(0)
    first = np.zeros((GROUPS, 8), dtype=np.float32)
    first[np.arange(GROUPS), np.arange(GROUPS)] = 1.0
    second = np.zeros((SECOND, 8), dtype=np.float32)
    second[:, GROUPS:] = 0.2 * rng.normal(size=(SECOND, 8 - GROUPS))
    recipe = Recipe(centre=np.zeros(8, dtype=np.float32), normalise_input=False, normalise_residuals=False)
    return Codebooks((first, second), recipe, False, (1.0, 1.0))


@pytest.fixture
def embeddings(codebooks: Codebooks, table: SidTable) -> np.ndarray:
    """Every item lies exactly on the point of its SID."""
    return np.asarray(codebooks.point(table.codes), dtype=np.float32)


@pytest.fixture
def world(
    items: Items, interactions: Interactions, concept: Concept, embeddings: np.ndarray, codebooks: Codebooks
) -> AuditWorld:
    return build_world(
        Catalogue(items, interactions), concept, embeddings=embeddings, codebooks=codebooks, config=CONFIG
    )


@pytest.fixture
def planted(schema: SidSchema) -> Callable[[int], Recommender]:
    """planted(favourite): a recommender that starts every SID with the code `favourite` (p > .9999)."""

    def build(favourite: int) -> Recommender:
        config = ModelConfig("causal", width=32, layers=1, heads=2, feed_forward=32, window=20, dropout=0.0)
        model = new_recommender(config, schema, 0)
        first, second = schema.rows
        likes = torch.zeros(schema.vocabulary, schema.vocabulary)  # [next row, last row]
        likes[:, :] = -20.0
        likes[torch.as_tensor(first)] = -10.0
        likes[int(first[favourite])] = 0.0
        for row in first.tolist():
            likes[:, row] = -20.0
            likes[torch.as_tensor(second), row] = 0.0
        with torch.no_grad():
            block = model.module.model.layers[0]
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            model.module.model.norm.weight.fill_(1.0)
            model.module.get_input_embeddings().weight.zero_()
            model.module.get_input_embeddings().weight[:, : schema.vocabulary] = torch.eye(schema.vocabulary)
            model.module.lm_head.weight.zero_()
            model.module.lm_head.weight[:, : schema.vocabulary] = likes / 32**0.5  # RMS norm of a unit vector
        model.module.eval()
        return model

    return build


@pytest.fixture
def untrained(schema: SidSchema) -> Recommender:
    """Random weights: every reading depends on the whole history."""
    config = ModelConfig("causal", width=16, layers=1, heads=2, feed_forward=32, window=20, dropout=0.0)
    model = new_recommender(config, schema, 1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(6.0)
    model.module.eval()
    return model


@pytest.fixture
def audited(table: SidTable) -> Callable[..., AuditModel]:
    """audited(recommender, role=.., ..): an AuditModel whose table never changed and lists every item."""

    def build(recommender: Recommender, role: Any = "subject", **changes: Any) -> AuditModel:
        model = AuditModel(role, recommender, table, table, np.ones(N, dtype=bool))
        return replace(model, **changes)

    return build


@pytest.fixture
def moved(table: SidTable, concept: Concept) -> SidTable:
    """The table after an erasure: concept items have the free codes (1 or 2, 12..15) where there are any, or none."""
    codes = np.array([(1 + i // 4, 12 + i % 4) if i < 8 else (0, 12 + i % 4) for i in range(IN_GROUP)], dtype=np.int32)
    return table.replace(np.flatnonzero(concept.members), codes)
