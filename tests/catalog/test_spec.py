from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recerase.catalog import Items, text_embeddings
from recerase.catalog.spec import matching
from recerase.errors import ConceptError


def named(spec: str, items: Items, embeddings: np.ndarray | None = None) -> str:
    return "".join(items.item_ids[matching(spec, items, embeddings)])


@pytest.mark.parametrize(
    ("spec", "members"),
    [
        ("brand=Acme", "ab"),
        ("BRAND = 'ACME'", "ab"),
        ("category=vaping", "ab"),
        ('category="3D Printing Filament"', "d"),
        ("category=Smoke", "abc"),
        (r'text~"\bvape\b"', "abc"),
        (r"title~\bvape\b", "ab"),
        ("title~^(red|blue) VAPE", "ab"),
        ("text~steel$", "de"),
        ("item:a, i", "ai"),
        ('item:"h"', "h"),
    ],
)
def test_each_form_names_what_it_says(items: Items, spec: str, members: str) -> None:
    assert named(spec, items) == members


def test_a_file_lists_ids_one_a_line(items: Items, tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("\ufeffa\r\n\n  c \n", encoding="utf-8")
    assert named(f"@{listed}", items) == "ac"
    for content, says in (("a\nnope\n", "no item nope"), ("\n", "lists no item")):
        listed.write_text(content)
        with pytest.raises(ConceptError, match=says):
            matching(f"@{listed}", items, None)
    with pytest.raises(ConceptError, match="cannot be read"):
        matching(f"@{tmp_path / 'absent'}", items, None)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("brand=Acmee", "Did you mean Acme"),
        ("category=Kitchn", "Did you mean Kitchen"),
        ("brand=Garden", 'category="Garden"'),
        ("category=Fern", 'brand="Fern"'),
        ("brand=zzz", 'Try text~"zzz"'),
        ("brnd=Acme", "Did you mean brand="),
        ("brand:Acme", "Did you mean brand="),
        ("vaping", "Use brand=NAME"),
        ("text~red(", "position 3"),
        ("text~", "no pattern"),
        ("title~clay", "No item matches"),
        ("item:a,zz", "no item zz"),
        ("item:,", "lists no item"),
        ("like:vape", "needs item embeddings"),
        ('like:""', "no words"),
    ],
)
def test_what_matches_nothing_is_an_error_with_a_remedy(items: Items, spec: str, says: str) -> None:
    with pytest.raises(ConceptError) as error:
        matching(spec, items, None)
    assert says in str(error.value)
    assert error.value.remedy


def test_like_grows_with_its_radius_around_the_words(items: Items) -> None:
    points = text_embeddings(items, dims=6)
    near, middle, everything = (set(named(f'like:"knife":{r}', items, points)) for r in (0.3, 1.0, 2))
    assert near <= middle <= everything == set("abcdefghi")
    assert {"d", "e"} <= middle
    assert named("like:vape pod", items, points) == named('like:"vape pod"', items, points)


def test_like_without_a_radius_reaches_most_of_its_seeds_and_their_like(
    make_items: Callable[[list[tuple]], Items],
) -> None:
    items = make_items([(str(i), "gadget" if i < 8 else "thing", "", [], None, None) for i in range(20)])
    points = np.zeros((20, 2))
    points[:8] = [1, 0]
    points[8:12] = [1, 0]
    points[12:] = [0, 1]
    assert matching("like:gadget", items, points).nonzero()[0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("spec", "says"),
    [("like:knife:0", "not a cosine distance"), ("like:knife:3", "not a cosine distance"), ("like:zebra", "No title")],
)
def test_like_refuses_what_it_cannot_measure(items: Items, spec: str, says: str) -> None:
    with pytest.raises(ConceptError, match=says):
        matching(spec, items, text_embeddings(items, dims=6))
