"""The CI kit: what is written is what the systems ask for, and every shell step runs as they would run it.

Not run: the actions of others (checkout, setup-python, uploads) and pip, for there is no network. The checkpoints are the planted
ones that `recerase doctor --gate` ships: leaky must fail, and clean must pass.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from tests.examples.runner import Done, Runner, runner

from recerase.audit import probes
from recerase.doctor.gate import CONCEPT, PLANTED

__all__ = ["runner"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ACTION = yaml.safe_load((EXAMPLES / "github-action" / "action.yml").read_text("utf-8"))
WORKFLOW = yaml.safe_load((EXAMPLES / "github-action" / "workflow.yml").read_text("utf-8"))
GITLAB = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text("utf-8"))
HOOKS = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text("utf-8"))
STEPS = ACTION["runs"]["steps"]
REPORTS = {f"audit.{kind}" for kind in ("json", "html", "md", "xml", "sarif")}
POLICY = """schema = "recerase.policy/1"
[audit]
min_users = 1
[[rule]]
id = "window"
metric = "natural.exposure@10"
max = 0.1
[[rule]]
id = "weights"
metric = "natural.mass.old"
max = 0.1
"""
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]
"""What `shell: bash` is in an action, and what a GitLab runner's bash does."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's repository, with names that a careless shell would trip over. Audits make 60 histories, and draw no plots."""
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=60))
    monkeypatch.setattr("recerase.report.html.plots", lambda report: ())
    place = tmp_path / "a repository"
    shutil.copytree(PLANTED, place / "models; touch stolen")
    (place / "policy.toml").write_text(POLICY)
    return place


def step(name: str) -> dict[str, Any]:
    return next(one for one in STEPS if one.get("id") == name)


def given(**inputs: str) -> dict[str, str]:
    """The inputs of the action, the defaults of those that are not given."""
    told = {name.replace("_", "-"): value for name, value in inputs.items()}
    assert told.keys() <= ACTION["inputs"].keys()
    return {**{name: entry["default"] for name, entry in ACTION["inputs"].items()}, **told}


def environment(one: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, str]:
    """A step's variables, each of them one input and nothing else."""
    found = {}
    for variable, expression in one.get("env", {}).items():
        matched = re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", expression)
        assert matched, expression
        found[variable] = inputs[matched[1]]
    return found


def act(runner: Runner, name: str, repository: Path, inputs: Mapping[str, str]) -> tuple[Done, dict[str, str]]:
    """Run one step of the action; how it ended, and its outputs."""
    one, told = step(name), repository / "github-output"
    told.write_text("")
    variables = {**environment(one, inputs), "GITHUB_OUTPUT": str(told)}
    done = runner.script(BASH, one["run"], repository / inputs["working-directory"], variables)
    outputs = dict(line.split("=", 1) for line in told.read_text().splitlines())
    told.unlink()
    return done, outputs


def planted(subject: str, original: str = "leaky") -> dict[str, str]:
    place = "models; touch stolen"
    more = {"original": f"{place}/{original}"} if original else {}
    return {
        "checkpoint": f"{place}/{subject}",
        "data": f"{place}/data",
        "policy": "policy.toml",
        "threads": "1",
        **more,
    }


def test_the_action_has_what_github_asks_for() -> None:
    assert {"name", "description", "inputs", "outputs", "runs"} <= ACTION.keys()
    assert ACTION["runs"]["using"] == "composite"
    assert all(entry["description"] and isinstance(entry["default"], str) for entry in ACTION["inputs"].values())
    for output in ACTION["outputs"].values():
        assert output["description"]
        assert re.fullmatch(r"\$\{\{ steps\.audit\.outputs\.(verdict|exit-code) \}\}", output["value"])
    for one in STEPS:
        assert one["name"]
        assert ("run" in one) != ("uses" in one)
        assert "run" not in one or one["shell"] == "bash"
        assert "uses" not in one or re.fullmatch(r"[\w./-]+@[\w.]+", one["uses"])


def test_no_input_becomes_part_of_a_command() -> None:
    whole = [value for one in STEPS for value in texts(one)]
    used = set(re.findall(r"inputs\.([a-z-]+)", " ".join(whole)))
    assert used == ACTION["inputs"].keys()
    for one in STEPS:
        assert "${{" not in one.get("run", "")
        if "run" in one:
            environment(one, given())
        for line in one.get("run", "").splitlines():  # a variable outside quotes is split into words, and globbed
            bare = re.sub(r'"[^"]*"|\'[^\']*\'|<<< "[^"]*"', "", line)
            assert "$GIVEN" not in bare, line


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(part)


