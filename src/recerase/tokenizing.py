"""The `tokenize` command: a catalogue becomes SIDs, or gets SIDs for what is new in it.

What embeddings were made of is kept in the provenance, so that a later run can embed new words in the same space: the text
embedding is fitted again to the items it was fitted to (their order and seed give the same numbers), never to the grown
catalogue, where every old point would move.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.assembly import given_paths
from recerase.catalog import Items, load_embeddings, load_items
from recerase.catalog.files import read_verified
from recerase.earlier import grown_by, left_by, remembered, write_remembered
from recerase.errors import ArtefactError, UsageError
from recerase.parallel import workers
from recerase.runtime import environment
from recerase.store import publish, read_manifest, sha256_bytes, write_bytes
from recerase.types import SILENT, FloatArray, IntArray, Observer

if TYPE_CHECKING:
    from recerase.sid.codebooks import Codebooks
    from recerase.sid.quality import QualityReport
    from recerase.sid.quantize import TokenizeConfig
    from recerase.sid.rqvae import Encoder, RqVaeConfig
    from recerase.sid.table import SidTable

ENCODER = "encoder.safetensors"
"""Beside SIDs made by RQ-VAE: what brings embeddings into the space of their codebooks."""
DIMS = 128
"""Width of embeddings made from the items' words."""


_WEIGHTS = ("config.json", "model.safetensors")
"""What of an erased checkpoint stays as it is when its catalogue grows."""


@dataclass(frozen=True)
class Tokenized:
    """What `tokenize` published."""

    path: Path
    items: int
    dims: int
    quality: QualityReport
    seconds: float
    new: int
    """Items that got their SID in this run."""


def tokenize(
    items: str | Path,
    out: str | Path,
    config: TokenizeConfig | None = None,
    *,
    vae: RqVaeConfig | None = None,
    embeddings: str | Path | None = None,
    sentence_model: str | Path | None = None,
    dims: int | None = None,
    extend: str | Path | None = None,
    stream: bool = False,
    keep_embeddings: bool = False,
    force: bool = False,
    observer: Observer = SILENT,
) -> Tokenized:
    """Give every item of a catalogue a SID and publish table, codebooks and embeddings at `out`.

    `items` is items.parquet or a data directory. Embeddings come from a file, from a local sentence-transformers
    model, or (by default) from the items' own words, `dims` wide (128). RQ-KMeans quantises them as they are; with `vae`
    RQ-VAE learns an encoder first, and the embeddings published are its latents. `extend` names SIDs made before: their items keep
    SIDs, flags, embeddings and codebooks as they are, and only the catalogue's other items get new ones. Of an erased checkpoint the
    result is a checkpoint with the same weights, in which new items of what was erased have no SID (see `earlier.grown_by`).

    With `stream`, or when `items` or `embeddings` is a directory of parquet files, nothing is held whole: see
    `streaming.tokenize_stream`. Embeddings are then stored only with `keep_embeddings`. Of several processes that share the
    command all work on a stream, and the main one alone on anything else.
    """
    from recerase.streaming import is_streamed, tokenize_stream

    if stream or is_streamed(items, embeddings):
        if extend is not None or vae is not None or sentence_model is not None:
            given = {"extend": extend, "method rq-vae": vae, "sentence-model": sentence_model}
            first = next(name for name, value in given.items() if value is not None)
            raise UsageError(
                f"--{first} holds every item in memory, and cannot be used in a stream.",
                "Leave it out, or give one items.parquet without --stream.",
            )
        return tokenize_stream(
            items,
            out,
            config,
            embeddings=embeddings,
            dims=dims,
            keep_embeddings=keep_embeddings,
            force=force,
            observer=observer,
        )
    if keep_embeddings:
        raise UsageError("--keep-embeddings is of a stream; otherwise embeddings are always kept.", "Leave it out.")
    crew = workers()
    made: Tokenized | None = None
    if crew.main:
        made = _in_memory(items, out, config, vae, embeddings, sentence_model, dims, extend, force, observer)
    told: Tokenized = crew.told(made)
    return told


