"""What is read beside the audit's own figures where it was asked for: relearning attacks and U-CAN's seven.

The one decision: every one of these is a cell of its own, for each is slow and none is needed for the front; what they are held
against (the original's exposure, the references' curves, the original's log-probabilities) is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from recerase.auditing import audit_model
from recerase.comparing.cells import Bench
from recerase.comparing.reading import Reading
from recerase.comparing.relearned import Opened, attacked, attacks, half_of, resistance
from recerase.comparing.ucan import PARAGRAPH, Pairs, pairs_of, said_of, ucan_figures
from recerase.report.compared import Figure
from recerase.types import Role

if TYPE_CHECKING:
    from recerase.audit.relearning import Attack, RelearnConfig
    from recerase.layouts.native import Checkpoint

Model = tuple[str, Role, Opened]
"""A model of a row: the key or digest it is known by, its role, and how it is opened."""


@dataclass(frozen=True, eq=False)
class Extras:
    """The further readings of one comparison."""

    bench: Bench
    references: tuple[Checkpoint, ...]
    relearn: bool
    ucan: int
    """Pairs a kind at most; 0: not read."""
    beam: int | None

    def figures(self, models: Sequence[Model], whole: bool = True) -> dict[str, Figure]:
        """The figures of a row's models; `whole` False leaves out what is only said of models that were made to forget."""
        found: dict[str, Figure] = {}
        kinds, config = self._attacks
        for kind in kinds if self.relearn and models else ():
            own = [attacked(self.bench, *model, kind, config) for model in models]
            found |= resistance(kind, own, self._gold(kind) if whole else (), self._halves[kind])
        if self.ucan and models:
            found |= ucan_figures([self._said(*model) for model in models], self._original)
        return found

    @property
    def gold(self) -> list[Model]:
        """The references as models of a row."""
        return [_model(checkpoint, "reference") for checkpoint in self.references]

    @property
    def before(self) -> Model:
        return _model(self.bench.before, "original")

    def original(self) -> dict[str, Figure]:
        """U-CAN's figures of the original, which are no changes."""
        return dict(ucan_figures([self._original], self._original)) if self.ucan else {}

    @property
    def notes(self) -> list[str]:
        """What these figures do not say."""
        told = []
        if self.relearn:
            _, config = self._attacks
            nothing = [kind for kind, half in self._halves.items() if not half > 0]
            told.append(
                f"Relearning: steps of {config.batch} training pairs (forget: that lead to the concept; benign: without it) until "
                f"half of the original's exposure on concept-only histories is back, read up to {config.steps[-1]} steps; who is "
                "not brought back counts as if it were then, and the share that was is beside it. The ratio is to the slowest "
                "reference. Items that moved are tried with old and new SIDs, and the quicker way counts."
            )
            told += [
                f"Relearning ({kind}): nothing was measured. The original does not show the concept on these histories, or could "
                "not be attacked: it has no such training pair, or gives no finite number."
                for kind in nothing
            ]
        if self.ucan:
            told += [text.format(n=f"{len(self._pairs.forget):,}") for text in PARAGRAPH]
        return told

    @cached_property
    def _attacks(self) -> tuple[tuple[Attack, ...], RelearnConfig]:
        return attacks(self.beam)

    @cached_property
    def _halves(self) -> dict[Attack, float]:
        kinds, config = self._attacks
        return {kind: half_of(self.bench, kind, config) for kind in kinds}

    def _gold(self, kind: Attack) -> list[tuple[Reading, ...]]:
        _, config = self._attacks
        return [attacked(self.bench, *model, kind, config) for model in self.gold]

    @cached_property
    def _pairs(self) -> Pairs:
        return pairs_of(self.bench, self.ucan)

    @cached_property
    def _original(self) -> Reading:
        return said_of(self.bench, *self.before, self._pairs, None)

    def _said(self, of: str, role: Role, opened: Opened) -> Reading:
        return said_of(self.bench, of, role, opened, self._pairs, self._original)


def _model(checkpoint: Checkpoint, role: Role) -> Model:
    return checkpoint.digest, role, lambda: audit_model(role, checkpoint, checkpoint.table)