@pytest.mark.parametrize(
    ("subject", "original", "more", "code", "verdict"),
    [
        ("clean", "leaky", {}, 0, "pass"),
        ("leaky", "leaky", {}, 1, "fail"),
        ("leaky", "leaky", {"fail_on": "never"}, 0, "fail"),
        ("clean", "", {}, 5, "inconclusive"),
        ("nowhere", "leaky", {}, 4, "none"),
    ],
)
def test_the_action_ends_with_the_verdict(
    runner: Runner, repository: Path, subject: str, original: str, more: dict[str, str], code: int, verdict: str
) -> None:
    inputs = given(**planted(subject, original), **more, concept=f"\n{CONCEPT}\n  \n", max_users="60")
    stale = repository / "recerase-reports" / "audit.json"
    stale.parent.mkdir()
    stale.write_text('{"verdict": "pass"}')  # what an earlier run left is not this run's
    done, outputs = act(runner, "audit", repository, inputs)
    assert (done.code, outputs) == (code, {"verdict": verdict, "exit-code": str(code)}), done.err
    written = {path.name for path in (repository / "recerase-reports").iterdir()}
    assert written == (REPORTS if verdict != "none" else set())
    if verdict != "none":
        assert json.loads(stale.read_text())["verdict"] == verdict
        sarif = json.loads((stale.parent / "audit.sarif").read_text())
        assert sarif["version"] == "2.1.0"
        assert bool(sarif["runs"][0]["results"]) == (verdict != "pass")
    assert not list(repository.rglob("stolen"))
    assert runner.calls[0][-2:] == ["--", inputs["checkpoint"]]
    assert runner.calls[0].count(f"--concept={CONCEPT}") == sum("--concept" in word for word in runner.calls[0]) == 1


def test_hostile_inputs_are_values_and_nothing_else(runner: Runner, repository: Path) -> None:
    """Every input tries to start a command, a new output or an option; recerase is given each as it stands, and refuses."""
    hostile = '$(touch stolen); touch stolen `touch stolen` "; touch stolen; " \' --yes\nverdict=pass'
    inputs = given(**{name.replace("-", "_"): hostile for name in ACTION["inputs"]}) | {"working-directory": "."}
    done, outputs = act(runner, "audit", repository, inputs)
    assert (done.code, outputs) == (2, {"verdict": "none", "exit-code": "2"})
    assert runner.calls[-1].count("--yes") == 0
    assert f"--policy={hostile}" in runner.calls[-1]
    for name in ("policy", "gate"):
        assert act(runner, name, repository, inputs)[0].code == 2
    assert not list(repository.rglob("stolen"))


def test_the_action_checks_the_policy(runner: Runner, repository: Path) -> None:
    assert act(runner, "policy", repository, given(policy="policy.toml"))[0].code == 0
    (repository / "policy.toml").write_text(POLICY.replace("metric", "metrik", 1))
    done, _ = act(runner, "policy", repository, given(policy="policy.toml"))
    assert done.code == 2
    assert "metrik" in done.err


def test_the_action_proves_the_gate(runner: Runner, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's command line and its exit code; that the proof itself is one is tested with it."""
    from recerase import doctor
    from recerase.doctor import Proof
    from recerase.types import Verdict

    asked = []

    def prove(policy: Path | None, **_: object) -> tuple[Proof, ...]:
        asked.append(policy)
        return (Proof("leak", Verdict.FAIL, Verdict.PASS, 0, "fail", ""),) if policy else ()

    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: ())
    monkeypatch.setattr(doctor, "prove_gate", prove)
    assert act(runner, "gate", repository, given(policy="policy.toml"))[0].code == 1
    assert act(runner, "gate", repository, given(threads="1"))[0].code == 0
    assert asked == [Path("policy.toml"), None]
    assert "--threads=1" in runner.calls[-1]


