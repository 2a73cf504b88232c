"""A checkpoint with more vocabulary rows in memory: what a method is given, and what is left of it when it has chosen.

A new row is the mean of the rows that its level has, plus a little seeded noise that keeps new rows apart. The head is linear, so what
the model first says of a new code is what it says of that level's codes on (geometric) average, and no item's traces come along. Four
new codes beside 8 so take .10 of the last level in two small trained recommenders; as copies of the nearest codeword's row they take
.21 and .28. As the mean of all rows they take .004, but settling ends at twice the concept's loss. Old rows are not touched: their
logits stay what they were, only the softmax has more terms in its denominator.

The one decision: more rows are offered than will be kept. A method chooses among old codes and new ones, and what no item uses when it
is done is dropped: what is published holds a row for each code in use, and no other new one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from recerase.layouts.growth import Code, Room, grown_schema, new_codes
from recerase.sid.codebooks import Codebooks, squared_distances, unit
from recerase.types import FloatArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from recerase.layouts.native import Checkpoint
    from recerase.model.recommender import Recommender
    from recerase.sid.table import SidTable

NOISE = 0.1
"""Standard deviation of the noise of a new row, in those of its level's rows."""
_BLOCK = 1 << 16
"""Items whose distances are held at once."""


def grown(checkpoint: Checkpoint, room: Room, codes: Sequence[Code], seed: int) -> Checkpoint:
    """The checkpoint with a row for each of `codes` in model, table and codebooks; all other weights are shared with it."""
    schema = grown_schema(checkpoint.table.schema, room, codes)
    old = checkpoint.table.schema
    fresh = [(level, int(schema.rows[level][code])) for level, code in new_codes(old, schema)]

    def longer(weight: Tensor) -> Tensor:
        out = weight.new_zeros((max(len(weight), schema.vocabulary), weight.shape[1]))
        out[: len(weight)] = weight
        for level, row in fresh:
            spoken = weight[torch.from_numpy(old.rows[level][old.rows[level] >= 0]).to(weight.device)].double()
            noise = np.random.default_rng([seed, 29, row]).normal(size=weight.shape[1])
            spread = spoken.std(0, correction=0) * torch.from_numpy(noise).to(weight.device)
            out[row] = (spoken.mean(0) + NOISE * spread).to(weight.dtype)
        return out

    table = replace(checkpoint.table, schema=schema)
    codebooks = checkpoint.codebooks
    if codebooks is not None and checkpoint.embeddings is not None:
        codebooks = _worded(codebooks, checkpoint.table, table, checkpoint.embeddings)
    return replace(
        checkpoint,
        recommender=_resized(checkpoint.recommender, table, longer),
        table=table,
        codebooks=codebooks,
    )


def trimmed(
    source: Checkpoint, offered: Checkpoint, room: Room, model: Recommender, table: SidTable
) -> tuple[Recommender, SidTable, Codebooks | None]:
    """What a method made of `offered`, without the new rows that no item uses: model, table, and codebooks to go with them.

    Rows of the matrix that were offered and are not kept are again what `source` had there.
    """
    used = {
        (level, code)
        for level, code in new_codes(source.table.schema, table.schema)
        if (table.codes[:, level] == code).any()
    }
    schema = grown_schema(source.table.schema, room, sorted(used))
    places = [(int(schema.rows[level][code]), int(table.schema.rows[level][code])) for level, code in used]
    before: Any = source.recommender.module
    owned = {id(p): p for p in before.parameters()}
    twins = dict(zip(_vocabulary_weights(model.module), _vocabulary_weights(before), strict=True))

    def shorter(weight: Tensor) -> Tensor:
        old = owned[twins[id(weight)]].detach()
        out = weight.detach()[: max(len(old), schema.vocabulary)].clone()
        offered_rows = slice(room.first, len(old))
        out[offered_rows] = old[offered_rows].to(out.device, out.dtype)
        for new, was in places:
            out[new] = weight.detach()[was]
        return out

    kept = replace(table, schema=schema)
    codebooks = source.codebooks
    if codebooks is not None and offered.codebooks is not None:
        codebooks = replace(codebooks, vectors=_kept_words(codebooks, offered.codebooks, schema.codes, used))
    return _resized(model, kept, shorter), kept, codebooks


