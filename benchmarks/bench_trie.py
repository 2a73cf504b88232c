"""The trie of SIDs: what building it costs, what a bigger catalogue costs a decoding step, and what the mask costs.

Peers of the mask are the two ways of public recommenders: a dictionary from prefix to allowed tokens that fills a mask beam by
beam (transformers' own PrefixConstrainedLogitsProcessor), and comparing every beam's prefix with every SID of the catalogue by
tensor equality. All three must allow the same tokens. SIDs are the real ones of amazon_beauty_2014 (RECERASE_DATA, or shared/data
beside the repository), or drawn ones of that size and shape where it is absent; bigger catalogues are drawn. One thread, seconds
of processor time, both sides in turn in one run, the median of five.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from bench import NoDataError, Row, data_directory, main
from torch import Tensor
from transformers import PrefixConstrainedLogitsProcessor

from recerase.catalog.interactions import Histories
from recerase.model.children import children
from recerase.model.decode import recommend
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.runtime import pinned
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.table_files import read_json_table
from recerase.sid.trie import Trie

ITEMS, LEVELS, CODES = 12_101, 4, 256
MANY, MANY_CODES, GROWTH = 10_000_000, 1024, 100
USERS, BEAM, TOP = 32, 20, 10
"""640 beams a step."""
RUNS = 5
TARGETS = {"build": "value <= 0.01", "many": "<= 10", "growth": "<= 1.2", "mask": ">= 20"}
Following = Mapping[tuple[int, ...], Sequence[int]]


def rows(scale: float = 1.0) -> list[Row]:
    """A row a measure; `scale` shrinks the drawn catalogues."""
    with pinned(threads=1):
        table = catalogue()
        return [
            *build_rows(table),
            *many_rows(max(1000, int(MANY * scale))),
            *growth_rows(table, scale),
            *mask_rows(table),
        ]


def catalogue() -> SidTable:
    """The SIDs published for amazon_beauty_2014, or as many drawn ones."""
    try:
        return read_json_table(data_directory("amazon_beauty_2014") / "sids.json")
    except NoDataError:
        return drawn(ITEMS, CODES)


def drawn(n: int, codes: int, seed: int = 0) -> SidTable:
    """n SIDs drawn evenly; a few may be equal."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"item{i:09d}" for i in range(n)], dtype=object)
    everyone = np.ones(n, bool)
    sids = rng.integers(0, codes, (n, LEVELS), dtype=np.int32)
    return SidTable(ids, sids, everyone, SidSchema.native([codes] * LEVELS, "allowed"), ~everyone)


