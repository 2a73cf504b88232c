r"""One concept spec: a few words that name items.

    brand=Acme  category="3D Printing Filament"   exact name of the brand, or of any of the categories
    text~"\bvape\b"  title~"\bvape\b"             regular expression, in title or description, or in the title
    item:12,77  @items.txt                        item ids, or a file with one id a line
    like:"e-cigarettes"  like:"e-cigarettes":0.4  items near the mean embedding of those whose title has these words

Case is ignored but in ids. A spec that matches nothing is an error, because a typo that passes would let an audit
certify the wrong set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from recerase.catalog.items import Items
from recerase.catalog.matching import PatternError, search
from recerase.errors import ConceptError, DataError
from recerase.types import BoolArray, FloatArray

EXAMPLES = 'Use brand=NAME, category=NAME, text~"REGEX", title~"REGEX", item:ID,ID, @FILE or like:"WORDS".'
_LONGEST_TYPO = 100
"""Characters of a wrong name that are compared with the right ones: more is no typo, and costs their square."""
_SPEC = re.compile(r"(?P<key>[A-Za-z]+)\s*(?P<op>[=~:])(?P<value>.*)", re.DOTALL)
_FORMS = {"brand": "=", "category": "=", "text": "~", "title": "~", "item": ":", "like": ":"}


def matching(spec: str, items: Items, embeddings: FloatArray | None) -> BoolArray:
    """[N] the items that one spec (without !) names, at least one; `embeddings` [N, D] are needed by `like:` alone.

    Raises ConceptError: the spec cannot be read, or no item matches.
    """
    if spec.startswith("@"):
        return _listed(_read_ids(spec[1:].strip()), items, spec)
    found = _SPEC.fullmatch(spec)
    key = found["key"].casefold() if found else ""
    if found is None or _FORMS.get(key) != found["op"]:
        near = difflib.get_close_matches((key or spec.casefold())[:_LONGEST_TYPO], _FORMS, 1)
        hint = f"Did you mean {near[0]}{_FORMS[near[0]]}? " if near else ""
        raise ConceptError(f"The concept spec {spec!r} cannot be read.", hint + EXAMPLES)
    value = found["value"].strip()
    readers: dict[str, Callable[[], BoolArray]] = {
        "brand": lambda: _named(_unquoted(value), [(b,) if b else () for b in items.brands], "brand", items),
        "category": lambda: _named(_unquoted(value), items.categories, "category", items),
        "text": lambda: _written(_unquoted(value), zip(items.titles, items.descriptions, strict=True), spec),
        "title": lambda: _written(_unquoted(value), ((t,) for t in items.titles), spec),
        "item": lambda: _listed([i.strip() for i in _unquoted(value).split(",") if i.strip()], items, spec),
        "like": lambda: _near(value, items, embeddings),
    }
    return readers[key]()


def _unquoted(value: str) -> str:
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def _named(value: str, names: Sequence[Sequence[str]], kind: str, items: Items) -> BoolArray:
    wanted = value.strip().casefold()
    hit = np.fromiter((any(n.strip().casefold() == wanted for n in row) for row in names), bool, len(items))
    if hit.any():
        return hit
    known = {n.casefold(): n for n in sorted({n.strip() for row in names for n in row}, reverse=True)}
    near = [known[n] for n in difflib.get_close_matches(wanted[:_LONGEST_TYPO], known, 3)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f'Try text~"{re.escape(value.strip())}".'
    if kind == "brand" and any(c.casefold() == wanted for row in items.categories for c in row):
        hint = f'There is a category of that name: category="{value}".'
    if kind == "category" and any(b and b.casefold() == wanted for b in items.brands):
        hint = f'There is a brand of that name: brand="{value}".'
    raise ConceptError(f"No item has the {kind} {value!r}.", hint)


def _written(pattern: str, texts: Iterable[Sequence[str]], spec: str) -> BoolArray:
    if not pattern:
        raise ConceptError(f"The concept spec {spec!r} has no pattern.", EXAMPLES)
    rows = list(texts)
    try:
        found = search(pattern, [text for row in rows for text in row])
    except PatternError as error:
        raise ConceptError(
            f"The regular expression {pattern!r:.200} {error}.",
            "Escape special characters with a backslash, or say it simpler.",
        ) from error
    hit = np.asarray(np.array(found, bool).reshape(len(rows), -1).any(axis=1))
    if not hit.any():
        raise ConceptError(f"No item matches {spec}.", "Case is ignored already; loosen the pattern.")
    return hit


def _listed(ids: Sequence[str], items: Items, spec: str) -> BoolArray:
    if not ids:
        raise ConceptError(f"The concept spec {spec!r} lists no item.", "Give at least one item id.")
    hit = np.zeros(len(items), bool)
    try:
        hit[items.index(ids)] = True
    except DataError as error:
        raise ConceptError(error.message, error.remedy) from error
    return hit


def _read_ids(path: str) -> list[str]:
    try:
        if not Path(path).is_file():  # a device or a pipe may never end
            raise OSError("no such file")
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path that cannot be one
        raise ConceptError(
            f"The item list {path!r} cannot be read.", "Give a text file with one item id a line."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _near(value: str, items: Items, embeddings: FloatArray | None) -> BoolArray:
    """Items within a cosine distance of the mean embedding of the items whose title has all the query's words.

    Without a radius it is the third quartile of those items' own distances, so that most of them are inside.
    """
    quoted = re.fullmatch(r"(?P<query>\"[^\"]*\"|'[^']*'|.*?)(?::(?P<radius>[0-9.eE+-]+))?", value, re.DOTALL)
    query, written = (_unquoted(quoted["query"].strip()), quoted["radius"]) if quoted else (value, None)
    words = set(re.findall(r"\w+", query.casefold()))
    if not words:
        raise ConceptError("like: has no words.", 'Write like:"words" or like:"words":RADIUS.')
    if embeddings is None:
        raise ConceptError(
            f'like:"{query}" needs item embeddings, and there are none here.',
            "Give SIDs or a checkpoint that carries embeddings, or use text~ instead.",
        )
    seeds = np.array([words <= set(re.findall(r"\w+", title.casefold())) for title in items.titles], bool)
    if not seeds.any():
        raise ConceptError(f"No title has the words {query!r}, so there is nothing to be near to.", "Use other words.")
    points = _unit(embeddings)
    distances = 1 - points @ _unit(points[seeds].mean(axis=0, keepdims=True))[0]
    radius = _radius(written) if written else float(np.quantile(distances[seeds], 0.75)) + 1e-9
    hit = distances <= radius
    if not hit.any():
        raise ConceptError(
            f'No item is within {radius:g} of "{query}"; the nearest is at {distances.min():.3f}.', "Widen the radius."
        )
    return hit


def _radius(written: str) -> float:
    try:
        radius = float(written)
    except ValueError:
        radius = float("nan")
    if not 0 < radius <= 2:
        raise ConceptError(f"The radius {written} is not a cosine distance.", "Give a number above 0, at most 2.")
    return radius


def _unit(vectors: FloatArray) -> FloatArray:
    """float64 rows of length 1; zero rows stay zero."""
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