def _resized(model: Recommender, table: SidTable, change: Callable[[Tensor], Tensor]) -> Recommender:
    """The recommender with embedding and head as `change` makes them, tied or not as they were; it shares all other weights."""
    from recerase.model.recommender import wrap

    module: Any = model.module
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    wanted = set(_vocabulary_weights(module))
    other: Any = copy.deepcopy(module, shared)
    made: dict[int, nn.Parameter] = {}
    rows = 0
    for name, old in list(other.named_parameters(remove_duplicate=False)):
        if id(old) not in wanted:
            continue
        if id(old) not in made:
            with torch.no_grad():
                made[id(old)] = nn.Parameter(change(old), old.requires_grad)
        parent, _, leaf = name.rpartition(".")
        owner = other.get_submodule(parent)
        setattr(owner, leaf, made[id(old)])
        rows = len(made[id(old)])
        if isinstance(owner, nn.Embedding):
            owner.num_embeddings = rows
        elif isinstance(owner, nn.Linear):
            owner.out_features = rows
    things: list[Any] = [thing for part in other.modules() for thing in (part, getattr(part, "config", None))]
    for thing in things:
        if isinstance(getattr(thing, "vocab_size", None), int):
            thing.vocab_size = rows
    return wrap(other, table.schema, model.window, model.prompt, model.per_level)


def _vocabulary_weights(module: Any) -> list[int]:
    """The ids of embedding and head: one when they are tied, else two."""
    return list(
        dict.fromkeys(id(part.weight) for part in (module.get_input_embeddings(), module.get_output_embeddings()))
    )


def _worded(codebooks: Codebooks, before: SidTable, after: SidTable, embeddings: FloatArray) -> Codebooks:
    """Codebooks with a codeword for every code of `after`.

    A new codeword lies beside the mean of its level's, in a direction of its own, just so far that no item is nearer to it than to
    the codeword it has: the codebooks give every item the codes that they gave.
    """
    present = before.present
    residuals = codebooks.residuals(embeddings[present], before.codes[present])
    added = new_codes(before.schema, after.schema)
    vectors = []
    for level, words in enumerate(codebooks.vectors):
        size = max(len(words), after.schema.codes[level])
        fresh = sorted({code for at, code in added if at == level} | set(range(len(words), size)))
        new = np.zeros((size, words.shape[1]), np.float32)
        new[: len(words)] = words
        if fresh:
            own = before.codes[present, level].astype(np.int64)
            new[fresh] = _apart(residuals[level], words, own, len(fresh), level)
        vectors.append(new)
    return replace(codebooks, vectors=tuple(vectors))


def _apart(residual: FloatArray, words: FloatArray, own: np.ndarray, count: int, level: int) -> FloatArray:
    """float32 [count, D] codewords that are the nearest of no residual [N, D]; `own` [N] is the codeword each has."""
    mean = np.asarray(words, np.float64)[np.unique(own)].mean(0)
    away = unit(np.random.default_rng([29, level]).normal(size=(count, words.shape[1])))
    far = np.full(count, float(np.asarray(words, np.float64)[np.unique(own)].std()) or 1.0)
    while True:
        new = (mean + far[:, None] * away).astype(np.float32)
        near = np.zeros(count, bool)
        for at in range(0, len(residual), _BLOCK):
            some = residual[at : at + _BLOCK]
            held = ((some - np.asarray(words, np.float64)[own[at : at + _BLOCK]]) ** 2).sum(1)
            near |= (squared_distances(some, new) <= held[:, None] * 1.0001 + 1e-6).any(0)
        if not near.any():
            return new
        far[near] *= 2.0


def _kept_words(before: Codebooks, offered: Codebooks, sizes: Sequence[int], used: set[Code]) -> tuple[FloatArray, ...]:
    """A level: the old codewords, those of the codes that are kept, and what fills the gap where a code between has no row."""
    vectors = []
    for level, words in enumerate(before.vectors):
        new = np.array(offered.vectors[level][: max(len(words), sizes[level])])
        new[: len(words)] = words
        mine = [code for at, code in used if at == level]
        new[mine] = offered.vectors[level][mine]
        vectors.append(new)
    return tuple(vectors)