def medians(ways: Mapping[str, Callable[[], object]], runs: int = RUNS) -> dict[str, float]:
    """Seconds of processor time of each way: the ways in turn, once to warm up, the median of `runs`."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if run:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(way: Callable[[], object]) -> float:
    """MB that `way` holds at the most, beyond what was there before."""
    tracemalloc.start()
    try:
        way()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def row(name: str, value: float, unit: str, target: str = "", peer: str = "", ratio: float | None = None) -> Row:
    return Row(name, value, unit, peer, ratio, target)


def build_rows(table: SidTable) -> list[Row]:
    """Building the trie of a shop, and the dictionary of prefixes that others make of it."""
    found = medians({"ours": lambda: Trie.build(table), "dict": lambda: following_of(table)})
    return [
        row(
            f"build, {len(table):,} items",
            found["ours"],
            "s",
            TARGETS["build"],
            "dictionary of prefixes",
            found["dict"] / found["ours"],
        )
    ]


def many_rows(n: int) -> list[Row]:
    """Building the trie of n items, taking a thousandth of them out of it, and the memory of both."""
    table = drawn(n, MANY_CODES)
    trie = Trie.build(table)
    gone = np.random.default_rng(1).random(n) < 1e-3
    found = medians({"build": lambda: Trie.build(table), "without": lambda: trie.without(gone)})
    ranked = time.process_time()
    _ = table.id_rank
    ranked = time.process_time() - ranked
    label = f"{n:,} items"
    return [
        row(f"build, {label}", found["build"], "s", TARGETS["many"]),
        row(
            f"without 0.1 %, {label}",
            found["without"],
            "s",
            peer="building it afresh",
            ratio=found["build"] / found["without"],
        ),
        row(f"sorting the ids as text, once a table, {label}", ranked, "s"),
        row(f"size of the trie, {label}", trie.nbytes / 1e6, "MB"),
        row(f"memory of building beyond the table, {label}", peak(lambda: Trie.build(table)), "MB"),
        row(f"memory of without, {label}", peak(lambda: trie.without(gone)), "MB"),
    ]


def growth_rows(table: SidTable, scale: float) -> list[Row]:
    """Whole decodes of the same users by the same model, in the shop and in one that is `GROWTH` times as big."""
    more = drawn(int(len(table) * (GROWTH * scale)) + 1, max(table.schema.codes), seed=2)
    codes = np.concatenate([table.codes, more.codes % np.array(table.schema.codes, np.int32)])
    ids, everyone = np.concatenate([table.item_ids, more.item_ids]), np.ones(len(codes), bool)
    big = SidTable(ids, codes, everyone, SidSchema.native(table.schema.codes, "allowed"), ~everyone)
    histories = shoppers(len(table))
    found = []
    for kind in ("causal", "seq2seq"):
        model = new_recommender(ModelConfig(kind=kind), table.schema, seed=0)
        model.module.eval()
        seconds = medians(
            {name: decoding(model, shop, histories) for name, shop in (("small", table), ("big", big))},
        )
        steps = table.levels * 1e-3
        found.append(
            row(
                f"decode step, {kind}, {len(big):,} items",
                seconds["big"] / steps,
                "ms",
                TARGETS["growth"],
                f"{len(table):,} items, {seconds['small'] / steps:.1f} ms",
                seconds["big"] / seconds["small"],
            )
        )
    return found


def decoding(model: Recommender, table: SidTable, histories: Histories) -> Callable[[], object]:
    trie = Trie.build(table)
    return lambda: recommend(model, table, histories, k=TOP, beam=BEAM, trie=trie)


def shoppers(items: int) -> Histories:
    rng = np.random.default_rng(3)
    return Histories.from_lists([rng.choice(items, n, replace=False).tolist() for n in rng.integers(5, 21, USERS)])


def mask_rows(table: SidTable) -> list[Row]:
    """One step's masking at `USERS` x `BEAM` beams, by three ways, on average over the steps after the first."""
    trie, following = Trie.build(table), following_of(table)
    sids = torch.from_numpy(table.rows())
    rng = np.random.default_rng(4)
    ways: dict[str, list[Callable[[], object]]] = defaultdict(list)
    for depth in range(1, table.levels):
        node = torch.from_numpy(rng.integers(0, trie.n_nodes(depth), (USERS, BEAM)))
        prefix = prefixes(trie, depth, node)
        log_probs = torch.randn(USERS, BEAM, table.schema.vocabulary).log_softmax(-1)
        score = torch.randn(USERS, BEAM)
        check_equal(trie, depth, node, prefix, following, sids, log_probs)
        ways["ours"].append(
            lambda d=depth, n=node, p=log_probs, s=score: children(trie.torch(), d, n, s, p, trie.max_children(d))
        )
        ways["dict"].append(lambda x=prefix, p=log_probs: by_dictionary(following, x, p.flatten(0, 1)))
        ways["all"].append(lambda x=prefix, p=log_probs: by_comparing(sids, x, p.flatten(0, 1)))
    with torch.inference_mode():
        found = medians({name: in_turn(steps) for name, steps in ways.items()})
    each = 1e3 / (table.levels - 1)
    label = f"mask of a step, {USERS * BEAM} beams"
    return [
        row(
            label,
            found["ours"] * each,
            "ms",
            TARGETS["mask"],
            f"{peer}, {found[key] * each:.1f} ms",
            found[key] / found["ours"],
        )
        for key, peer in (("dict", "PrefixConstrainedLogitsProcessor"), ("all", "comparing with all SIDs"))
    ]


def in_turn(steps: Sequence[Callable[[], object]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def prefixes(trie: Trie, depth: int, node: Tensor) -> Tensor:
    """[beams, depth] vocabulary rows that lead to nodes [B, W]."""
    out, at = [], node.flatten().numpy()
    for level in range(depth, 0, -1):
        out.append(trie.tokens[level][at])
        at = trie.parent[level][at]
    return torch.from_numpy(np.stack(out[::-1], 1))


def following_of(table: SidTable) -> Following:
    """Prefix -> tokens that may follow it."""
    sids = [tuple(sid) for sid in table.rows().tolist()]
    found: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for sid in sids:
        for depth in range(len(sid)):
            found[sid[:depth]].add(sid[depth])
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


def by_dictionary(following: Following, prefix: Tensor, scores: Tensor) -> Tensor:
    """Scores [beams, V] with -inf for what may not follow, by the processor of transformers."""
    process = PrefixConstrainedLogitsProcessor(lambda _, sent: following[tuple(sent.tolist())], BEAM)  # type: ignore[arg-type]
    masked: Tensor = process(prefix, scores)
    return masked


def by_comparing(sids: Tensor, prefix: Tensor, scores: Tensor) -> Tensor:
    """The same by comparing the prefixes with those of all SIDs [N, L], which needs no trie."""
    depth = prefix.shape[1]
    matches = (prefix[:, None] == sids[None, :, :depth]).all(-1)  # [beams, N]
    beam, item = matches.nonzero(as_tuple=True)
    mask = torch.full_like(scores, float("-inf"))
    mask[beam, sids[item, depth]] = 0
    return scores + mask


def check_equal(
    trie: Trie, depth: int, node: Tensor, prefix: Tensor, following: Following, sids: Tensor, log_probs: Tensor
) -> None:
    """Raises AssertionError unless the three ways allow the same tokens with the same scores."""
    found = children(trie.torch(), depth, node, torch.zeros(node.shape), log_probs, trie.max_children(depth))
    child = found[torch.arange(len(node))].view(*node.shape, -1)
    ours = torch.full_like(log_probs, float("-inf"))
    ours.scatter_reduce_(2, trie.torch().tokens[depth + 1][child], found.totals.view_as(child), "amax")
    for other in (
        by_dictionary(following, prefix, log_probs.flatten(0, 1)),
        by_comparing(sids, prefix, log_probs.flatten(0, 1)),
    ):
        assert torch.equal(other, ours.flatten(0, 1)), "the ways allow different tokens"


if __name__ == "__main__":
    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
