"""The nine traps of other people's files: of each, that the obvious way falls into it and that ours does not.

Some are tested where their layout is; `ELSEWHERE` says where, and is checked.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.layouts import foreign_fixtures as fixtures
from transformers import T5ForConditionalGeneration

from recerase import api
from recerase.catalog import Histories, load_items
from recerase.catalog.embed import documents, text_embeddings
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import open_checkpoint
from recerase.model.decode import generate_free, recommend
from recerase.report.text import report_text
from recerase.runtime import RunConfig
from recerase.sid.quality import collision_share, quality
from recerase.sid.quantize import TokenizeConfig, rq_kmeans, tokenize

ELSEWHERE = {
    1: (
        ("test_letter", "test_a_code_without_a_token_is_refused_and_never_given"),
        ("test_letter", "test_reassignment_and_random_sids_keep_to_spelled_codes"),
    ),
    2: (("test_letter", "test_the_last_user_of_a_code_leaves_a_tombstone"),),
    3: (("test_tiger_cf", "test_a_plain_load_loses_the_embedding_and_ours_does_not"),),
    4: (("test_letter", "test_generation_config_is_copied_and_never_used"),),
    7: (("test_letter", "test_published_files_are_readable_and_alone"),),
}
HERE = {4, 5, 6, 8, 9}
HISTORIES = [[3, 4], [7], [20, 21, 22], [50], [11, 12], [30, 31, 32, 33]]


@pytest.fixture(scope="module")
def letter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.letter(tmp_path_factory.mktemp("traps") / "letter")


@pytest.fixture(scope="module")
def source(letter: Path) -> Checkpoint:
    return open_checkpoint(letter)


def test_every_trap_has_its_test() -> None:
    assert ELSEWHERE.keys() | HERE == set(range(1, 10))
    for number, places in ELSEWHERE.items():
        for module, name in places:
            told = getattr(import_module(f"tests.layouts.{module}"), name).__doc__
            assert f"Trap {number}" in told
    for number in HERE:
        assert any(f"Trap {number}" in (value.__doc__ or "") for value in list(globals().values()) if callable(value))


def printed(what: Any) -> str:
    sink = io.StringIO()
    Console(file=sink, width=120).print(what)
    return sink.getvalue()


@functools.cache
def plain_model(letter: Path) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration.from_pretrained(letter, local_files_only=True).eval()


def logits(letter: Path, source: Checkpoint, history: list[int], prefixes: torch.Tensor) -> torch.Tensor:
    """[P, V] next-token logits of plain transformers after a history and P prefixes [P, l] of rows."""
    plain = plain_model(letter)
    tokens, _ = source.recommender.tokens(Histories.from_lists([history]), source.table)
    start = torch.zeros(len(prefixes), 1, dtype=torch.long)
    with torch.inference_mode():
        out: torch.Tensor = plain(
            input_ids=tokens.expand(len(prefixes), -1), decoder_input_ids=torch.cat([start, prefixes], 1)
        ).logits[:, -1]
    return out


def beams(
    letter: Path, source: Checkpoint, history: list[int], width: int, allowed: str, top_k: int | None = None
) -> list[tuple[int, ...]]:
    """Beam search as other tools constrain it: `prefix` by the SIDs, `level` by the codes of a level, or `free`; dead beams left out.

    With `top_k`, of the whole vocabulary, before the constraint.
    """
    rows = source.table.rows()
    paths, scores = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1)
    for level in range(source.table.levels):
        if not len(paths):
            break
        step = logits(letter, source, history, paths).log_softmax(-1)
        if top_k is not None:
            step = step.masked_fill(step < step.topk(top_k).values[:, -1:], float("-inf"))
        for beam, path in enumerate(paths.tolist()):
            fitting = rows[(rows[:, :level] == path).all(1)] if allowed == "prefix" else rows
            keep = torch.ones(step.shape[1], dtype=torch.bool)
            if allowed != "free":
                keep[:] = False
                keep[torch.from_numpy(np.unique(fitting[:, level]))] = True
            step[beam, ~keep] = float("-inf")
        total = (scores[:, None] + step).flatten()
        scores, pick = total.topk(min(width, len(total)))
        paths = torch.cat([paths[pick // step.shape[1]], (pick % step.shape[1])[:, None]], 1)
        paths, scores = paths[torch.isfinite(scores)], scores[torch.isfinite(scores)]
    return [tuple(path) for path in paths.tolist()]


def test_a_top_k_that_is_inherited_leaves_hardly_a_beam(letter: Path, source: Checkpoint) -> None:
    """Trap 4: a top_k meant for text, taken from generation_config.json, cuts codes off before the constraint sees them."""
    inherited = beams(letter, source, HISTORIES[0], 20, "prefix", top_k=3)
    assert len(inherited) < 5
    assert len(beams(letter, source, HISTORIES[0], 20, "prefix")) == 20
    ours = recommend(source.recommender, source.table, Histories.from_lists(HISTORIES[:1]), k=20)
    assert (ours.items >= 0).all()


def test_constraints_per_level_or_none_let_invalid_sids_through(
    letter: Path, source: Checkpoint, tmp_path: Path
) -> None:
    """Trap 5: other tools constrain by level or not at all; an audit decodes both ways and prints the invalid rate."""
    sids = {tuple(sid) for sid in source.table.rows().tolist()}
    invalid = {}
    for allowed in ("prefix", "level", "free"):
        found = beams(letter, source, HISTORIES[0], 10, allowed)
        invalid[allowed] = sum(path not in sids for path in found) / len(found)
    assert invalid["prefix"] == 0
    assert invalid["level"] > 0.5  # the trap
    assert invalid["free"] > 0.5
    histories = Histories.from_lists(HISTORIES[:1])
    ours = recommend(source.recommender, source.table, histories, k=10)
    assert (ours.items >= 0).all()
    free = generate_free(source.recommender, source.table, histories, beam=10)
    assert {tuple(row) for row in free.rows[0].tolist()} == set(beams(letter, source, HISTORIES[0], 10, "free"))
    data = fixtures.data(tmp_path / "data")
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n[[rule]]\nid = "x"\nmetric = "free.invalid"\nmax = 0.5\n'
    )
    report = api.audit(
        letter,
        api.ConceptSpec(("brand=brand2",)),
        data,
        policy=policy,
        max_users=8,
        run=RunConfig(threads=1, device="cpu"),
    )
    measured = {one.metric: one.value for one in report.measurements}
    assert measured["free.invalid"] > 0.5
    assert "natural.exposure@10" in measured  # the constrained way
    assert "free generations that are no item" in printed(report_text(report))


@pytest.fixture
def faiss_threads() -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.usefixtures("faiss_threads")
def test_threads_change_the_codes_of_faiss_and_not_ours() -> None:
    """Trap 6: a faiss residual quantiser gives other codes on other threads; ours is held to the threads it was told."""
    import faiss

    points = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    theirs, ours = [], []
    for threads in (1, 2, 3, 4):
        faiss.omp_set_num_threads(threads)
        naive = faiss.ResidualQuantizer(64, 3, 8)
        naive.train_type, naive.max_beam_size = faiss.ResidualQuantizer.Train_default, 1
        naive.train(points)
        theirs.append(naive.compute_codes(points))
        ours.append(rq_kmeans(points, TokenizeConfig(levels=3, codes=256, iterations=4))[0])
    assert any((theirs[0] != other).any() for other in theirs[1:])  # the trap
    assert all((ours[0] == other).all() for other in ours[1:])


def test_plain_quantisation_collides_and_ours_does_not(data_directory: Path) -> None:
    """Trap 8: on a real catalogue TF-IDF, SVD and residual k-means as they come give one SID to many items."""
    import faiss
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    file = data_directory / "amazon_industrial" / "items.parquet"
    if not file.is_file():
        pytest.skip(f"no {file}")
    items = load_items(file)
    items = replace(items, descriptions=("",) * len(items))  # title, categories and brand: enough, and fast
    plain = TruncatedSVD(80, random_state=0).fit_transform(TfidfVectorizer().fit_transform(documents(items)))
    residual, codes = plain.astype(np.float32), []
    for level in range(3):
        search = faiss.Kmeans(80, 256, niter=10, seed=level, min_points_per_centroid=1)
        search.train(residual)
        code = search.index.search(residual, 1)[1][:, 0]
        residual = residual - search.centroids[code]
        codes.append(code)
    assert collision_share(np.stack(codes, 1)) > 0.2  # the trap
    points = text_embeddings(items, dims=80)
    table, _, told = tokenize(points, items.item_ids, TokenizeConfig(levels=3, codes=256, iterations=10))
    assert table.collision_rate == 0.0
    assert min(quality(table).perplexity) >= 200
    assert told.collision_after == 0.0


def test_a_softmax_of_a_level_ranks_otherwise_than_that_of_the_whole_vocabulary(
    letter: Path, source: Checkpoint
) -> None:
    """Trap 9: the probability of a SID is that of its rows among all rows; renormalised level by level, the lists are others."""
    table = source.table
    rows = torch.from_numpy(table.rows())
    histories = Histories.from_lists(HISTORIES)
    ours = recommend(source.recommender, table, histories, k=20, beam=len(table))
    apart = 0
    for number, history in enumerate(HISTORIES):
        whole, local = torch.zeros(len(rows)), torch.zeros(len(rows))
        for level in range(table.levels):
            step = logits(letter, source, history, rows[:, :level])
            mine = torch.from_numpy(table.schema.rows[level][table.schema.rows[level] >= 0])
            whole += step.log_softmax(-1).gather(1, rows[:, level : level + 1])[:, 0]
            local += (step.gather(1, rows[:, level : level + 1])[:, 0]) - step[:, mine].logsumexp(-1)
        best = [torch.argsort(score, descending=True, stable=True)[:20].tolist() for score in (whole, local)]
        apart += len(set(best[0]) ^ set(best[1])) + (best[0] != best[1])
        assert np.allclose(ours.scores[number], whole.sort(descending=True).values[:20].numpy(), atol=1e-4)
        assert np.allclose(whole[ours.items[number]].numpy(), ours.scores[number], atol=1e-4)
    assert apart > 0  # the trap
