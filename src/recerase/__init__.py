"""recerase takes a concept out of a generative recommender, and proves that it is out.

The names below are the public library; each is imported on first use, so that `import recerase` costs nothing
and loads no torch.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recerase.api import audit, erase, inspect, recommend, tokenize, train
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
    "audit",
    "erase",
    "inspect",
    "load_catalogue",
    "load_checkpoint",
    "parse_concept",
    "recommend",
    "tokenize",
    "train",
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

__version__ = metadata.version("recerase")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'recerase' has no attribute {name!r}")
    return getattr(import_module(f"recerase.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
