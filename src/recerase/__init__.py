"""recerase takes a concept out of a generative recommender, and proves that it is out.

The names below are the public library; each is imported on first use, so that `import recerase` costs nothing
and loads no torch. The commands are functions of `recerase.api` (`api.audit`, `api.erase`, ...): two of them share their
names with the rooms that do the work, and a name that is now a function and now a module would be a trap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recerase import api
    from recerase.catalog import Catalogue, Concept, load_catalogue, parse_concept
    from recerase.errors import RecEraseError
    from recerase.layouts.native import Checkpoint, load_checkpoint
    from recerase.types import Decision, Measurement, Policy, Report, Verdict

__all__ = [
    "Catalogue",
    "Checkpoint",
    "Concept",
    "Decision",
    "Measurement",
    "Policy",
    "RecEraseError",
    "Report",
    "Verdict",
    "api",
    "load_catalogue",
    "load_checkpoint",
    "parse_concept",
]

_HOMES = {
    "Catalogue": "catalog",
    "Checkpoint": "layouts.native",
    "Concept": "catalog",
    "Decision": "types",
    "Measurement": "types",
    "Policy": "types",
    "RecEraseError": "errors",
    "Report": "types",
    "Verdict": "types",
    "load_catalogue": "catalog",
    "load_checkpoint": "layouts.native",
    "parse_concept": "catalog",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # 30 ms, which --help need not pay

        return metadata.version("recerase")
    if name not in __all__:
        raise AttributeError(f"module 'recerase' has no attribute {name!r}")
    if name == "api":
        return import_module("recerase.api")
    return getattr(import_module(f"recerase.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
