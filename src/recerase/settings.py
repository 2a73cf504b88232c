"""recerase.toml, or [tool.recerase] in pyproject.toml: what a bare `recerase audit` works on.

The decision that shaped this file: a key that is not known is an error, not a comment, and every value knows the file
and the key it came from. Paths are relative to the file that names them, so a settings file means the same wherever
the command is run.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recerase.errors import SettingsError
from recerase.types import Profile

FILE_NAME = "recerase.toml"
PYPROJECT = "pyproject.toml"


@dataclass(frozen=True)
class Settings:
    """What a settings file said; None or empty where it said nothing."""

    data: Path | None = None
    """Data directory."""
    checkpoint: Path | None = None
    """The checkpoint to audit."""
    original: Path | None = None
    """The checkpoint before erasure."""
    reference: tuple[Path, ...] = ()
    """Checkpoints trained without the concept, one or several."""
    policy: Path | None = None
    """Policy file."""
    profile: Profile | None = None
    """Which probes an audit runs."""
    concepts: tuple[str, ...] = ()
    """Concept specs; their union is the concept."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Key -> where its value came from: `recerase.toml: data`."""


KEYS = tuple(f.name for f in fields(Settings) if f.name != "sources")
_PATHS = tuple(key for key in KEYS if key not in ("concepts", "profile", "reference"))
_PROFILES: tuple[Profile, ...] = ("quick", "standard", "thorough")


def load_settings(path: str | os.PathLike[str] | None = None) -> Settings:
    """The settings in `path`, or else in recerase.toml here, or else in [tool.recerase] of pyproject.toml here.

    Without a path and without such a file, empty settings. A file called pyproject.toml is read at [tool.recerase].
    Raises SettingsError when the file cannot be read or is no TOML, and with every unknown key and wrong value at once.
    """
    if path is not None:
        return _settings(Path(path), required=True)
    if Path(FILE_NAME).is_file():
        return _settings(Path(FILE_NAME), required=True)
    return _settings(Path(PYPROJECT), required=False) if Path(PYPROJECT).is_file() else Settings()


def _settings(path: Path, *, required: bool) -> Settings:
    table, where = _read(path), f"{path}: "
    if path.name == PYPROJECT:
        tool = table.get("tool", {})
        if not isinstance(tool, dict) or "recerase" not in tool:
            if required:
                raise SettingsError(f"{path} has no [tool.recerase].", f"Add it, or write a {FILE_NAME}.")
            return Settings()
        table, where = tool["recerase"], f"{path}: tool.recerase."
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: tool.recerase is not a table.", "Write [tool.recerase] and keys below it.")
    problems = [problem for key, value in table.items() if (problem := _problem(key, value))]
    if problems:
        raise SettingsError(f"{path} cannot be used: {'; '.join(problems)}.", f"Known keys: {', '.join(KEYS)}.")
    found: dict[str, Any] = {key: path.parent / os.path.expanduser(table[key]) for key in _PATHS if key in table}
    if "reference" in table:
        given = table["reference"]
        places = [given] if isinstance(given, str) else given
        found["reference"] = tuple(path.parent / os.path.expanduser(place) for place in places)
    if "profile" in table:
        found["profile"] = table["profile"]
    if "concepts" in table:
        given = table["concepts"]
        found["concepts"] = (given,) if isinstance(given, str) else tuple(given)
    return Settings(**found, sources={key: where + key for key in table})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise SettingsError(f"Cannot read the settings {path}: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:  # also what TOML's own error is: no UTF-8, a number without end
        raise SettingsError(f"{path} is not TOML: {error}.", "Mend it at that place.") from error


def _problem(key: str, value: object) -> str:
    """What is wrong with one entry, or nothing."""
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1)
        return f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if key in _PATHS:
        return "" if _is_path(value) else f"{key} must be a path, not {_shown(value)}"
    if key == "reference":
        places = value if isinstance(value, list) else [value]
        usable = bool(places) and all(map(_is_path, places))
        return "" if usable else f"reference must be a path or a list of paths, not {_shown(value)}"
    if key == "profile":
        return "" if value in _PROFILES else f"profile must be one of {', '.join(_PROFILES)}, not {_shown(value)}"
    specs = [value] if isinstance(value, str) else value
    usable = isinstance(specs, list) and bool(specs) and all(isinstance(s, str) and s.strip() for s in specs)
    return "" if usable else f"concepts must be a spec or a list of specs, not {_shown(value)}"


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


def _shown(value: object) -> str:
    """A value as a message can hold it: an integer may have more digits than Python prints."""
    return f"{value!r:.60}" if isinstance(value, str | bool | float) else f"a {type(value).__name__}"
