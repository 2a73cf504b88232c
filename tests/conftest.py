"""What every test may count on: one torch thread, real data or a stated reason to skip, steady hypothesis runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", parent=settings.get_profile("tests"), max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tests run side by side: one torch thread each, given back at the end."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has in the environment or in a settings file next door must not decide a test."""
    for name in ("GITHUB_STEP_SUMMARY", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The folder of real data sets: RECERASE_DATA, or shared/data beside the repository."""
    place = Path(os.environ.get("RECERASE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"no data sets at {place}: set RECERASE_DATA to a folder that holds them")
    return place
