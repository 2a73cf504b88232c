"""No bit of any artefact can change unseen: flips, truncation, missing, added and swapped files, all exit 4 with the file's name."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.reliability.conftest import Job

from recerase.__main__ import run
from recerase.catalog import load_catalogue, load_items
from recerase.catalog.files import Verified
from recerase.errors import ArtefactError
from recerase.layouts.native import load_checkpoint, load_sids
from recerase.report.schema import read_report
from recerase.reporting import read_baseline
from recerase.sid.table_files import read_table
from recerase.store import MANIFEST, read_sealed, write_manifest, write_sealed

Effort = Callable[[int, int], int]
Figure = Callable[..., None]


@dataclass(frozen=True)
class Artefact:
    """One file, and the cheapest public reader that a command reaches it with."""

    kind: str
    path: Path
    read: Callable[[], Any]


@contextmanager
def spoilt(path: Path, spoil: Callable[[bytes], bytes]) -> Iterator[None]:
    """The file with its content changed in place, and as it was again afterwards."""
    before = path.read_bytes()
    after = spoil(before)
    assert after != before
    path.write_bytes(after)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def noticed(artefact: Artefact) -> bool:
    """Whether reading is refused with exit code 4 and the file's name; any other exception is the test's failure."""
    try:
        artefact.read()
    except ArtefactError as error:
        return error.exit_code == 4 and artefact.path.name in error.message and bool(error.remedy)
    return False


@pytest.fixture
def artefacts(own_job: Job) -> list[Artefact]:
    """Every file of a whole job, each in a directory that reads well as it is."""
    found = []
    for folder in (own_job.model, own_job.sids, own_job.erased):
        load = load_checkpoint if (folder / "config.json").is_file() else load_sids
        load(folder)
        found += [Artefact(folder.name, file, lambda folder=folder: load_sids(folder)) for file in folder.iterdir()]
    load_catalogue(own_job.data)
    found += [Artefact("data", file, lambda: load_catalogue(own_job.data)) for file in own_job.data.iterdir()]
    for file in (own_job.report, own_job.erased / "report.json"):
        read_report(file)
        found.append(Artefact("report", file, lambda file=file: read_report(file)))
    baseline = own_job.home / "baseline.json"
    assert run(["report", "bless", str(own_job.report), "--out", str(baseline), "--reason", "known"]) == 0
    read_baseline(baseline, "regression")
    found.append(Artefact("baseline", baseline, lambda: read_baseline(baseline, "regression")))
    sealed = own_job.home / "state"
    write_sealed(sealed, own_job.report.read_bytes() * 3)
    read_sealed(sealed)
    found.append(Artefact("state", sealed, lambda: read_sealed(sealed)))
    return sorted(found, key=lambda artefact: (artefact.kind, artefact.path.name))


def test_every_kind_of_file_is_attacked(artefacts: list[Artefact]) -> None:
    names = {(artefact.kind, artefact.path.name) for artefact in artefacts}
    checkpoint = {
        "config.json",
        "model.safetensors",
        "sids.parquet",
        "sid_schema.json",
        "codebooks.safetensors",
        MANIFEST,
    }
    assert names >= {("model", name) for name in checkpoint} | {("erased", "report.json"), ("erased", MANIFEST)}
    assert names >= {("sids", name) for name in checkpoint - {"config.json", "model.safetensors"}}
    assert names >= {("data", name) for name in ("items.parquet", "interactions.parquet", MANIFEST)}
    assert {"report", "baseline", "state"} <= {kind for kind, _ in names}


def test_a_flipped_bit_is_noticed(artefacts: list[Artefact], effort: Effort, figure: Figure) -> None:
    n, rng = effort(1000, 100_000), random.Random(0)
    missed = []
    for turn in range(n):
        artefact = artefacts[turn % len(artefacts)]
        bit = rng.randrange(artefact.path.stat().st_size * 8)
        with spoilt(artefact.path, lambda data, bit=bit: flipped(data, bit)):
            if not noticed(artefact):
                missed.append(f"{artefact.kind} {artefact.path.name} bit {bit}")
    figure("integrity: single-bit flips not noticed", len(missed), of=n)
    assert not missed, missed[:5]


def test_a_file_cut_short_or_lengthened_is_noticed(artefacts: list[Artefact], effort: Effort, figure: Figure) -> None:
    n, rng = effort(200, 5000), random.Random(1)
    missed = []
    for turn in range(n):
        artefact = artefacts[turn % len(artefacts)]
        length = rng.choice([0, 1, artefact.path.stat().st_size - 1, rng.randrange(artefact.path.stat().st_size)])
        added = rng.random() < 0.1
        with spoilt(artefact.path, lambda data, at=length, added=added: data + b"\n" if added else data[:at]):
            if not noticed(artefact):
                missed.append(f"{artefact.kind} {artefact.path.name} cut at {length}")
    figure("integrity: truncations not noticed", len(missed), of=n)
    assert not missed, missed[:5]


def test_flips_seen_through_the_commands(own_job: Job, capfd: pytest.CaptureFixture[str], figure: Figure) -> None:
    """The whole way: process, exit code 4, and one message with the file's name instead of a traceback."""
    model, data, concept = str(own_job.model), f"--data={own_job.data}", f"--concept={own_job.concept}"
    policy = f"--policy={own_job.policy}"
    commands: list[tuple[list[Path], list[str]]] = [
        ([own_job.model], ["inspect", model]),
        ([own_job.sids], ["inspect", str(own_job.sids)]),
        ([own_job.data], ["inspect", str(own_job.data)]),
        ([own_job.model, own_job.data], ["audit", model, data, concept, policy]),
        ([own_job.model, own_job.data], ["concept", own_job.concept, data, "--sids", model]),
        ([own_job.report], ["report", "show", str(own_job.report)]),
    ]
    rng, missed, n = random.Random(2), [], 0
    for places, command in commands:
        for file in (file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])):
            bit = rng.randrange(file.stat().st_size * 8)
            with spoilt(file, lambda content, bit=bit: flipped(content, bit)):
                code = run(command)
            said = "".join(capfd.readouterr())
            n += 1
            if code != 4 or file.name not in said or "Traceback" in said:
                missed.append(f"{' '.join(command[:2])}: {file.name} bit {bit}: exit {code}")
    figure("integrity: single-bit flips not noticed by a command", len(missed), of=n)
    assert n >= 30
    assert not missed, missed


