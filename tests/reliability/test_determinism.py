"""Same command, same bytes; another batch size, order of users or thread count, same metrics; and nothing left behind.

What must be equal to the byte is compared through manifests (digests of every file) and canonical report bytes. What
may differ in the last bits (other matrix shapes, other thread counts) is compared as numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.__main__ import run
from recerase.api import read_policy
from recerase.assembly import ConceptSpec, choose_concept, open_checkpoint_for, whole_histories
from recerase.audit.probes import AuditConfig, AuditModel, build_world
from recerase.audit.run import AuditResult, run_audit
from recerase.catalog import load_catalogue
from recerase.catalog.columns import INTERACTION_SCHEMA
from recerase.layouts.native import Checkpoint
from recerase.model.decode import recommend
from recerase.report.schema import read_report
from recerase.runtime import RunConfig, pinned
from recerase.store import canonical_json, publish, read_manifest, write_bytes

from .conftest import FAST, HISTORIES, SHAPE, SMALL_AUDITS, Job

Figure = Callable[..., None]

WHOLE_JOB = (
    SMALL_AUDITS
    + """
import json, os, sys
from recerase.__main__ import run
data, out, policy, concept, more = json.loads(sys.argv[1])
at = [f"--data={data}", f"--concept={concept}", f"--policy={policy}", "--threads=1", "--device=cpu", "-q"]
codes = [
    run(["tokenize", data, "--out", f"{out}/sids", "--codes", "16", "--dims", "16", "-q"]),
    run(["train", data, "--sids", f"{out}/sids", "--out", f"{out}/model", "--epochs", "1", *more[0], "-q"]),
    run(["erase", f"{out}/model", "--out", f"{out}/erased", "-m", "tracer", *more[1], *at]),
    run(["audit", f"{out}/erased", "--original", f"{out}/model", "-o", f"{out}/audit.json", *at]),
]
sys.stderr.write(json.dumps(codes))
"""
)
PLAIN = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
OTHER = {"PYTHONHASHSEED": "4242", "TZ": "Pacific/Chatham", "LC_ALL": "C"}


def whole_job(job: Job, home: Path, surroundings: dict[str, str], *, elsewhere: bool) -> dict[str, Any]:
    """What a fresh process makes of the job's data: digests of all files, and the report without what may vary."""
    home.mkdir()
    out = "." if elsewhere else str(home)  # other working directory, relative output
    given = json.dumps([str(job.data), out, str(job.policy), job.concept, [SHAPE, FAST]])
    cwd = home if elsewhere else home.parent
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_JOB, given],
        cwd=cwd, env=os.environ | surroundings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stderr)
    assert codes[:2] == [0, 0]
    assert set(codes[2:]) <= {0, 5}
    found = {name: read_manifest(home / name) for name in ("sids", "model", "erased")}
    report = json.loads((home / "audit.json").read_bytes())
    report.pop("run")
    report.pop("seal", None)  # over every byte of the file, `run` included
    return {**found, "report": canonical_json(report), "codes": codes}


def test_the_same_commands_make_the_same_bytes(
    job: Job, tmp_path: Path, figure: Figure, effort: Callable[[int, int], int]
) -> None:
    """Two fresh processes that differ in everything that must not matter; in the soak, in one thing at a time as well."""
    first = whole_job(job, tmp_path / "first", PLAIN, elsewhere=False)
    others: list[tuple[dict[str, str], bool]] = [(OTHER, True)]
    others += [(PLAIN, True), *((PLAIN | {name: OTHER[name]}, False) for name in OTHER)][: effort(0, 9)]
    for number, (surroundings, elsewhere) in enumerate(others):
        other = whole_job(job, tmp_path / f"other{number}", surroundings, elsewhere=elsewhere)
        for name, made in first.items():
            assert other[name] == made, f"{name} differs under {surroundings}"
            figure("determinism: artefacts of a second process with other bytes", 0, of=int(name != "codes"))


@pytest.fixture(scope="module")
def opened(job: Job) -> tuple[Checkpoint, Checkpoint]:
    """The erased checkpoint and its original."""
    catalogue, where = load_catalogue(job.data), RunConfig(threads=1, device="cpu")
    return open_checkpoint_for(job.erased, catalogue, where), open_checkpoint_for(job.model, catalogue, where)


def audited(job: Job, opened: tuple[Checkpoint, Checkpoint], data: Path, config: AuditConfig) -> AuditResult:
    catalogue, (subject, original) = load_catalogue(data), opened
    concept = choose_concept(ConceptSpec((job.concept,)), catalogue, None)
    models = [
        AuditModel(role, c.recommender, c.table, original.table, c.table.listed, digest=c.digest)
        for role, c in (("subject", subject), ("original", original))
    ]
    world = build_world(
        catalogue, concept, embeddings=original.embeddings, codebooks=original.codebooks, scope="output", config=config
    )
    with pinned(1):
        return run_audit(models[0], models[1], [], world, read_policy(job.policy))


