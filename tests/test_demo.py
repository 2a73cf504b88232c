"""`recerase demo` is the other commands in a row; here its last step, the story it tells, on a world small enough for a test."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

import recerase.catalog.demo as catalogue
import recerase.demo as job
from recerase.audit import probes
from recerase.runtime import RunConfig
from recerase.types import Verdict


def test_the_demo_leaves_everything_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untouched model fails; what is published loads; every report is there."""
    small = catalogue.demo_catalogue
    monkeypatch.setattr(catalogue, "demo_catalogue", lambda seed: small(seed, n_items=260, n_users=320))
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=100))
    erase = job.erase

    def quick(*given: Any, **named: Any) -> Any:
        return erase(*given, overrides=["reassign_steps=2", "settle_steps=2", "pool=2"], **named)

    monkeypatch.setattr(job, "erase", quick)
    out = tmp_path / "demo"
    made = job.demo(out, run=RunConfig(seed=0, threads=1, device="cpu"))
    assert made.before.decision.verdict is Verdict.FAIL
    assert {"data", "sids", "model", "before.html", "before.json", *job.REPORTS} <= {p.name for p in out.iterdir()}
    published = (out / "erased").is_dir()
    assert published == (made.after.decision.verdict is not Verdict.FAIL)
    roles = {m.role for m in made.after.measurements}
    assert {"subject", "original", "filter"} <= roles
