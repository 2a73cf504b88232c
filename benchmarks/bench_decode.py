"""What decoding and exact mass cost: against transformers' generate, and against the forward passes that they cannot do without.

Three questions on real SIDs (amazon_beauty_2014, 12,101 items, 4 x 256 codes), with a T5 (4 + 4 layers, width 128) and a causal
model (4 layers, width 256), histories of 20 items:

- users a second of beam search (20 beams) against `generate` with a prefix function over a trie of dicts, which must give the
  same items, at the batch size at which it is fastest (8 users);
- time of beam search, and of the exact mass of 300 items, over that of the bare forward passes: the very same calls of the
  model, recorded and run again with nothing between them but the output head, so that the ratio is what trie, masks, log-softmax
  and bookkeeping add (how good those calls are shows against generate);
- time of that exact mass over that of one beam search for the same users.

Weights are random (and sharp, so that no two items tie); what a step costs does not depend on them. The sides take turns, and the
median of five counts. Against generate: seconds of the wall clock with two threads, as a user would have them, and of one thread
alone. The rest: one thread, processor time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from bench import Row, median, table_of_beauty

from recerase.catalog.interactions import Histories
from recerase.model.decode import recommend
from recerase.model.mass import concept_mass
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.tree import State
from recerase.runtime import pinned
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie
from recerase.types import BoolArray, IntArray

BEAM = TOP = 20
LENGTH, CONCEPT, RUNS = 20, 300, 5
USERS = 250
"""Of the floors: what a thousand take is four times as much."""
PEER_BATCH, BATCH = 8, 64
MODELS = {
    "T5": ModelConfig(kind="seq2seq", width=128, layers=4, heads=4, feed_forward=256),
    "causal": ModelConfig(kind="causal", width=256, layers=4, heads=4, feed_forward=512),
}


def random_histories(items: int, users: int, length: int = LENGTH, seed: int = 0) -> Histories:
    """Histories of `length` items, drawn evenly."""
    rng = np.random.default_rng(seed)
    return Histories.from_lists([rng.choice(items, length, replace=False).tolist() for _ in range(users)])


def random_model(config: ModelConfig, table: SidTable) -> Recommender:
    """Fresh weights, the head scaled until the logits spread by 2."""
    model = new_recommender(config, table.schema, seed=0)
    model.module.eval()
    with torch.no_grad():
        scale = 2.0 / model.start(*model.tokens(Histories.from_lists([[0, 1, 2]]), table)).logits.std()
        model.module.lm_head.weight.mul_(scale)  # type: ignore[union-attr, operator]
    return model


class Recorder:
    """A recommender that remembers every call, so that the same forward passes can be run with nothing around them."""

    def __init__(self, model: Recommender) -> None:
        self.model = model
        self.calls: list[tuple[int, tuple[Any, ...]]] = []
        """The state a call starts from, as the number of the call that made it (-1: none), and its arguments."""
        self._made: WeakKeyDictionary[State, int] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def start(self, tokens: torch.Tensor, lengths: torch.Tensor) -> State:
        return self._kept(-1, (tokens, lengths), self.model.start(tokens, lengths))

    def advance(self, state: State, rows: torch.Tensor, parents: torch.Tensor | None) -> State:
        return self._kept(self._made[state], (rows, parents), self.model.advance(state, rows, parents))

    def _kept(self, source: int, arguments: tuple[Any, ...], state: State) -> State:
        self._made[state] = len(self.calls)
        self.calls.append((source, arguments))
        return state

    def replay(self) -> float:
        """Seconds of all calls again, each with the output head."""
        last = {source: at for at, (source, _) in enumerate(self.calls) if source >= 0}
        states: dict[int, State] = {}
        began = time.process_time()
        with torch.inference_mode():
            for at, (source, arguments) in enumerate(self.calls):
                state = self.model.start(*arguments) if source < 0 else self.model.advance(states[source], *arguments)
                _ = state.logits
                if at in last:
                    states[at] = state
                if source >= 0 and last[source] == at:
                    del states[source]
        return time.process_time() - began


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peer(
    model: Recommender, table: SidTable, following: Mapping[tuple[int, ...], list[int]], histories: Histories
) -> IntArray:
    """The `TOP` best items [B, k] by transformers' generate, in its order."""
    items = {tuple(sid): item for item, sid in enumerate(table.rows().tolist())}
    found: list[int] = []
    for first in range(0, len(histories), PEER_BATCH):
        batch = histories.take(np.arange(first, min(first + PEER_BATCH, len(histories))))
        found += [items[tuple(sid)] for sid in generated(model, table, batch, following)]
    return np.array(found).reshape(len(histories), TOP)