def numbers(result: AuditResult) -> dict[tuple[object, ...], float]:
    return {(m.metric, m.role, m.kind, m.versus): m.value for m in result.measurements}


def assert_alike(one: AuditResult, other: AuditResult, within: float) -> int:
    """The same verdict and the same metrics; how many were compared."""
    assert other.decision.verdict is one.decision.verdict
    assert [f.result for f in other.decision.findings] == [f.result for f in one.decision.findings]
    a, b = numbers(one), numbers(other)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert b[key] == pytest.approx(value, abs=within, rel=within), key
    return len(a)


def test_batch_sizes_do_not_matter(
    job: Job, opened: tuple[Checkpoint, Checkpoint], figure: Figure, effort: Callable[[int, int], int]
) -> None:
    users = effort(40, 150)
    config = AuditConfig(max_users=users, mass_users=users, saturated_histories=effort(60, 1000))
    standard = audited(job, opened, job.data, config)
    for batch in (1, 7, 64):
        other = audited(job, opened, job.data, replace(config, batch=batch, mass_batch=batch))
        figure("determinism: metrics that move by 1e-6 with the batch size", 0, of=assert_alike(standard, other, 1e-6))


def test_the_order_and_the_names_of_users_do_not_matter(
    job: Job, opened: tuple[Checkpoint, Checkpoint], tmp_path: Path, figure: Figure
) -> None:
    """Every user is read here: with --max-users, who is drawn depends on the order of the data."""
    table = pq.read_table(job.data / "interactions.parquet")
    users = np.array(table["user_id"].to_pylist())
    names = np.unique(users)
    turned = np.random.default_rng(0).permutation(len(names))
    place = turned[np.searchsorted(names, users)]
    table = table.set_column(0, "user_id", pa.array([f"person {p:04d}" for p in place])).cast(INTERACTION_SCHEMA)
    with publish(tmp_path / "data") as made:
        write_bytes(made.directory / "items.parquet", (job.data / "items.parquet").read_bytes())
        sink = pa.BufferOutputStream()
        pq.write_table(table.take(np.argsort(place, kind="stable")), sink)
        write_bytes(made.directory / "interactions.parquet", sink.getvalue().to_pybytes())
    assert load_catalogue(tmp_path / "data").interactions.digest != load_catalogue(job.data).interactions.digest
    config = AuditConfig(saturated_histories=HISTORIES)  # which are no users
    standard = audited(job, opened, job.data, config)
    compared = assert_alike(standard, audited(job, opened, tmp_path / "data", config), 1e-6)
    figure("determinism: metrics that move by 1e-6 with the order of users", 0, of=compared)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_lists_agree_wherever_scores_are_apart(
    job: Job, opened: tuple[Checkpoint, Checkpoint], batch: int, figure: Figure
) -> None:
    """A list may differ from that of another batch size only by items whose scores are closer than the rounding."""
    checkpoint, histories = opened[1], whole_histories(load_catalogue(job.data))
    with pinned(1):
        whole = recommend(checkpoint.recommender, checkpoint.table, histories, k=10)
        split = recommend(checkpoint.recommender, checkpoint.table, histories, k=10, batch=batch)
    np.testing.assert_allclose(split.scores, whole.scores, atol=1e-5, rtol=0)
    swapped = whole.items != split.items
    gaps = np.diff(whole.scores, axis=1, append=-np.inf, prepend=np.inf)
    near = (np.abs(gaps[:, :-1]) < 1e-5) | (np.abs(gaps[:, 1:]) < 1e-5)
    assert not (swapped & ~near)[:, :-1].any()  # the last place may tie with one that is not shown
    figure("determinism: places of lists that differ with the batch size", int(swapped.sum()), of=swapped.size)


def test_two_threads_are_said_and_change_next_to_nothing(job: Job, tmp_path: Path, figure: Figure) -> None:
    reports = []
    for threads in (1, 2):
        out = tmp_path / f"{threads}.json"
        line = ["audit", str(job.erased), "--original", str(job.model), "--data", str(job.data), "-q"]
        line += ["--concept", job.concept, "--policy", str(job.policy), "--threads", str(threads), "-o", str(out)]
        assert run(line) in (0, 5)
        reports.append(read_report(out))
        assert reports[-1].run["environment"]["threads"] == threads
    one, two = reports
    assert two.decision.verdict is one.decision.verdict
    pairs = list(zip(one.measurements, two.measurements, strict=True))
    for a, b in pairs:
        assert replace(a, value=0.0, interval=None) == replace(b, value=0.0, interval=None)
        assert b.value == pytest.approx(a.value, abs=1e-4, rel=1e-4)
    figure("determinism: metrics that move by 1e-4 with two threads", 0, of=len(pairs))


