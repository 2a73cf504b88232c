"""What `recerase doctor` says and ends with; what it checks is tested with the checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recerase import doctor
from recerase.__main__ import run
from recerase.audit.policy import default_policy
from recerase.cli.doctor import _WRONG
from recerase.doctor import Check, Proof
from recerase.types import Verdict

WELL = Check("torch", "ok", "2.13.0")
LOW = Check("disk", "warn", "1.0 GiB free", "Free some.")
GONE = Check("faiss-cpu", "fail", "not installed", "pip install faiss-cpu")
WRONG_SETTINGS = Check("settings", "fail", "unknown key 'dato'", "Known keys: data.", 2)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Any:
    """found(checks, proofs): what doctor will find; proofs None: the gate must not be tried."""

    def put(checks: list[Check], proofs: tuple[Proof, ...] | None = None) -> None:
        def prove(*_: object, **__: object) -> tuple[Proof, ...]:
            assert proofs is not None, "the gate was tried"
            return proofs

        monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: tuple(checks))
        monkeypatch.setattr(doctor, "prove_gate", prove)

    return put


@pytest.mark.parametrize(
    ("checks", "code", "said"),
    [
        ([WELL], 0, "can work"),
        ([WELL, LOW], 0, "warned of: disk"),
        ([GONE, WELL], 3, "FAILED: faiss-cpu"),
        ([WRONG_SETTINGS], 2, "FAILED: settings"),
        ([WRONG_SETTINGS, GONE], 3, "FAILED: settings, faiss-cpu"),
    ],
)
def test_the_worst_check_decides(
    found: Any, checks: list[Check], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found(checks)
    assert run(["doctor"]) == code
    out, err = capsys.readouterr()
    assert said in err
    assert all(check.name in out and check.remedy in out for check in checks)
    assert run(["doctor", "--json", "--quiet"]) == code
    out, err = capsys.readouterr()
    assert (err == "") == (code == 0)  # quiet hides no failure
    told = json.loads(out)
    assert (told["exit_code"], told["gate"], len(told["checks"])) == (code, None, len(checks))


def test_an_installation_that_cannot_work_proves_no_gate(found: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found([GONE])
    assert run(["doctor", "--gate"]) == 3
    assert "the gate was not tried" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "code"), [(key, 1 if key[1] == "fail" else 5) for key in _WRONG], ids=str)
def test_a_gate_that_is_wrong_is_told_loudly(
    found: Any, key: tuple[Any, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found([WELL], (Proof(key[0], Verdict.FAIL, Verdict.PASS, 0, key[1], "n = 9 is too few"),))
    assert run(["doctor", "--gate", "--quiet"]) == code
    err = capsys.readouterr().err
    assert "THE GATE" in err or "NOT PROVEN" in err
    assert "blocks what leaks" not in err


def test_a_policy_that_cannot_be_used_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('schema = "recerase.policy/1"\n[[rule]]\nid = "a"\nmetrik = "x"\n')
    assert run(["doctor", str(tmp_path), "--gate", "--policy", str(policy)]) == 2
    assert "metrik" in capsys.readouterr().err


def test_several_policies_are_checked_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a pre-commit hook calls it; the problems of every file are told, and the good ones too."""
    good, bad, worse = (tmp_path / f"policy-{name}.toml" for name in ("good", "bad", "worse"))
    assert run(["policy", "init", "--out", str(good)]) == 0
    bad.write_text(good.read_text().replace("metric =", "metrik =", 1))
    worse.write_text("no toml")
    capsys.readouterr()
    assert run(["policy", "check", "--", str(good), str(bad), str(worse)]) == 2
    out, err = capsys.readouterr()
    assert f"{good}: {len(default_policy().rules)} rules" in out
    assert "metrik" in err
    assert str(worse) in err