def prefixes(table: SidTable) -> Mapping[tuple[int, ...], list[int]]:
    """The trie of dicts: prefix -> the vocabulary rows that may follow it."""
    sids = [tuple(sid) for sid in table.rows().tolist()]
    following: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for prefix, token in sorted({(sid[:depth], sid[depth]) for sid in sids for depth in range(table.levels)}):
        following[prefix].append(token)
    return following


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
            min_new_tokens=table.levels,
            max_new_tokens=table.levels,
            length_penalty=0.0,
            do_sample=False,
        )
    rows: list[list[int]] = out[:, begin:].tolist()
    return rows


def against_generate(name: str, model: Recommender, table: SidTable, users: int, threads: int) -> Row:
    """Users a second against generate; ends the run when the lists are not the same."""
    histories, trie, following = random_histories(len(table), users), Trie.build(table), prefixes(table)
    own, other = [], []
    for run in range(RUNS + 1):  # the first warms up
        began = time.perf_counter()
        lists = recommend(model, table, histories, k=TOP, beam=BEAM, trie=trie, batch=BATCH).items
        between = time.perf_counter()
        theirs = peer(model, table, following, histories)
        own.append(between - began)
        other.append(time.perf_counter() - between)
        differ = int((np.sort(lists, 1) != np.sort(theirs, 1)).any(1).sum())
        if differ:
            raise SystemExit(f"{name}: the top {TOP} of {differ} of {users} users differ from generate's (run {run})")
    rate, base = (users / median(values[1:]) for values in (own, other))
    return Row(
        f"decode, {name}: {BEAM} beams, {threads} thread{'s' * (threads > 1)} (same top {TOP} for all {users} users)",
        rate,
        "users/s",
        f"transformers generate: {base:.1f}",
        rate / base,
        ">= 5",
    )


def floors(name: str, model: Recommender, table: SidTable, users: int) -> list[Row]:
    """Beam search and exact mass over their own bare forward passes, and mass over beam search."""
    histories, trie = random_histories(len(table), users, seed=1), Trie.build(table)
    concept = some_items(len(table))

    def decode(with_: Any) -> Any:
        return recommend(with_, table, histories, k=TOP, beam=BEAM, trie=trie, batch=BATCH)

    def mass(with_: Any) -> Any:
        return concept_mass(with_, table, concept, histories)

    recorders = {}
    for kind, work in (("decode", decode), ("mass", mass)):
        recorders[kind] = Recorder(model)
        work(recorders[kind])
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(RUNS + 1):
        taken["decode"].append(seconds(lambda: decode(model)))
        taken["decode floor"].append(recorders["decode"].replay())
        taken["mass"].append(seconds(lambda: mass(model)))
        taken["mass floor"].append(recorders["mass"].replay())
    took = {kind: median(values[1:]) for kind, values in taken.items()}
    nodes = [Trie.build(table, concept).n_nodes(depth) for depth in range(1, table.levels)]
    return [
        Row(
            f"decode, {name}: beam search over its bare forward passes",
            1000 * took["decode"] / users,
            "ms/user",
            f"forward passes: {1000 * took['decode floor'] / users:.2f}",
            took["decode"] / took["decode floor"],
            "<= 1.3",
        ),
        Row(
            f"mass, {name}: {CONCEPT} items over the bare forward passes of their {'+'.join(map(str, nodes))} nodes",
            1000 * took["mass"] / users,
            "ms/user",
            f"forward passes: {1000 * took['mass floor'] / users:.1f}",
            took["mass"] / took["mass floor"],
            "<= 1.3",
        ),
        Row(
            f"mass, {name}: {CONCEPT} items over one decode of the same users with {BEAM} beams",
            1000 * took["mass"] / users,
            "ms/user",
            f"decode: {1000 * took['decode'] / users:.2f}",
            took["mass"] / took["decode"],
            "<= 6",
        ),
    ]


def some_items(items: int) -> BoolArray:
    """[N] `CONCEPT` items drawn evenly: nothing in common, so the widest sub-trie there is for so many."""
    concept = np.zeros(items, bool)
    concept[np.random.default_rng(2).choice(items, min(CONCEPT, items // 2), replace=False)] = True
    return concept


def rows(scale: float = 1.0) -> list[Row]:
    """Everything above; `scale` shrinks the number of users."""
    table = table_of_beauty()
    found = []
    for name, config in MODELS.items():
        model = random_model(config, table)
        for threads in (2, 1):
            with pinned(threads):
                found.append(against_generate(name, model, table, max(8, int(48 * scale)), threads))
        with pinned(threads=1):
            found += floors(name, model, table, max(16, int(USERS * scale)))
    return found


if __name__ == "__main__":
    from bench import main

    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
