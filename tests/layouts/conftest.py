"""Audits of made-up checkpoints are small: what is tested here is files."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from recerase.audit import probes


@pytest.fixture(scope="module", autouse=True)
def small_audits() -> Iterator[None]:
    """Every audit of these tests draws 40 synthetic histories instead of 1,000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=40))
        yield