def test_a_missing_file_is_refused(artefacts: list[Artefact], figure: Figure) -> None:
    listed = [artefact for artefact in artefacts if artefact.path.name != MANIFEST or artefact.kind != "data"]
    accepted = []
    for artefact in listed:
        aside = artefact.path.rename(artefact.path.with_name("aside"))
        if not noticed(artefact):
            accepted.append(f"{artefact.kind} {artefact.path.name}")
        aside.rename(artefact.path)
    figure("integrity: missing files accepted", len(accepted), of=len(listed))
    assert not accepted


def test_a_file_that_the_manifest_does_not_name_is_refused(own_job: Job) -> None:
    """More weights beside the weights, or codebooks slipped in: what is not vouched for is not read."""
    shutil.copy(own_job.model / "model.safetensors", own_job.model / "model-2.safetensors")
    with pytest.raises(ArtefactError, match=r"model-2\.safetensors"):
        load_checkpoint(own_job.model)
    bare = shutil.copytree(own_job.sids, own_job.home / "bare")
    (bare / "codebooks.safetensors").unlink()
    write_manifest(bare, {})
    load_sids(bare)
    shutil.copy(own_job.sids / "codebooks.safetensors", bare)
    with pytest.raises(ArtefactError, match=r"codebooks\.safetensors"):
        load_sids(bare)


@pytest.mark.parametrize("name", ["model.safetensors", "sids.parquet", "config.json", MANIFEST])
def test_files_of_two_checkpoints_do_not_mix(own_job: Job, name: str) -> None:
    """Each file is whole and of a checkpoint that loads; it is only not the one that the manifest speaks of."""
    weights = own_job.erased / "model.safetensors"  # `filter` leaves them as they are in `model`
    weights.write_bytes(flipped(weights.read_bytes(), 8 * (weights.stat().st_size - 4)))
    config = own_job.erased / "config.json"
    config.write_text(config.read_text().replace('"window": 6', '"window": 3'))
    write_manifest(own_job.erased, {"command": "other"})
    one, other = own_job.model / name, own_job.erased / name
    assert load_checkpoint(own_job.model).digest != load_checkpoint(own_job.erased).digest
    kept, found = one.read_bytes(), other.read_bytes()
    assert kept != found
    one.write_bytes(found)
    other.write_bytes(kept)
    for folder in (own_job.model, own_job.erased):
        with pytest.raises(ArtefactError):
            load_checkpoint(folder)


def test_without_a_manifest_only_what_users_make_is_read(own_job: Job) -> None:
    for folder in (own_job.model, own_job.sids, own_job.data):
        (folder / MANIFEST).unlink()
    for refused in (lambda: load_checkpoint(own_job.model), lambda: load_sids(own_job.sids)):
        with pytest.raises(ArtefactError, match=r"recerase\.json") as error:
            refused()
        assert error.value.remedy
    load_catalogue(own_job.data)
    read_table(own_job.sids / "sids.parquet")


def test_a_file_named_by_itself_is_checked_where_a_manifest_names_it(own_job: Job) -> None:
    """`--sids DIR/sids.parquet` and `tokenize DIR/items.parquet` go past the directory, not past its manifest."""
    for file, read in ((own_job.sids / "sids.parquet", read_table), (own_job.data / "items.parquet", load_items)):
        read(file)
        with (
            spoilt(file, lambda data: flipped(data, 8 * (len(data) // 2))),
            pytest.raises(ArtefactError, match=file.name),
        ):
            read(file)


def test_weights_are_hashed_at_most_twice(own_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the whole directory and once in the memory that is used; loading used to take four passes."""
    import hashlib

    weights = own_job.model / "model.safetensors"
    hashed = dict.fromkeys((path.name for path in own_job.model.iterdir()), 0)
    digest_of, update = hashlib.file_digest, Verified.fill

    def file_digest(file: Any, name: Any) -> Any:
        hashed[Path(file.name).name] += Path(file.name).stat().st_size
        return digest_of(file, name)

    def fill(self: Verified, memory: memoryview) -> None:
        hashed[self.path.name] += len(memory)
        update(self, memory)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    monkeypatch.setattr(Verified, "fill", fill)
    load_checkpoint(own_job.model)
    assert hashed[weights.name] == 2 * weights.stat().st_size
