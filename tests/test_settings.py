"""A settings file means the same wherever it is read, says where a value came from, and hides no misspelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recerase.errors import SettingsError
from recerase.settings import KEYS, Settings, load_settings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_is_empty_settings() -> None:
    assert load_settings() == Settings()


def test_every_key_is_read_and_says_where_it_came_from(here: Path) -> None:
    paths = [key for key in KEYS if key not in ("concepts", "profile")]
    more = ["concepts = ['a=b', '!c=d']", "profile = 'standard'"]
    write(here / "recerase.toml", "\n".join([f'{key} = "{key}-dir"' for key in paths] + more))
    found = load_settings()
    wanted: dict[str, Any] = {key: Path(f"{key}-dir") for key in paths}
    assert {key: getattr(found, key) for key in paths} == wanted | {"reference": (Path("reference-dir"),)}
    assert found.concepts == ("a=b", "!c=d")
    assert found.profile == "standard"
    assert dict(found.sources) == {key: f"recerase.toml: {key}" for key in KEYS}


def test_references_are_one_or_several(here: Path) -> None:
    write(here / "recerase.toml", "reference = ['a', '/b']")
    assert load_settings().reference == (Path("a"), Path("/b"))
    for value in ("[]", "['a', 3]", "['']", "7"):
        write(here / "recerase.toml", f"reference = {value}")
        with pytest.raises(SettingsError, match="a path or a list of paths"):
            load_settings()


@pytest.mark.parametrize("value", ["'fast'", "3", "['quick']", "''"])
def test_a_profile_is_one_of_three(here: Path, value: str) -> None:
    write(here / "recerase.toml", f"profile = {value}")
    with pytest.raises(SettingsError, match="quick, standard, thorough"):
        load_settings()


def test_one_concept_needs_no_list(here: Path) -> None:
    write(here / "recerase.toml", "concepts = 'brand=Acme'")
    assert load_settings().concepts == ("brand=Acme",)
    assert set(load_settings().sources) == {"concepts"}


def test_paths_are_relative_to_the_file_that_names_them(here: Path) -> None:
    path = write(here / "shop" / "ci.toml", 'data = "data"\ncheckpoint = "/models/m"')
    found = load_settings(path)
    assert found.data == here / "shop" / "data"
    assert found.checkpoint == Path("/models/m")
    assert load_settings("shop/ci.toml").data == Path("shop/data")


def test_pyproject_is_read_where_there_is_no_recerase_toml(here: Path) -> None:
    write(here / "pyproject.toml", '[tool.recerase]\ndata = "theirs"\n[tool.other]\nx = 1')
    assert load_settings().data == Path("theirs")
    assert load_settings().sources["data"] == "pyproject.toml: tool.recerase.data"
    assert load_settings("pyproject.toml") == load_settings()
    write(here / "recerase.toml", 'data = "ours"')
    assert load_settings().data == Path("ours")


def test_a_pyproject_that_does_not_speak_of_recerase_is_no_settings_file(here: Path) -> None:
    write(here / "pyproject.toml", "[project]\nname = 'x'")
    assert load_settings() == Settings()
    with pytest.raises(SettingsError, match=r"no \[tool\.recerase\]"):
        load_settings("pyproject.toml")


def test_every_problem_is_told_at_once_with_what_was_meant(here: Path) -> None:
    write(here / "recerase.toml", "checkpont = 'm'\ndata = 3\nconcepts = ['a=b', 4]\npolicy = ''")
    with pytest.raises(SettingsError) as error:
        load_settings()
    text = str(error.value)
    assert "did you mean 'checkpoint'?" in text
    for key in ("data must be", "concepts must be", "policy must be"):
        assert key in text
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["data = ", "concepts = []", "concepts = ['']", "sources = {}", "[tool]\nrecerase = 1"]
)
def test_what_cannot_be_meant_is_refused(here: Path, text: str) -> None:
    write(here / "recerase.toml", text)
    with pytest.raises(SettingsError):
        load_settings()


def test_a_file_that_was_named_must_be_there(here: Path) -> None:
    with pytest.raises(SettingsError, match="Cannot read"):
        load_settings(here / "none.toml")
    (here / "bytes.toml").write_bytes(b"data = '\xff'")
    with pytest.raises(SettingsError, match="not TOML"):
        load_settings(here / "bytes.toml")
    write(here / "pyproject.toml", "[tool]\nrecerase = 1")
    with pytest.raises(SettingsError, match="not a table"):
        load_settings()
