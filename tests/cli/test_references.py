"""`recerase audit --reference A --reference B`: what a user writes, what is written, and what is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from tests.doctor import planting

from recerase import api
from recerase.__main__ import run
from recerase.audit import probes
from recerase.audit.recheck import inconsistencies
from recerase.audit.references import alike
from recerase.errors import UsageError
from recerase.layouts.native import save_checkpoint
from recerase.report.json_schema import schema_text
from recerase.report.schema import parse_report, read_report, report_bytes, report_digest
from recerase.resume import state_directory
from recerase.runtime import RunConfig
from recerase.store import publish
from recerase.types import Measurement, Silent

CONCEPT = "category=Planted"
RUN = RunConfig(threads=1, device="cpu")
GOLDS = ("gold0", "gold1", "gold2")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The planted models for 80 users, three references a little unlike each other, one more of the kind, and a bad one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planting, "USERS", 80)
        patch.setattr(
            probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=30, mass_users=80)
        )
        place = tmp_path_factory.mktemp("shop")
        planting.plant(place)
        table, books = planting.table(), planting.codebooks()
        points = np.asarray(books.point(table.codes), np.float32)
        for seed, name in enumerate((*GOLDS, "more", "bad")):
            made = planting.model("leaky" if name == "bad" else "clean")
            with torch.no_grad():
                head = made.module.lm_head.weight
                head += 0.02 * torch.randn(head.shape, generator=torch.Generator().manual_seed(10 + seed))
            with publish(place / name) as out:
                save_checkpoint(out.directory, made, table, books, points)
                out.provenance = {"command": "test"}
        yield place


def line(shop: Path, subject: str, *references: str) -> list[str]:
    given = [word for name in references for word in ("--reference", f"{shop}/{name}")]
    on = ["--original", f"{shop}/leaky", "--concept", CONCEPT, "--data", f"{shop}/data", "--threads", "1", "-q"]
    return ["audit", f"{shop}/{subject}", *given, *on]


@pytest.fixture(scope="module")
def written(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the report of `more` beside three references, in every format."""
    place = tmp_path_factory.mktemp("written")
    files = [word for end in ("json", "md", "html", "xml", "sarif") for word in ("-o", f"{place}/audit.{end}")]
    assert run([*line(shop, "more", *GOLDS), *files]) in (0, 1, 5)
    return place


def test_the_report_names_every_reference_and_keeps_to_the_schema(written: Path) -> None:
    document = json.loads((written / "audit.json").read_text())
    assert [e.message for e in Draft202012Validator(json.loads(schema_text())).iter_errors(document)] == []
    report = read_report(written / "audit.json")
    assert {name for name in report.inputs if name.startswith("reference")} == {
        "reference",
        "reference.2",
        "reference.3",
    }
    assert [x.name for x in report.references] == ["reference", "reference.2", "reference.3"]
    assert len(report.likeness) == 7
    assert {row.verdict for row in report.likeness} <= {"equivalent", "too few"}
    assert report_bytes(parse_report(report_bytes(report))) == (written / "audit.json").read_bytes()
    control = {c.name: c for c in report.decision.controls}["reference"]
    assert control.observed.startswith("references 1, 2, 3: ")


