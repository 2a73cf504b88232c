"""The commands, end to end on a tiny shop: what they leave on disk, what they print where, and how they exit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recerase import api
from recerase.__main__ import run
from recerase.audit import cards
from recerase.catalog import load_catalogue
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.cli.verdict import tell
from recerase.errors import UsageError
from recerase.layouts.native import load_checkpoint, load_sids
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.report.schema import read_report
from recerase.runtime import RunConfig
from recerase.store import publish, read_manifest, verify_manifest
from recerase.types import Silent

SHAPE = ["--width", "16", "--layers", "1", "--heads", "2", "--window", "6", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, sids and model of a tiny shop, made by the commands themselves."""
    home = tmp_path_factory.mktemp("shop")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=260, n_users=150))
    assert run(["tokenize", f"{home}/data", "--out", f"{home}/sids", "--codes", "16", "--dims", "16", "-q"]) == 0
    line = ["train", f"{home}/data", "--sids", f"{home}/sids", "--out", f"{home}/model", "--epochs", "2", *SHAPE, "-q"]
    assert run(line) == 0
    return home


def test_tokenize_gives_every_item_its_own_sid(shop: Path) -> None:
    verify_manifest(shop / "sids")
    items = load_catalogue(shop / "data").items
    table, codebooks, embeddings = load_sids(shop / "sids", item_ids=items.item_ids)
    assert len(np.unique(table.codes, axis=0)) == len(items)
    assert codebooks is not None
    assert embeddings.shape == (len(items), 16)