def test_the_install_step_asks_pip_for_one_thing(runner: Runner, repository: Path) -> None:
    """pip is a stand-in here that writes down what it is asked for."""
    (runner.home / "python").unlink()
    (runner.home / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked\n')
    (runner.home / "python").chmod(0o755)
    assert act(runner, "install", repository, given(install="recerase[text] >= 0.1; true"))[0].code == 0
    words = (repository / "asked").read_text().splitlines()
    assert words[:3] == ["-m", "pip", "install"]
    assert words[-2:] == ["--", "recerase[text] >= 0.1; true"]


def test_the_reports_are_kept_after_a_failure() -> None:
    uploads = [one for one in STEPS if "upload" in one.get("uses", "")]
    assert len(uploads) == 2
    for one in uploads:
        assert one["if"].startswith("always() && ")
        assert "steps.audit.outputs.verdict != 'none'" in one["if"]
        assert "${{ inputs.reports }}" in " ".join(texts(one["with"]))


def test_the_workflow_uses_the_action_as_it_is() -> None:
    (job,) = WORKFLOW["jobs"].values()
    (use,) = [one for one in job["steps"] if one["uses"].startswith("./")]
    assert use["with"].keys() <= ACTION["inputs"].keys()
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert job["permissions"]["security-events"] == "write"
    assert True in WORKFLOW  # YAML 1.1 takes the key `on` for a truth value


@pytest.mark.parametrize(
    ("shell", "changes", "code", "verdict"),
    [
        (BASH, {"AUDIT_CHECKPOINT": "models; touch stolen/clean"}, 0, "pass"),
        (["sh", "-e"], {}, 1, "fail"),
        (BASH, {"AUDIT_CHECKPOINT": "models; touch stolen/clean", "AUDIT_ORIGINAL": ""}, 5, "inconclusive"),
        (["sh", "-e"], {"AUDIT_POLICY": "$(touch stolen)"}, 2, ""),
    ],
)
def test_the_gitlab_job(
    runner: Runner,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    shell: list[str],
    changes: dict[str, str],
    code: int,
    verdict: str,
) -> None:
    """The script's lines, one after another in one shell, as a runner has it."""
    from recerase import doctor

    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: ())
    monkeypatch.setattr(doctor, "prove_gate", lambda *_, **__: ())
    (job,) = GITLAB.values()
    own = {"AUDIT_CHECKPOINT": "models; touch stolen/leaky", "AUDIT_ORIGINAL": "models; touch stolen/leaky"}
    own |= {"AUDIT_DATA": "models; touch stolen/data", "AUDIT_CONCEPT": CONCEPT, "AUDIT_MAX_USERS": "60"}
    own |= {"AUDIT_THREADS": "1", **changes}
    assert own.keys() <= job["variables"].keys()
    done = runner.script(shell, "\n".join(job["script"]), repository, job["variables"] | own)
    assert done.code == code, done.err
    assert not list(repository.rglob("stolen"))
    reports = repository / "recerase-reports"
    assert (reports.exists() and {path.name for path in reports.iterdir()} == REPORTS) == bool(verdict)
    if verdict:
        assert json.loads((reports / "audit.json").read_text())["verdict"] == verdict
        junit = ElementTree.parse(repository / job["artifacts"]["reports"]["junit"])
        assert bool(list(junit.iter("failure"))) == (verdict == "fail")
        assert [call[0] for call in runner.calls] == ["policy", "doctor", "audit"]


def test_the_gitlab_job_has_what_gitlab_asks_for() -> None:
    (job,) = GITLAB.values()
    assert {"image", "script", "stage"} <= job.keys()
    assert all(isinstance(line, str) for line in [*job["script"], *job["before_script"]])
    assert all(isinstance(value, str) for value in job["variables"].values())
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"]["junit"].startswith(job["artifacts"]["paths"][0])
    used = set(re.findall(r"\$\{?(AUDIT_\w+|RECERASE_INSTALL)", "\n".join([*job["script"], *job["before_script"]])))
    assert used == job["variables"].keys()
    assert shlex.split(job["before_script"][0])[-2:] == ["--", "$RECERASE_INSTALL"]


def test_the_pre_commit_hook(runner: Runner, repository: Path) -> None:
    """As pre-commit calls it: the entry's words, then the names of the files that `files` matches."""
    (source,) = HOOKS["repos"]
    (hook,) = source["hooks"]
    assert source["repo"] == "local"
    assert {"id", "name", "entry", "language", "files"} <= hook.keys()
    assert (hook["language"], hook["types"]) == ("system", ["toml"])
    names = ["policy.toml", "gates/policy-eu.toml", "pyproject.toml", "gates/policy.toml.bak", "mypolicy.toml"]
    assert [name for name in names if re.search(hook["files"], name)] == names[:2]
    (repository / "gates").mkdir()
    bad = POLICY.replace("max = 0.1", "maximum = 0.1", 1)
    for text, code in ((POLICY, 0), (bad, 2)):
        (repository / names[1]).write_text(text)
        done = runner.script(BASH, shlex.join([*shlex.split(hook["entry"]), *names[:2]]), repository, {})
        assert done.code == code, done.err
    assert "maximum" in done.err


def test_the_command_itself_says_the_same(repository: Path) -> None:
    """Not this process: the program that the runner's stand-in stands for."""
    line = [sys.executable, "-m", "recerase", "policy", "check", "--", "policy.toml"]
    done = subprocess.run(line, cwd=repository, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, "2 rules" in done.stdout) == (0, True)