SURROUNDINGS = """
import sys
import recerase, recerase.api
recerase.Concept, recerase.Policy, recerase.load_catalogue, recerase.api.audit
early = sorted({"torch", "transformers", "faiss", "sklearn", "matplotlib"} & set(sys.modules))
import json, logging, os, random, signal, warnings
from pathlib import Path

def files():
    places = {os.getcwd(), os.environ["HOME"], os.environ["TMPDIR"]}
    found = sorted(str(p) for place in places for p in Path(place).rglob("*") if p.is_file())
    return [name for name in found if "/matplotlib/fontlist" not in name]  # which matplotlib keeps for itself

at_first = files()
import faiss, matplotlib.figure, numpy, pyarrow.parquet, scipy.sparse.linalg, sklearn.decomposition, torch
import sklearn.feature_extraction.text, threadpoolctl, transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

def loggers():
    named = [logging.getLogger(n) for n in (None, "transformers", "matplotlib", "torch", "accelerate", "recerase")]
    return [(log.level, log.propagate, log.disabled, [repr(h) for h in log.handlers]) for log in named]

def state():
    kind, keys, *rest = numpy.random.get_state()
    return {
        "random": repr(random.getstate()), "numpy": repr((kind, keys.tolist(), *rest)),
        "torch": torch.get_rng_state().tolist(), "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads(), "grad": torch.is_grad_enabled(),
        "strict": torch.are_deterministic_algorithms_enabled(), "logging": loggers(), "numpy errors": numpy.geterr(),
        "warnings": repr(warnings.filters), "signals": [repr(signal.getsignal(s)) for s in signal.valid_signals()],
        "environment": dict(os.environ), "cwd": os.getcwd(), "files": at_first if at_first is not None else files(),
        "hooks": [repr(sys.excepthook), repr(sys.stdout), repr(sys.stderr), sys.getrecursionlimit(), sys.path],
        "pools": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()],
    }

random.seed(1), numpy.random.seed(2), torch.manual_seed(3), torch.set_num_threads(2)
data, sids, model, erased, out, policy, concept, small = json.loads(sys.argv[1])
before, at_first = state(), None
from recerase import api
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig
where, spec = RunConfig(seed=5, threads=1, device="cpu"), api.ConceptSpec((concept,))
api.inspect(model)
api.concept_preview(data, spec, sids=model)
api.plan_erase(model, spec, data)
from recerase.sid.quantize import TokenizeConfig
exec(small)
api.tokenize(data, f"{out}/sids", TokenizeConfig(codes=8, iterations=2), dims=8)
shape = ModelConfig(width=8, layers=1, heads=1, feed_forward=8, window=3)
api.train(data, sids, f"{out}/model", shape, TrainConfig(epochs=1, seed=5), run=where)
api.recommend(model, data, f"{out}/lists.parquet", top=3, run=where)
papers = [f"{out}/audit.{kind}" for kind in ("json", "html", "md")]
api.audit(erased, spec, data, original=model, policy=policy, max_users=30, run=where, outputs=papers)
api.erase(model, spec, data, f"{out}/erased", method="tracer", overrides=["reassign_steps=2", "settle_steps=2", "pool=1"],
          policy=policy, max_users=30, run=where)
api.verify_report(papers[0])
after = state()
print(json.dumps({"early": early, "changed": [k for k in before if before[k] != after[k]], "of": len(before),
                  "detail": {k: [str(before[k])[:1500], str(after[k])[:1500]] for k in before if before[k] != after[k]}}))
"""


def test_using_the_library_changes_nothing_around_it(job: Job, tmp_path: Path, figure: Figure) -> None:
    """A program of somebody else's calls every command of the API; its world is afterwards what it was."""
    for name in ("home", "temporary", "cwd", "out"):
        (tmp_path / name).mkdir()
    given = [str(p) for p in (job.data, job.sids, job.model, job.erased, tmp_path / "out", job.policy)]
    around = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", SURROUNDINGS, json.dumps([*given, job.concept, SMALL_AUDITS])],
        cwd=tmp_path / "cwd", env=keep | around, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["early"] == [], "loaded before anything needed it"
    assert found["changed"] == [], json.dumps(found["detail"], indent=1)
    figure("determinism: kinds of process state changed by the library", 0, of=found["of"])
