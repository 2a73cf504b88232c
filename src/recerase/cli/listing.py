"""`recerase list`: the parts a command line can name."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from recerase.cli.progress import emit


class Family(str, Enum):
    """A family of parts."""

    methods = "methods"
    probes = "probes"
    metrics = "metrics"
    layouts = "layouts"
    readers = "readers"


def list_parts(
    family: Annotated[Family | None, typer.Argument(metavar="FAMILY", help="One family only.")] = None,
) -> int:
    """List methods, probes, metrics, layouts and readers, with what each is for.

    **Examples**

        recerase list

        recerase list methods
    """
    from recerase.cli.tables import rows_table

    parts = _parts()
    for name in [family.value] if family else list(parts):
        emit(rows_table(name, ("name", "what it is"), list(parts[name])))
    return 0


def _parts() -> dict[str, list[tuple[str, str]]]:
    """Name and one line for every method, probe, metric, layout and reader."""
    from recerase.audit.probes import PROBES, metrics
    from recerase.catalog.readers import READERS
    from recerase.erase.methods import METHODS
    from recerase.layouts.registry import LAYOUTS

    readers = {name: (reader.__doc__ or "").strip().split("\n")[0] for name, reader in READERS.items()}
    return {
        "methods": [(card.name, f"changes {card.changes}; {card.source}") for card in METHODS.values()],
        "probes": [(card.name, card.goal) for card in PROBES.values()],
        "metrics": [(name, f"{spec.layer} layer, {spec.better} is better") for name, spec in metrics().items()],
        "layouts": [(layout.name, layout.summary) for layout in LAYOUTS],
        "readers": sorted(readers.items()),
    }