def test_every_page_shows_the_rows(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(written / "audit.json")
    assert run(["report", "show", f"{written}/audit.json"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for page in (shown, (written / "audit.md").read_text(), (written / "audit.html").read_text()):
        assert "could it be one more of the references?" in page
        assert "3 references were given" in page
        assert "how often a clean model is found alike is not known" in page
        assert "told from a reference by a classifier" in page
        for verdict in {row.verdict for row in report.likeness}:
            assert verdict in page
    assert run(["report", "card", f"{written}/audit.json", "--out", f"{written}/card.md", "--force"]) == 0
    assert "could it be one more of the references?" in (written / "card.md").read_text()


def test_a_report_of_several_references_holds_and_is_attested(
    shop: Path, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [word for name in (GOLDS[2], GOLDS[0]) for word in ("--reference", f"{shop}/{name}")]
    assert run(["report", "verify", f"{written}/audit.json", "--subject", f"{shop}/more", *told]) == 0
    assert run(["report", "verify", f"{written}/audit.json", *told, "--reference", f"{shop}/bad"]) == 4
    assert "bad is not the reference of this audit" in capsys.readouterr().err
    assert api.attest_report(written / "audit.json", shop / "more", written / "statement.json", force=True) > 0
    assert '"reference.3"' in (written / "statement.json").read_text()


def test_what_does_not_follow_from_the_references_is_found(written: Path) -> None:
    report = read_report(written / "audit.json")
    assert inconsistencies(report) == ()
    assert any("inputs name" in told for told in inconsistencies(replace(report, references=())))
    better = replace(report.references[1], measurements=report.references[0].measurements)
    swapped = replace(report, references=(report.references[0], better, report.references[2]))
    assert any("models come to together" in told for told in inconsistencies(swapped))
    row = replace(report.likeness[0], verdict="not equivalent")
    assert any("likeness of" in told for told in inconsistencies(replace(report, likeness=(row,))))


def test_a_likeness_that_was_edited_is_found(written: Path, shop: Path, tmp_path: Path) -> None:
    report = read_report(written / "audit.json")
    rows = {row.metric: row for row in report.likeness}

    def told(**more: Any) -> str:
        return " ".join(inconsistencies(replace(report, **more)))

    def rewritten(metric: str, **more: Any) -> str:
        row = replace(rows[metric], **more)
        row = replace(row, verdict=alike(row))  # its own numbers say so
        return told(likeness=tuple(row if x.metric == metric else x for x in report.likeness))

    assert "held against 0.5, which is no limit" in rewritten("auc", limit=0.5)
    assert "held against 40, which is no limit" in rewritten("natural.mass.old", limit=40.0)
    assert "figures of the references" in rewritten("auc", auc=0.99)
    assert "figures of the references" in rewritten("natural.mass.new", value=1.001)
    assert "not once of each" in told(likeness=report.likeness[1:])
    assert "not once of each" in told(likeness=(report.likeness[1], *report.likeness[1:]))
    alone = {name: digest for name, digest in report.inputs.items() if not name.startswith("reference.")}
    assert "no two references" in told(references=(), inputs=alone)
    itself = {**report.inputs, "subject": report.inputs["reference.2"]}
    assert "figures of the references" in told(inputs=itself)


def test_a_comparison_that_one_reference_does_not_bear_out_is_found(written: Path) -> None:
    report = read_report(written / "audit.json")

    def narrower(m: Measurement) -> Measurement:
        if (m.metric, m.role, m.kind) != ("natural.mass.old", "subject", "ratio") or m.interval is None:
            return m
        return replace(m, interval=replace(m.interval, low=m.value, high=m.value))

    edited = replace(report, measurements=tuple(map(narrower, report.measurements)))
    assert edited != report
    assert any("does not hold that to each" in told for told in inconsistencies(edited))
    first = report.references[0]
    mixed = replace(first, measurements=(*first.measurements, replace(first.measurements[0], role="subject")))
    edited = replace(report, references=(mixed, *report.references[1:]))
    assert any("another role" in told for told in inconsistencies(edited))


def test_a_bad_reference_is_named_and_the_report_of_it_holds(shop: Path, tmp_path: Path) -> None:
    assert run([*line(shop, "more", "gold0", "bad"), "-o", f"{tmp_path}/audit.json"]) == 5
    report = read_report(tmp_path / "audit.json")
    assert "reference 2: fails" in report.decision.reason
    assert inconsistencies(report) == ()


def test_one_reference_writes_what_it_ever_wrote(shop: Path, tmp_path: Path) -> None:
    run([*line(shop, "more", "gold0"), "-o", f"{tmp_path}/audit.json"])
    document = json.loads((tmp_path / "audit.json").read_text())
    assert not {"references", "likeness"} & set(document)
    assert {name for name in document["inputs"] if name.startswith("reference")} == {"reference"}
    assert [e.message for e in Draft202012Validator(json.loads(schema_text())).iter_errors(document)] == []
    assert report_bytes(read_report(tmp_path / "audit.json")) == (tmp_path / "audit.json").read_bytes()


def test_the_same_reference_twice_is_refused(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line(shop, "more", "gold0", "gold1", "gold0")) == 2
    assert "are the same reference" in capsys.readouterr().err
    with publish(tmp_path / "copy") as out:  # the same weights, listed otherwise: another digest
        table = planting.table()
        opened = api.open_checkpoint_for(shop / "gold0", api.load_catalogue(shop / "data"), RUN)
        save_checkpoint(out.directory, opened.recommender, table.unlisted(np.arange(len(table.codes)) == 3), None, None)
        out.provenance = {"command": "test"}
    given: dict[str, Any] = {"original": shop / "leaky", "run": RUN}
    with pytest.raises(UsageError, match="same weights"):
        api.audit(
            shop / "more",
            api.ConceptSpec((CONCEPT,)),
            shop / "data",
            reference=[shop / "gold0", tmp_path / "copy"],
            **given,
        )


def test_settings_name_several(shop: Path, written: Path, tmp_path: Path) -> None:
    listed = ", ".join(f'"{shop}/{name}"' for name in GOLDS)
    (tmp_path / "recerase.toml").write_text(f"reference = [{listed}]\n")
    run([*line(shop, "more"), "--settings", f"{tmp_path}/recerase.toml", "-o", f"{tmp_path}/audit.json"])
    assert report_digest(read_report(tmp_path / "audit.json")) == report_digest(read_report(written / "audit.json"))
    (tmp_path / "recerase.toml").write_text("reference = []\n")
    assert run([*line(shop, "more"), "--settings", f"{tmp_path}/recerase.toml"]) == 2


class Stopper(Silent):
    """Stops the run at the last reference."""

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        if figures.get("role") == "reference 3":
            raise KeyboardInterrupt


def test_an_interrupted_audit_goes_on_to_the_same_report(
    shop: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def audit(*names: str, **more: Any) -> Any:
        given: dict[str, Any] = {"original": shop / "leaky", "run": RUN, "outputs": [tmp_path / "audit.json"]}
        places = [shop / name for name in names]
        return api.audit(shop / "more", api.ConceptSpec((CONCEPT,)), shop / "data", reference=places, **given, **more)

    with pytest.raises(KeyboardInterrupt):
        audit(*GOLDS, observer=Stopper())
    kept = {path.name for path in state_directory(tmp_path / "audit.json").iterdir()}
    assert len(kept) > 3
    with pytest.raises(UsageError, match="reference"):
        audit("gold0", "gold1", resume=True)
    report = audit(*GOLDS, resume=True)
    assert report_digest(report) == report_digest(read_report(written / "audit.json"))


def test_erase_takes_several(shop: Path, tmp_path: Path) -> None:
    out = [word for name in GOLDS[:2] for word in ("--reference", f"{shop}/{name}")]
    on = ["--concept", CONCEPT, "--data", f"{shop}/data", "--threads", "1", "-q"]
    on += ["-o", f"{tmp_path}/audit.json", "-o", f"{tmp_path}/audit.md"]
    assert run(["erase", f"{shop}/leaky", "-m", "filter", "--out", f"{tmp_path}/erased", *out, *on]) in (1, 5)
    report = read_report(tmp_path / "audit.json")
    assert {"reference", "reference.2"} <= set(report.inputs)
    assert {row.verdict for row in report.likeness if row.metric != "auc"} == {"too few"}
    page = (tmp_path / "audit.md").read_text()
    assert "needs 3 |" in page
    assert "(no title)" not in page  # cells without an interval are empty
