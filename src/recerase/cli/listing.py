"""`recerase list`: the parts a command line can name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

import typer

from recerase.cli.options import JsonOption
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
    as_json: JsonOption = False,
) -> int:
    """List methods, probes, metrics, layouts and readers, with what each is for.

    **Examples**

        recerase list

        recerase list methods
    """
    from recerase.cli.tables import Rows
    from recerase.store import canonical_json

    parts = _parts()
    if family:
        parts = {family.value: parts[family.value]}
    if as_json:
        emit(canonical_json({name: dict(rows) for name, rows in parts.items()}).decode())
        return 0
    for name, rows in parts.items():
        emit(Rows(name, ("name", "what it is"), [(part, _shown(what)) for part, what in rows]))
    return 0


def _shown(what: str | Mapping[str, Any]) -> str:
    """What a part is, a line a fact where it has several."""
    return what if isinstance(what, str) else "\n".join(f"{name}: {value}" for name, value in what.items())


def _parts() -> dict[str, list[tuple[str, Any]]]:
    """Name and one line for every probe, metric, layout and reader; of a method and of a probe the whole card.

    With a probe's card and a metric's line goes how well it told models with a concept from models without.
    """
    from recerase.audit.cards import PROBES, metrics
    from recerase.audit.power import power_of_metric, power_of_probe
    from recerase.catalog.readers import READERS
    from recerase.erase.methods import METHODS
    from recerase.layouts.registry import layouts

    readers = {name: (reader.__doc__ or "").strip().split("\n")[0] for name, reader in READERS.items()}
    return {
        "methods": [(card.name, card.facts) for card in METHODS.values()],
        "probes": [(card.name, {**card.facts, "tells apart": power_of_probe(card.name)}) for card in PROBES.values()],
        "metrics": [
            (name, f"{spec.layer} layer, {spec.better} is better; {power_of_metric(name)}")
            for name, spec in metrics().items()
        ],
        "layouts": [(layout.name, layout.summary) for layout in layouts()],
        "readers": sorted(readers.items()),
    }
