"""Codebooks for a checkpoint that has none: from words or from given vectors, and what they reproduce is told by level."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts.fixtures import native

from recerase import api
from recerase.__main__ import run
from recerase.assembly import open_checkpoint_for, with_codebooks
from recerase.auditing import _fitted
from recerase.catalog import load_catalogue
from recerase.errors import EraseError, UsageError
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import open_checkpoint
from recerase.runtime import RunConfig
from recerase.types import SILENT

CONCEPT = api.ConceptSpec(("brand=brand2",))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data; model, whose SIDs have nothing to do with the items' words; vectors.npy, in which its codes lie."""
    home = tmp_path_factory.mktemp("given")
    fixtures.data(home / "data")
    sids = np.random.default_rng(2).permutation(fixtures.codes())
    fixtures.letter(home / "model", fixtures.index_of(sids))
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.eye(20)[sids[:, level]] * 4.0**-level for level in range(sids.shape[1])], axis=1)
    np.save(home / "vectors.npy", (vectors + rng.normal(size=vectors.shape) * 1e-4).astype(np.float32))
    return home


def agreement(shop: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[float]:
    assert run(["inspect", str(shop / "model"), "--data", str(shop / "data"), "--json", *more]) == 0
    said = json.loads(capsys.readouterr().out)["facts"]["codebooks"]
    return [float(share) for share in said.rpartition("level ")[2].split(", ")]


def test_inspect_tells_the_agreement_of_each_level(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = agreement(shop, capsys)
    given = agreement(shop, capsys, "--embeddings", str(shop / "vectors.npy"))
    assert len(words) == len(given) == 4
    assert min(given) > 0.9
    assert words[0] < 0.9


def test_words_that_say_nothing_are_refused_and_vectors_that_do_are_not(shop: Path) -> None:
    given = (shop / "model", CONCEPT, shop / "data")
    with pytest.raises(EraseError, match="min_agreement"):
        api.plan_erase(*given, run=RunConfig(threads=1, device="cpu"))
    told = api.plan_erase(*given, run=RunConfig(threads=1, device="cpu", embeddings=shop / "vectors.npy"))
    assert told.preview is not None


def test_a_report_says_what_they_were_fitted_from(shop: Path) -> None:
    catalogue = load_catalogue(shop / "data")
    opened = open_checkpoint_for(shop / "model", catalogue, RunConfig(threads=1, device="cpu"))
    for file, said in ((None, "the items' words"), (shop / "vectors.npy", "the embeddings given")):
        made = with_codebooks(opened, catalogue.items, SILENT, file)
        (limit,) = _fitted(made)
        assert f"fitted from {said}" in limit
        shares = ", ".join(f"{share:.0%}" for share in made.codebooks.agreement)
        assert f"give {shares} of its codes, level by level" in limit


def test_vectors_that_would_not_be_used_are_refused(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = api_native(tmp_path)
    with pytest.raises(UsageError, match="codebooks of its own"):
        with_codebooks(opened, load_catalogue(shop / "data").items, SILENT, shop / "vectors.npy")
    assert run(["inspect", str(shop / "model"), "--embeddings", str(shop / "vectors.npy")]) == 2
    assert "--data" in capsys.readouterr().err
    short = tmp_path / "short.npy"
    np.save(short, np.zeros((3, 4), np.float32))
    asked = ["--data", str(shop / "data"), "--embeddings", str(short)]
    assert run(["inspect", str(shop / "model"), *asked]) == 4
    assert "Traceback" not in capsys.readouterr().err


def api_native(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(native(tmp_path / "native"))
