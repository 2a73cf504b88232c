from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recerase.catalog import Catalogue, Items, load_catalogue, parse_concept, preview
from recerase.errors import ConceptError, DataError


def test_specs_are_united_and_exclamation_takes_out_in_any_order(items: Items) -> None:
    one = parse_concept(["brand=acme", "title~herb", "!item:b"], items)
    other = parse_concept(["!item:b", "title~herb", "brand=acme"], items)
    assert items.item_ids[one.members].tolist() == ["a", "h"]
    assert one.indices.tolist() == other.indices.tolist() == [0, 7]
    assert len(one) == 2
    assert one.digest == other.digest, "the digest is of the set"
    assert one.name == "brand=acme, title~herb, !item:b"
    assert parse_concept(["brand=acme"], items, name="acme").name == "acme"
    assert parse_concept(["brand=acme"], items).digest != one.digest


def test_one_set_by_many_words_is_one_concept(items: Items) -> None:
    digests = {parse_concept([s], items).digest for s in ("brand=Acme", "category=Vaping", "title~vape", "item:b,a")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([], "names nothing"),
        (["!brand=Acme"], "names nothing"),
        (["  "], "names nothing"),
        (["brand=Acme", "!category=Vaping"], "empty"),
        (["brand=Acme", "!brand=Acmee"], "Did you mean Acme"),
        (["category=Garden"], "4 of 9 items, more than 25%"),
        (["text~."], "whole catalogue"),
    ],
)
def test_empty_and_oversized_concepts_are_refused(items: Items, specs: list[str], says: str) -> None:
    with pytest.raises(ConceptError, match=says) as error:
        parse_concept(specs, items)
    assert error.value.remedy
    assert error.value.exit_code == 2


def test_a_large_concept_passes_when_asked_for_and_the_whole_never(items: Items) -> None:
    assert len(parse_concept(["category=Garden"], items, allow_large=True)) == 4
    with pytest.raises(ConceptError, match="whole catalogue"):
        parse_concept(["title~."], items, allow_large=True)


def test_preview_counts_what_is_touched(catalogue: Catalogue) -> None:
    seen = preview(parse_concept(["brand=acme"], catalogue.items), catalogue)
    assert (seen.items, seen.interactions, seen.users) == (2, 4, 2)
    assert seen.levels == ()
    assert seen.borderline == ()


def test_preview_counts_shared_codes_a_level(catalogue: Catalogue) -> None:
    codes = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [0, 0], [2, 3], [-1, -1], [2, 4]], np.int32)
    first, second = preview(
        parse_concept(["brand=acme"], catalogue.items), catalogue, SimpleNamespace(codes=codes)
    ).levels
    assert (first.level, first.codes, first.sharing, first.prefixes, first.under_prefix) == (0, 1, 2, 1, 2)
    assert (second.codes, second.sharing) == (2, 3), "c and i use neither; d, e and f use 0 or 1"
    assert (second.prefixes, second.under_prefix) == (2, 1), "only f has the whole SID of a member"


def test_preview_lists_the_border_by_similarity_to_the_nearest_member(
    catalogue: Catalogue, rng: np.random.Generator
) -> None:
    points = rng.normal(size=(9, 4))
    concept = parse_concept(["item:b,e"], catalogue.items)
    found = preview(concept, catalogue, embeddings=points, show=3).borderline
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    nearest = cosines[:, concept.indices].max(axis=1)
    outside = sorted((i for i in range(9) if not concept.members[i]), key=lambda i: -nearest[i])[:3]
    assert [b.row for b in found] == [*outside, *sorted(concept.indices, key=lambda i: nearest[i])]
    assert [b.inside for b in found] == [False] * 3 + [True] * 2
    assert np.allclose([b.similarity for b in found], nearest[[b.row for b in found]], atol=1e-6)
    assert [b.item_id for b in found] == [catalogue.items.item_ids[b.row] for b in found]


def test_preview_refuses_what_belongs_to_another_catalogue(catalogue: Catalogue) -> None:
    concept = parse_concept(["brand=acme"], catalogue.items)
    with pytest.raises(DataError, match="embeddings has 5 items"):
        preview(concept, catalogue, embeddings=np.ones((5, 2)))
    with pytest.raises(DataError, match="SID table has 5 items"):
        preview(concept, catalogue, SimpleNamespace(codes=np.zeros((5, 2), np.int32)))


@pytest.mark.slow
def test_real_concepts_have_the_items_their_rules_were_counted_to_have(data_directory: Path) -> None:
    industrial = data_directory / "amazon_industrial"
    catalogue, known = load_catalogue(industrial), json.loads((industrial / "concepts.json").read_text())
    specs = {
        "3d_printing_filament": 'category="3D Printing Filament"',
        "brand_hatchbox": "brand=hatchbox",
        "knives_blades_scalpels": r'title~"\bknife|\bknives|\bblades?\b|scalpel|razor blade|box cutter"',
        "syringes_needles": "title~syringe|needle",
    }
    for name, spec in specs.items():
        concept = parse_concept([spec], catalogue.items)
        assert catalogue.items.item_ids[concept.members].tolist() == known[name]["item_ids"], name
        assert preview(concept, catalogue).interactions == known[name]["n_interactions"], name
