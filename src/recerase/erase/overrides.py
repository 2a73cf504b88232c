"""Settings of a method as text (`--set key=value`): every wrong one is told at once, with the nearest name there is."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Mapping
from typing import Any

from recerase.errors import UsageError


def parsed(name: str, kind: type[Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """The values that `pairs` give to fields of the dataclass `kind`, which are the settings of method `name`.

    Raises:
        UsageError: an unknown key or a value of the wrong kind; all problems at once.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, text in pairs.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            problems.append(f"{key} is unknown" + (f" (did you mean {near[0]}?)" if near else ""))
            continue
        try:
            values[key] = _parse(text, hints[key])
        except ValueError:
            problems.append(f"{key}={text} is not {_describe(hints[key])}")
    if problems:
        raise UsageError(
            f"Settings of method {name}: {'; '.join(problems)}.",
            f"Its settings are: {', '.join(sorted(hints))}.",
        )
    return values


def _parse(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        if text not in typing.get_args(hint):
            raise ValueError(text)
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = hint(text)
    if hint is float and not math.isfinite(value):
        raise ValueError(text)
    return value


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "text")
