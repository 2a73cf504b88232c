"""Directories in which every SID of the codes in use is taken: nothing can be moved without a new vocabulary row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tests.layouts import causal_fixtures as causal
from tests.layouts import foreign_fixtures as t5
from tests.layouts.causal_checks import FAST
from transformers import T5Tokenizer

from recerase.assembly import ConceptSpec, choose_concept, open_checkpoint_for, with_codebooks
from recerase.catalog import load_catalogue
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.growing import offer, offered_codes
from recerase.layouts.registry import named_layout
from recerase.runtime import RunConfig
from recerase.store import write_manifest
from recerase.types import SILENT

HOLED = (0, 2, 3, 5, 7)
"""Codes of the last level; 1, 4 and 6 have no row."""
WHOLE = (0, 1, 2, 3, 4)


def full_codes(last: tuple[int, ...]) -> np.ndarray:
    """[40, 3] every SID of 2, 4 and 5 codes once; items 0 to 7, the concept, stand all over it."""
    order = np.random.default_rng(3).permutation(causal.N)
    codes = np.stack(np.unravel_index(order, (2, 4, 5)), 1).astype(np.int32)
    codes[:, 2] = np.asarray(last)[codes[:, 2]]
    return codes


def full_world(last: tuple[int, ...] = HOLED) -> causal.World:
    """The world of the causal fixtures, spelled by `full_codes`."""
    world = causal.make_world(collide=False)
    world.codes = full_codes(last)
    world.index = {
        str(i): [f"<{'abc'[x]}_{c}>" for x, c in enumerate(sid)] for i, sid in enumerate(world.codes.tolist())
    }
    return world


def full_letter(out: Path, last: tuple[int, ...] = HOLED, tie: bool = True) -> Path:
    """A LETTER-TIGER directory of the same items."""
    return t5.letter(out, full_world(last).index, tie=tie)


def real_t5_tokenizer(out: Path) -> Path:
    """In place of the two JSON files of older transformers, a tokenizer of the one installed, with the same ids."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((chr(0x2581 + n) if not n else chr(96 + n), -2.0) for n in range(13)),
    ]
    made = T5Tokenizer(vocab=pieces, extra_ids=4)  # t5.BASE of them
    made.add_tokens(rebuilt(out))
    for name in ("added_tokens.json", "tokenizer_config.json"):
        (out / name).unlink()
    made.save_pretrained(out)
    return out


def rebuilt(path: Path) -> list[str]:
    """What get_new_tokens of LETTER's data.py makes of the SID table: every token in it, sorted."""
    index = json.loads(next(path.glob("*.index.json")).read_text())
    return sorted({token for sid in index.values() for token in sid})


def erased(source: Path, data: Path, out: Path, grow: str | None = "auto", **options: str) -> Path:
    """What `recerase erase` writes, before it is audited: the method's result in a directory of its own."""
    run = RunConfig(threads=1, device="cpu", layout_options=tuple(options.items()))
    catalogue = load_catalogue(data)
    before = with_codebooks(open_checkpoint_for(source, catalogue, run), catalogue.items, SILENT)
    members = choose_concept(ConceptSpec(("brand=Acme",)), catalogue, before.embeddings).members
    method, _ = get_method("tracer")
    settings = make_config(method, None, dict(pair.split("=") for pair in FAST))
    offered = offer(before, members, method, settings, grow, run.seed)
    given = before if offered is None else offered.checkpoint
    request = EraseRequest(
        given.recommender, given.table, catalogue.interactions, members, before.embeddings, given.codebooks,
        offered=() if offered is None else offered_codes(before, given),
    )  # fmt: skip
    made = method.run(request, settings)
    kept, model, table = before, made.model, made.table
    if offered is not None:
        kept, model, table, _ = offered.settled(before, model, table)
    out.mkdir()
    named_layout(before.layout).write_back(kept, model, table, out)
    write_manifest(out, {})
    return out
