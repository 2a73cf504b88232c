"""`recerase prepare`: published whole, read by digest, and refused where it does not belong."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.erase.cases import QUICK
from tests.erase.test_conformance_files import MEMBERS, WHERE, Shop, checkpoint, code_of, shop  # noqa: F401
from tests.layouts.causal_checks import EASY

from recerase import api
from recerase.audit import probes
from recerase.catalog import load_catalogue
from recerase.earlier import Gone, gone_from
from recerase.erase import unlearnrec
from recerase.erase.methods import get_method, make_config
from recerase.errors import ArtefactError, CheckpointError, OutputError, UsageError
from recerase.layouts.native import load_checkpoint
from recerase.preparing import CARD, TENSORS, prepared_for
from recerase.store import read_manifest, verify_manifest
from recerase.types import Silent

SETTINGS = [f"{key}={value}" for key, value in QUICK["unlearnrec"].items()]
Checkpoint = Callable[[str], Path]


@dataclass
class Noting(Silent):
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def ready(shop: Shop, checkpoint: Checkpoint) -> Path:  # noqa: F811
    """What was prepared for the causal checkpoint; read only."""
    out = shop.home / "ready"
    if not out.exists():
        api.prepare(checkpoint("causal"), shop.data, out, overrides=SETTINGS, run=WHERE)
    return out


def nothing_gone(shop: Shop, opened: Any) -> Gone:  # noqa: F811
    return gone_from([], (), load_catalogue(shop.data), opened.table)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_it_is_published_whole_and_the_same_each_time(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
    tmp_path: Path,
) -> None:
    before = contents(checkpoint("causal"))
    made = api.prepare(checkpoint("causal"), shop.data, tmp_path / "again", overrides=SETTINGS, run=WHERE)
    assert made.path == tmp_path / "again"
    assert contents(made.path) == contents(ready)
    assert contents(checkpoint("causal")) == before
    verify_manifest(ready, needed=[TENSORS, CARD])
    said = json.loads((ready / CARD).read_bytes())
    opened = load_checkpoint(checkpoint("causal"))
    assert said["checkpoint"] == opened.digest
    assert said["table"] == opened.table.digest
    assert read_manifest(ready)["provenance"]["command"] == "prepare"


def test_erasing_takes_it_and_names_it_by_digest(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=20))
    (tmp_path / "policy.toml").write_text(EASY)
    report = api.erase(
        checkpoint("causal"),
        MEMBERS,
        shop.data,
        tmp_path / "out",
        method="unlearnrec",
        overrides=[*SETTINGS, f"prepared={ready}"],
        policy=tmp_path / "policy.toml",
        max_users=4,
        run=WHERE,
    )
    method, _ = get_method("unlearnrec")
    settings = make_config(method, None, {"prepared": str(ready)})
    opened = load_checkpoint(checkpoint("causal"))
    made = prepared_for(method, settings, lambda: opened.digest, opened.table, nothing_gone(shop, opened), "")
    assert made is not None
    assert report.method["summary"]["prepared"] == "before"
    assert report.method["config"]["prepared"] == made.facts["digest"]
    assert str(ready) not in (tmp_path / "out" / "report.json").read_text()
    moved = report.method["changes"]["tensors_changed"]
    assert len(moved) == 2
    assert all("embed" in name or "lm_head" in name for name in moved)


@pytest.mark.parametrize("plan", [False, True])
def test_what_was_prepared_for_another_checkpoint_is_refused(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
    tmp_path: Path,
    plan: bool,
) -> None:
    asked = {"method": "unlearnrec", "overrides": [f"prepared={ready}"], "run": WHERE}
    with pytest.raises(CheckpointError, match="prepared for another checkpoint") as caught:
        if plan:
            api.plan_erase(checkpoint("seq2seq"), MEMBERS, shop.data, **asked)  # type: ignore[arg-type]
        else:
            api.erase(checkpoint("seq2seq"), MEMBERS, shop.data, tmp_path / "out", **asked)  # type: ignore[arg-type]
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_byte_that_changed_is_seen(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
    tmp_path: Path,
) -> None:
    for name in (TENSORS, CARD):
        spoiled = tmp_path / name
        spoiled.mkdir()
        for file, data in contents(ready).items():
            (spoiled / file).write_bytes(data if file != name else data[:-3] + b"0" + data[-2:])
        with pytest.raises(ArtefactError):
            api.plan_erase(
                checkpoint("causal"), MEMBERS, shop.data, method="unlearnrec", overrides=[f"prepared={spoiled}"]
            )
    with pytest.raises(ArtefactError, match=r"has no prepared\.json"):
        api.plan_erase(
            checkpoint("causal"), MEMBERS, shop.data, method="unlearnrec", overrides=[f"prepared={shop.data}"]
        )


def test_other_data_is_told_and_not_refused(shop: Shop, checkpoint: Checkpoint, ready: Path) -> None:  # noqa: F811
    method, told = get_method("unlearnrec")[0], Noting()
    settings = make_config(method, None, {"prepared": str(ready)})
    opened = load_checkpoint(checkpoint("causal"))
    gone = nothing_gone(shop, opened)
    assert prepared_for(method, settings, lambda: opened.digest, opened.table, gone, "other", told) is not None
    assert told.notes == [f"{ready} was prepared on other data than these"]


def test_the_result_may_not_lie_where_it_was_read(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
) -> None:
    before = contents(ready)
    with pytest.raises(OutputError):
        api.erase(
            checkpoint("causal"),
            MEMBERS,
            shop.data,
            ready,
            method="unlearnrec",
            overrides=[f"prepared={ready}"],
            force=True,
            run=WHERE,
        )
    assert contents(ready) == before


def test_a_method_with_nothing_to_prepare_is_refused(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["prepare", str(checkpoint("causal")), f"--data={shop.data}", "-m", "npo", "--out", str(tmp_path / "out")]
    assert code_of(line) == 2
    assert "Methods that have: unlearnrec" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="what this command makes"):
        api.prepare(checkpoint("causal"), shop.data, tmp_path / "out", overrides=[f"prepared={ready}"], run=WHERE)
    assert not (tmp_path / "out").exists()


GONE = "item:i20,i21"


def of(spec: str) -> list[api.ConceptSpec]:
    return [api.ConceptSpec((spec,))]


def test_what_was_erased_before_is_no_retained_target_of_what_is_prepared(
    shop: Shop,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
    ready: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it answers those requests alone that know the same items to be gone, whatever words name them."""
    targets: list[set[int]] = []
    real = unlearnrec.Simulated

    def watched(rewriting: Any, pairs: Any) -> Any:
        targets.append(set(pairs.targets.tolist()))
        return real(rewriting, pairs)

    monkeypatch.setattr(unlearnrec, "Simulated", watched)
    model, place, told = checkpoint("causal"), tmp_path / "made", Noting()
    for out, earlier in ((tmp_path / "plain", []), (place, of(GONE))):
        api.prepare(model, shop.data, out, overrides=SETTINGS, earlier=earlier, run=WHERE, observer=told)
    assert targets[0] - targets[1] == {20, 21}
    assert told.notes == [f"erased before: {GONE} (2 items)"]
    assert contents(tmp_path / "plain") == contents(ready)
    assert contents(place)[TENSORS] != contents(ready)[TENSORS]
    assert [c["items"] for c in read_manifest(place)["provenance"]["erased"]] == [2]

    def plan(prepared: Path, *earlier: str) -> None:
        asked: dict[str, Any] = {"method": "unlearnrec", "overrides": [f"prepared={prepared}"]}
        api.plan_erase(model, MEMBERS, shop.data, earlier=[x for spec in earlier for x in of(spec)], run=WHERE, **asked)

    plan(place, "item:i21,i20")
    plan(place, "item:i21", "item:i20")
    for prepared, earlier in ((place, ()), (place, ("item:i20",)), (ready, (GONE,))):
        with pytest.raises(CheckpointError, match="other concepts were known to be erased before") as caught:
            plan(prepared, *earlier)
        assert "--already-erased" in caught.value.remedy
