"""Users a second of constrained decoding: recerase's beam over an array trie, and transformers' generate.

The peer is what one writes without recerase: `generate` with a prefix function over a trie of dicts and as many
beams, in batches of the size at which it is fastest (8 users; of 48 at once it does about half as many a second). Both
must give the same lists, or nothing is printed but what differs. Weights are random (and sharp, so that no two items
tie); what a step costs does not depend on them. One thread, seconds of processor time, for the machine may be shared;
runs of the two take turns, and the median of three counts.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from recerase.catalog.interactions import Histories
from recerase.model.decode import recommend
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.runtime import pinned
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie
from recerase.types import IntArray

ITEMS, LEVELS, CODES = 4344, 4, 256
"""As the catalogue that the README's numbers are made on."""
USERS, BEAM, TOP, RUNS = 48, 20, 10, 3
PEER_BATCH = 8
MODELS = (ModelConfig(kind="causal"), ModelConfig(kind="seq2seq"))


def random_table(rng: np.random.Generator) -> SidTable:
    """Distinct SIDs, drawn evenly."""
    codes = np.unique(rng.integers(CODES, size=(2 * ITEMS, LEVELS)), axis=0)
    chosen = rng.choice(len(codes), ITEMS, replace=False)
    ids = [f"item{i:05d}" for i in range(ITEMS)]
    return SidTable.build(ids, codes[chosen], SidSchema.native([CODES] * LEVELS))


def random_histories(window: int, rng: np.random.Generator) -> Histories:
    """As many items as a window holds, or fewer."""
    lengths = rng.integers(window // 4, window + 1, USERS)
    return Histories.from_lists([rng.choice(ITEMS, n, replace=False).tolist() for n in lengths])


def random_model(config: ModelConfig, table: SidTable) -> Recommender:
    model = new_recommender(config, table.schema, seed=0)
    model.module.eval()
    with torch.no_grad():
        scale = 2.0 / model.start(*model.tokens(Histories.from_lists([[0, 1, 2]]), table)).logits.std()
        model.module.lm_head.weight.mul_(scale)  # type: ignore[union-attr, operator]
    return model


def peer(model: Recommender, table: SidTable, histories: Histories) -> tuple[IntArray, float]:
    """The `TOP` best items [B, k] by transformers' generate, and its seconds; the trie is made outside of them."""
    sids = [tuple(sid) for sid in table.rows().tolist()]
    items = {sid: item for item, sid in enumerate(sids)}
    following: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for prefix, token in sorted({(sid[:depth], sid[depth]) for sid in sids for depth in range(LEVELS)}):
        following[prefix].append(token)
    began = time.process_time()
    found: list[int] = []
    for first in range(0, len(histories), PEER_BATCH):
        batch = histories.take(np.arange(first, min(first + PEER_BATCH, len(histories))))
        found += [items[tuple(sid)] for sid in generated(model, table, batch, following)]
    return np.array(found).reshape(len(histories), TOP), time.process_time() - began


def generated(
    model: Recommender, table: SidTable, histories: Histories, following: Mapping[tuple[int, ...], list[int]]
) -> list[list[int]]:
    """`TOP` sequences of vocabulary rows a history, best first, from `generate`."""
    module: Any = model.module
    tokens, lengths = model.tokens(histories, table)
    valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    if model.kind == "causal":  # the codes must follow the history directly: padding goes to the left
        order = valid.int().argsort(dim=1, stable=True)
        tokens, valid = tokens.gather(1, order), valid.gather(1, order)
    begin = tokens.shape[1] if model.kind == "causal" else 1
    with torch.inference_mode():
        out = module.generate(
            input_ids=tokens,
            attention_mask=valid.long(),
            prefix_allowed_tokens_fn=lambda _, ids: following.get(tuple(ids[begin:].tolist()), [table.schema.pad]),
            num_beams=BEAM,
            num_return_sequences=TOP,
            min_new_tokens=LEVELS,
            max_new_tokens=LEVELS,
            length_penalty=0.0,
            do_sample=False,
        )
    rows: list[list[int]] = out[:, begin:].tolist()
    return rows


def ours(model: Recommender, table: SidTable, histories: Histories, trie: Trie) -> tuple[IntArray, float]:
    """The same by recerase."""
    began = time.process_time()
    lists = recommend(model, table, histories, k=TOP, beam=BEAM, trie=trie)
    return lists.items, time.process_time() - began


def compare(config: ModelConfig, say: Callable[[str], None]) -> bool:
    """Time both on one model; False when their lists differ."""
    rng = np.random.default_rng(0)
    table = random_table(rng)
    histories = random_histories(config.window, rng)
    model, trie = random_model(config, table), Trie.build(table)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for run in range(RUNS + 1):  # the first warms up
        own, own_seconds = ours(model, table, histories, trie)
        other, other_seconds = peer(model, table, histories)
        differ = int((np.sort(own, 1) != np.sort(other, 1)).any(1).sum())
        if differ:
            say(f"{config.kind}: the top {TOP} of {differ} of {len(histories)} users differ")
            return False
        if run:
            seconds["ours"].append(own_seconds)
            seconds["peer"].append(other_seconds)
    rate, base = (len(histories) / statistics.median(seconds[name]) for name in ("ours", "peer"))
    say(
        f"{config.kind:8} {parameters:>9,} parameters: recerase {rate:7.1f} users/s, generate {base:6.1f} users/s, "
        f"ratio {rate / base:5.1f} (same top {TOP} for all {len(histories)} users)"
    )
    return True


def main() -> int:
    print(
        f"{USERS} users, {ITEMS} items, {LEVELS} x {CODES} codes, {BEAM} beams, 1 thread, "
        f"median of {RUNS}, processor time, torch {torch.__version__}"
    )
    with pinned(threads=1):
        agree = [compare(config, print) for config in MODELS]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