def test_same_command_same_bytes(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sids"
    assert run(["tokenize", f"{shop}/data", "--out", str(out), "--codes", "16", "--dims", "16"]) == 0
    assert read_manifest(out) == read_manifest(shop / "sids")
    stdout, stderr = capsys.readouterr()
    assert stdout == f"{out}\n"
    assert "collisions" in stderr
    out = tmp_path / "model"
    line = ["train", f"{shop}/data", "--sids", f"{shop}/sids", "--out", str(out), "--epochs", "2", *SHAPE, "-q"]
    assert run(line) == 0
    assert read_manifest(out) == read_manifest(shop / "model")
    assert capsys.readouterr() == (f"{out}\n", "")


def test_an_output_that_exists_is_not_touched(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_manifest(shop / "sids")
    assert run(["tokenize", f"{shop}/data", "--out", f"{shop}/sids", "--codes", "8"]) == 2
    assert "--force" in capsys.readouterr().err
    assert read_manifest(shop / "sids") == before


def test_an_interrupted_training_resumes_to_the_same_weights(shop: Path, tmp_path: Path) -> None:
    class Stopper(Silent):
        def note(self, text: str) -> None:
            raise KeyboardInterrupt

    def train(out: Path, **more: object) -> api.Trained:
        shape = ModelConfig(width=16, layers=1, heads=2, feed_forward=16, window=6)
        config = TrainConfig(epochs=3, validate_every=2)
        where = RunConfig(threads=1, device="cpu")
        return api.train(shop / "data", shop / "sids", out, shape, config, run=where, **more)  # type: ignore[arg-type]

    train(tmp_path / "straight")
    with pytest.raises(api.UsageError, match="nothing to continue"):
        train(tmp_path / "broken", resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", observer=Stopper())
    assert not (tmp_path / "broken").exists()
    train(tmp_path / "broken")
    assert load_checkpoint(tmp_path / "broken").digest == load_checkpoint(tmp_path / "straight").digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "straight"]


def test_a_reference_never_saw_the_concept(shop: Path, tmp_path: Path) -> None:
    line = ["train", f"{shop}/data", "--sids", f"{shop}/sids", "--out", f"{tmp_path}/gold", "--epochs", "1", *SHAPE]
    assert run([*line, "--without", DEMO_CONCEPT, "-q"]) == 0
    without = read_manifest(tmp_path / "gold")["provenance"]["without"]
    assert without["items"] > 0
    assert without["interactions"] > 0


def test_recommend_ranks_listed_items_for_every_user(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.parquet"
    assert run(["recommend", f"{shop}/model", "--data", f"{shop}/data", "--top", "5", "--out", str(out), "-q"]) == 0
    table = pq.read_table(out).to_pydict()
    users = load_catalogue(shop / "data").interactions.user_ids
    assert sorted(set(table["user_id"])) == sorted(users)
    assert table["rank"] == [1, 2, 3, 4, 5] * len(users)
    assert set(table["item_id"]) <= set(load_catalogue(shop / "data").items.item_ids)
    scores = np.array(table["score"]).reshape(len(users), 5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (scores < 0).all()
    assert run(["recommend", f"{shop}/model", "--data", f"{shop}/data", "--out", str(out), "-q"]) == 2


def test_concept_previews_and_refuses_an_empty_one(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", f"{shop}/data", "--sids", f"{shop}/model"]
    assert run(["concept", DEMO_CONCEPT, *where]) == 0
    out = capsys.readouterr().out
    assert "items" in out
    assert "users touched" in out
    assert run(["concept", "category=Nonesuch", *where]) == 2
    assert "Nonesuch" in capsys.readouterr().err


def test_an_audit_reports_decides_and_can_be_verified(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = [tmp_path / name for name in ("audit.json", "audit.md", "audit.html")]
    line = ["audit", f"{shop}/model", "--original", f"{shop}/model", "--concept", DEMO_CONCEPT]
    line += ["--data", f"{shop}/data"]
    code = run([*line, "--max-users", "60", "--threads", "1", *(word for path in files for word in ("-o", str(path)))])
    report = json.loads(files[0].read_text())
    assert code == {"pass": 0, "fail": 1, "inconclusive": 5}[report["verdict"]]
    assert code in (1, 5)
    assert all(path.stat().st_size > 1000 for path in files)
    assert report["verdict"].upper() in (tmp_path / "summary.md").read_text().upper()
    capsys.readouterr()
    verify = ["report", "verify", str(files[0]), "--subject", f"{shop}/model", "--data", f"{shop}/data"]
    assert run(verify) == 0
    assert run(["report", "verify", str(files[0]), "--subject", f"{shop}/sids"]) == 4
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "missing" / "summary.md"))
    assert tell(read_report(files[0]), []) == code
    told = capsys.readouterr()
    assert "warning: no step summary" in told.err
    assert "exposure" in told.out
    assert run(["report", "show", str(files[0])]) == 0
    assert DEMO_CONCEPT in capsys.readouterr().out
    files[0].write_bytes(files[0].read_bytes().replace(b'"fail"', b'"pass"').replace(b'"inconclusive"', b'"pass"'))
    assert run(verify) == 4


def test_settings_fill_what_the_command_line_leaves_out(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["audit"]) == 2
    assert "recerase.toml" in capsys.readouterr().err
    concept = DEMO_CONCEPT.replace('"', '\\"')
    (tmp_path / "recerase.toml").write_text(
        f'data = "{shop}/data"\ncheckpoint = "{shop}/model"\nconcepts = ["{concept}"]\n', encoding="utf-8"
    )
    assert run(["concept"]) == 0
    assert run(["concept", "category=Nonesuch"]) == 2
    (tmp_path / "recerase.toml").write_text('dta = "x"\n', encoding="utf-8")
    capsys.readouterr()
    assert run(["concept"]) == 2
    assert "dta" in capsys.readouterr().err


def test_a_failed_erasure_publishes_nothing_and_still_reports(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(shop / "model")
    out, paper = tmp_path / "erased", tmp_path / "erase.json"
    strict = tmp_path / "policy.toml"
    strict.write_text(
        'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n'
        '[[rule]]\nid = "mass"\nmetric = "natural.mass.old"\nmax = 1e-9\n'
    )
    line = ["erase", f"{shop}/model", "--concept", DEMO_CONCEPT, "--data", f"{shop}/data", "--out", str(out)]
    more = ["-m", "filter", "--policy", str(strict), "-o", str(paper), "--max-users", "60", "--threads", "1"]
    assert run([*line, *more]) == 1
    assert json.loads(paper.read_text())["verdict"] == "fail"
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["erase.json", "policy.toml"]
    assert read_manifest(shop / "model") == before
    verify_manifest(shop / "model")
    assert "nothing was published" in capsys.readouterr().err


def test_an_erasure_that_no_rule_refuses_is_published_with_its_report(shop: Path, tmp_path: Path) -> None:
    out, easy = tmp_path / "erased", tmp_path / "policy.toml"
    easy.write_text(
        'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n'
        '[[rule]]\nid = "list"\nmetric = "natural.exposure@10"\nmax = 0.2\n'
    )
    line = ["erase", f"{shop}/model", "--concept", DEMO_CONCEPT, "--data", f"{shop}/data", "--out", str(out), "-q"]
    code = run([*line, "-m", "filter", "--policy", str(easy), "--max-users", "60", "--threads", "1"])
    report = json.loads((out / "report.json").read_text())
    assert code == {"pass": 0, "inconclusive": 5}[report["verdict"]]
    verify_manifest(out)
    catalogue = load_catalogue(shop / "data")
    erased = load_checkpoint(out, item_ids=catalogue.items.item_ids)
    gone = ~erased.table.listed
    assert gone.any()
    assert all("Vaping" in catalogue.items.categories[row] for row in np.flatnonzero(gone))
    assert run(["report", "verify", str(out / "report.json"), "--subject", str(out)]) == 0
    again = [str(tmp_path / "again") if word == str(out) else word for word in line]
    assert run([*again, "-m", "filter", "--policy", str(easy), "--max-users", "60", "--threads", "1"]) == code
    assert read_manifest(tmp_path / "again") == read_manifest(out)


def test_a_plan_writes_nothing(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["erase", f"{shop}/model", "--concept", DEMO_CONCEPT, "--data", f"{shop}/data"]
    line += ["--out", f"{tmp_path}/erased"]
    assert run([*line, "--plan"]) == 0
    assert "tracer" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert run([*line, "--plan", "--set", "nonsense=1"]) == 2
    assert run([*line, "--plan", "--set", "nonsense"]) == 2
    assert run([*line, "--plan", "-m", "tracre"]) == 2
    assert "tracer" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--out", "-o"])
def test_erase_refuses_to_write_onto_its_input_before_it_works(shop: Path, flag: str, tmp_path: Path) -> None:
    target = {"--out": f"{shop}/model", "-o": f"{tmp_path}/report.pdf"}[flag]
    line = ["erase", f"{shop}/model", "--concept", DEMO_CONCEPT, "--data", f"{shop}/data"]
    extra = [] if flag == "--out" else ["--out", f"{tmp_path}/erased"]
    assert run([*line, *extra, flag, target, "--force"]) == 2
    verify_manifest(shop / "model")


def test_inspect_says_what_and_how(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("data", "data directory"), ("sids", "SID directory"), ("model", "native checkpoint")):
        assert run(["inspect", f"{shop}/{name}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == kind
        assert run(["inspect", f"{shop}/{name}"]) == 0
        assert kind in capsys.readouterr().out
    assert run(["inspect", str(tmp_path)]) == 4
    assert run(["inspect", str(tmp_path / "nowhere")]) == 4


def test_policies_are_written_checked_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "policy.toml"
    assert run(["policy", "init", "--out", str(mine)]) == 0
    assert run(["policy", "check", str(mine)]) == 0
    assert run(["policy", "init", "--out", str(mine)]) == 2
    capsys.readouterr()
    assert run(["policy", "explain", str(mine)]) == 0
    out = capsys.readouterr().out
    for rule in api.read_policy(mine).rules:
        assert rule.id in out
    mine.write_text(mine.read_text().replace("metric =", "metrik =", 1))
    assert run(["policy", "check", str(mine)]) == 2
    assert "metrik" in capsys.readouterr().err


def test_one_rule_is_explained_with_all_there_is_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "explain", "exposure", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["asks"].startswith("natural.exposure@10 is at most 0.001")
    assert (facts["probe"], facts["layer"], facts["limit"]) == ("natural", "catalogue", "<= 0.001")
    assert facts["users it needs"].startswith("2,996 with no hit among them; about ")
    assert facts["a pass does not mean"]
    assert run(["policy", "explain", "twins", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["users it needs"].startswith("all there are")
    assert run(["policy", "explain", "utility"]) == 0
    assert "drops by at most 5.00%" in " ".join(capsys.readouterr().out.split())
    mine = tmp_path / "mine.toml"
    rule = '[[rule]]\nid = "only"\nmetric = "natural.hit@10"\nmax = 0.5\nprofile = "standard"\nscope = "influence"\n'
    mine.write_text(f'schema = "recerase.policy/1"\n{rule}')
    assert run(["policy", "explain", str(mine), "only"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "from the standard profile on; in scope influence" in told
    for wrong in (["explain", "exposuer"], ["explain", str(mine), "only", "more"], ["explain", "only"]):
        assert run(["policy", *wrong]) == 2
    assert "Did you mean 'exposure'?" in capsys.readouterr().err


def test_a_policy_check_warns_of_what_will_not_do_what_it_looks_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expired waiver, and a rule whose probe its profile does not run; a broken waiver beside a broken rule: all at once."""
    mine = tmp_path / "mine.toml"
    rule = '[[rule]]\nid = "only"\nmetric = "natural.hit@10"\nmax = 0.5\n'
    waiver = '[[waiver]]\nrule = "only"\nconcept = "a=b"\nreason = "ticket"\nexpires = 2020-01-01\n'
    mine.write_text(f'schema = "recerase.policy/1"\n{rule}{waiver}')
    later = replace(cards.PROBES["natural"], profile="standard")
    assert run(["policy", "check", str(mine)]) == 0
    told = capsys.readouterr().err
    assert "is no waiver: it expired on 2020-01-01" in told
    assert "--profile" not in told
    monkeypatch.setattr(cards, "PROBES", {**cards.PROBES, "natural": later})
    assert run(["policy", "check", str(mine)]) == 0
    assert "run `audit --profile standard`" in " ".join(capsys.readouterr().err.split())
    broken = rule.replace("max", "maks") + waiver.replace("2020-01-01", "'soon'").replace('reason = "ticket"', "")
    mine.write_text(f'schema = "recerase.policy/1"\n{broken}profile = "fast"\n[audit]\nprofile = "fast"\n')
    assert run(["policy", "check", str(mine)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    for part in (
        "'maks'",
        "sets no limit",
        "reason is missing",
        "expires must be a date",
        "profile must be one of",
        "key 'profile'",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("given", "settings", "asked"),
    [(["--profile", "thorough"], "standard", "thorough"), ([], "standard", "standard"), ([], None, None)],
)
def test_a_profile_is_asked_for_here_or_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], settings: str | None, asked: str | None
) -> None:
    seen: dict[str, object] = {}

    def audit(*_: object, **options: object) -> None:
        seen.update(options)
        raise UsageError("Enough.", "Stop.")

    monkeypatch.setattr(api, "audit", audit)
    told = tmp_path / "recerase.toml"
    told.write_text(f'profile = "{settings}"\n' if settings else "")
    line = ["audit", "m", "--concept", "a=b", "--data", "d", "--settings", str(told), *given]
    assert run(line) == 2
    assert seen["profile"] == asked
    assert run([*line, "--profile", "fast"]) == 2


def test_list_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("tracer", "natural.exposure@10", "aliasing", "native", "csv"):
        assert name in out
    assert run(["list", "layouts"]) == 0
    assert "tracer" not in capsys.readouterr().out


def test_import_makes_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,brand\na,First thing,Acme\nb,Second thing,\n")
    rows = "\n".join(f"u{user},{item},{user * 10 + step}" for user in range(3) for step, item in enumerate("abab"))
    (tmp_path / "acts.csv").write_text(f"user_id,item_id,timestamp\n{rows}\n")
    line = ["import", "csv", f"{tmp_path}/items.csv", f"{tmp_path}/acts.csv", "--out", f"{tmp_path}/data", "-q"]
    assert run(line) == 0
    assert len(load_catalogue(tmp_path / "data").interactions) == 12
    assert run(["import", "nonsense", "x", "--out", f"{tmp_path}/other"]) == 2
    assert run(["import", "csv", "x", "--out", f"{tmp_path}/other"]) == 2