def _in_memory(
    items: str | Path,
    out: str | Path,
    config: TokenizeConfig | None,
    vae: RqVaeConfig | None,
    embeddings: str | Path | None,
    sentence_model: str | Path | None,
    dims: int | None,
    extend: str | Path | None,
    force: bool,
    observer: Observer,
) -> Tokenized:
    """`tokenize` with every item in memory."""
    from recerase.sid.quantize import TokenizeConfig

    if embeddings is not None and sentence_model is not None:
        raise UsageError("Embeddings come from a file or from a model, not from both.", "Give one of the two.")
    if extend is not None and (config is not None or vae is not None or dims is not None):
        raise UsageError(
            "SIDs are extended with the levels, codes, seed and method that they have.",
            "Leave out config, vae and dims.",
        )
    began = time.monotonic()
    inputs = given_paths(items, embeddings, sentence_model, extend)
    with publish(Path(out), inputs=inputs, force=force) as result:
        catalogue = load_items(items)
        source = _Source(catalogue, embeddings, sentence_model)
        if extend is None:
            made = _fresh(result.directory, source, config or TokenizeConfig(), vae, dims or DIMS, observer)
        else:
            made = _extended(result.directory, source, Path(extend), observer)
        result.provenance = {"command": "tokenize", "items": catalogue.digest, **made.provenance}
    return Tokenized(Path(out), len(catalogue), made.dims, made.quality, time.monotonic() - began, made.new)


@dataclass(frozen=True)
class _Source:
    """A catalogue and what the caller gave to embed it with."""

    items: Items
    file: str | Path | None
    model: str | Path | None

    @property
    def kind(self) -> str:
        return "file" if self.file is not None else "model" if self.model is not None else "text"

    def points(self, dims: int, seed: int, fit_to: IntArray | None = None) -> FloatArray:
        """float32 [N, D] embeddings of all items."""
        from recerase.catalog.embed import sentence_embeddings, text_embeddings

        if self.file is not None:
            return load_embeddings(self.file, self.items)
        if self.model is not None:
            return sentence_embeddings(self.items, self.model)
        return text_embeddings(self.items, dims=dims, seed=seed, fit_to=fit_to)


@dataclass(frozen=True)
class _Made:
    provenance: Mapping[str, Any]
    quality: QualityReport
    dims: int
    new: int


def _fresh(
    staging: Path, source: _Source, config: TokenizeConfig, vae: RqVaeConfig | None, dims: int, observer: Observer
) -> _Made:
    """New SIDs for every item, written to `staging`."""
    from recerase.layouts.native import save_sids
    from recerase.sid.quantize import tokenize as make_sids

    observer.start("embed", None)
    points = source.points(dims, config.seed)
    observer.finish("embed")
    made_of = {"from": source.kind, "items": len(points), "dims": int(points.shape[1]), "seed": config.seed}
    if vae is not None:
        points, table, codebooks, quality, method = _learned(staging, source, points, config, vae, observer)
    else:
        observer.start("quantize", None)
        table, codebooks, quality = make_sids(points, source.items.item_ids, config)
        observer.finish("quantize")
        method = {"name": "rq-kmeans"}
    save_sids(staging, table, codebooks, points)
    provenance = {
        "config": asdict(config),
        "method": method,
        "embeddings": made_of,
        "quality": quality.to_json(),
        "environment": asdict(environment(config.seed, config.threads)),
    }
    return _Made(provenance, quality, int(points.shape[1]), len(points))


def _learned(
    staging: Path,
    source: _Source,
    points: FloatArray,
    config: TokenizeConfig,
    vae: RqVaeConfig,
    observer: Observer,
) -> tuple[FloatArray, SidTable, Codebooks, QualityReport, dict[str, Any]]:
    """RQ-VAE: latents, the SIDs they get, and what provenance says of it; the encoder is written to `staging`."""
    from safetensors.numpy import save

    from recerase.sid.quantize import spell
    from recerase.sid.rqvae import rq_vae

    learned = rq_vae(points, config, vae, observer)
    codebooks, latents = learned.codebooks, learned.latents
    table, quality = spell(latents, source.items.item_ids, codebooks.encode(latents), codebooks, config)
    write_bytes(staging / ENCODER, save(learned.encoder.to_tensors()))
    said = replace(quality, warnings=(*learned.warnings, *quality.warnings))
    digest = sha256_bytes(np.ascontiguousarray(points, "<f4").tobytes())
    method = {"name": "rq-vae", **asdict(vae), "learned": learned.to_json(), "vectors": digest}
    return latents, table, codebooks, said, method


def _encoder(directory: Path) -> tuple[Encoder, bytes] | None:
    """The encoder beside SIDs made by RQ-VAE, and the content of its file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from recerase.sid.rqvae import Encoder

    if not os.path.lexists(directory / ENCODER):
        return None
    try:
        content = read_verified(directory, [ENCODER])[ENCODER]
        return Encoder.from_tensors(load(content)), content
    except (SafetensorError, ValueError, KeyError, AssertionError) as error:
        raise ArtefactError(f"{directory / ENCODER} cannot be read: {error}.", "Restore it.") from error


def _extended(staging: Path, source: _Source, directory: Path, observer: Observer) -> _Made:
    """The SIDs of `directory` and below them those of new items, written to `staging`."""
    from recerase.layouts.native import save_sids
    from recerase.layouts.tables import read_sids
    from recerase.sid.extend import check_extendable, check_same, extend, new_rows

    table, codebooks, stored = read_sids(directory)
    if codebooks is None:
        check_extendable(table, codebooks, stored)  # says so, of a table made elsewhere too
    before = read_manifest(directory)["provenance"]
    if stored is None or source.kind == "text":
        _refuse_sampled(before, directory)
    codebooks = check_extendable(table, codebooks, stored)
    assert stored is not None
    old, new = new_rows(table, source.items.item_ids)
    if before.get("command") == "erase" and not before.get("erased"):
        raise UsageError(
            f"{directory} is an erased checkpoint that does not say what was erased: a new item could get a SID that the concept had, "
            "and with it its audience.",
            "Extend the SIDs that its original was trained with, or erase again.",
        )
    observer.start("embed", None)
    if source.kind == "text":
        fitted, dims, seed = _text_recipe(before, directory)
        points = source.points(dims, seed, old[:fitted])
    else:
        points = source.points(0, 0)
    observer.finish("embed")
    encoder = _encoder(directory)
    if encoder is not None:
        points = encoder[0].encode(points)
        write_bytes(staging / ENCODER, encoder[1])
    check_same(stored, points[old], table.item_ids)
    observer.start("quantize", None)
    ids = source.items.item_ids[new]
    known = remembered(directory, before)
    concepts, gone = grown_by(known, source.items, new, points)
    taken = left_by(known, table)
    grown, quality = extend(table, codebooks, stored, ids, points[new], without=gone, taken=taken)
    observer.finish("quantize")
    kept: dict[str, Any] = {}
    if known:
        kept = {"erased": write_remembered(staging, concepts), "without a SID": int(gone.sum())}
        observer.note(f"{int(gone.sum())} new items are of what was erased, and get no SID")
        kept |= {name: before[name] for name in ("model", "training") if name in before}
        for name in _WEIGHTS:
            write_bytes(staging / name, read_verified(directory, [name])[name])
    save_sids(staging, grown, codebooks, np.concatenate([stored, points[new]]))
    provenance = {
        "config": before.get("config"),
        "method": before.get("method"),
        "embeddings": before.get("embeddings"),
        **kept,
        "extends": {"table": table.digest, "items": len(table), "new": len(new)},
        "quality": quality.to_json(),
        "environment": asdict(environment()),
    }
    return _Made(provenance, quality, int(stored.shape[1]), len(new))


def _refuse_sampled(provenance: Mapping[str, Any], directory: Path) -> None:
    """Raises UsageError for words that were streamed: the space they were embedded in is not kept."""
    recipe = provenance.get("embeddings")
    if isinstance(recipe, dict) and recipe.get("from") == "text of a sample":
        raise UsageError(
            f"{directory} was made in a stream from the words of a sample of its items, and cannot be extended.",
            "Tokenize the grown catalogue afresh.",
        )


def _text_recipe(provenance: Mapping[str, Any], directory: Path) -> tuple[int, int, int]:
    """How many of the first items the text embedding was fitted to, its width and its seed. Raises UsageError."""
    recipe = provenance.get("embeddings")
    if isinstance(recipe, dict) and recipe.get("from") == "text":
        numbers = [recipe.get(name) for name in ("items", "dims", "seed")]
        if all(type(number) is int and number >= 0 for number in numbers):
            return recipe["items"], recipe["dims"], recipe["seed"]
    raise UsageError(
        f"{directory} does not say that its items were embedded from their words, and how.",
        "Give --embeddings for all items of the catalogue, from where those of the old ones came.",
    )
