"""Whether a method's models could be taken for references: by a classifier that sees what each does with a user, and by masses.

The deciding choice is that both tests measure with the references' own spread: a model is alike when it is told from a reference
no better than references from each other, and when its masses differ from theirs by no more than a further reference's could.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recerase.comparing.reading import FEATURES, Reading
from recerase.errors import UsageError
from recerase.report.compared import Figure
from recerase.types import Scope

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig

AUC = "likeness.auc"
EQUIVALENT = "equivalent"


def told_apart(
    readings: Sequence[Reading], references: Sequence[Reading], scope: Scope, config: AuditConfig
) -> dict[str, Figure]:
    """AUC of a classifier that tells the models from references, that of references from each other, and the difference.

    {} with fewer than two references, or where there are too few users for its folds.
    """
    from recerase.audit.likeness import features_of, likeness

    own, gold = ([told for x in some if (told := x.under(FEATURES))] for some in (readings, references))
    if not own or len(gold) < 2:
        return {}
    try:
        found = likeness(
            [features_of(x) for x in own],
            [features_of(x) for x in gold],
            scope,
            seed=config.seed,
            confidence=config.confidence,
        )
    except UsageError:  # too few users
        return {}
    if found.difference is None or found.references is None:
        return {}
    sd = float(np.std(found.seeds, ddof=1)) if len(found.seeds) > 1 else None
    return {
        AUC: Figure(found.erased, found.n, len(own), sd),
        f"{AUC} of/reference": Figure(found.references, found.n, len(gold)),
        f"{AUC} difference/reference": Figure(found.difference, found.n, len(own), sd, found.interval),
    }


def equivalents(readings: Sequence[Reading], references: Sequence[Reading], config: AuditConfig) -> dict[str, Figure]:
    """A mass: 1 where the equivalence test is passed at the references' own spread, else 0, with the interval of the ratio.

    `EQUIVALENT`: the share of masses that passed. {} with fewer references than tell of a spread.
    """
    from recerase.audit.equivalence import equivalent_masses

    found: dict[str, Figure] = {}
    own, gold = ([x.values for x in some] for some in (readings, references))
    for name, leg in equivalent_masses(own, gold, config.confidence).items():
        if leg.told.equivalent is not None:
            passed = float(leg.told.equivalent)
            found[f"{name} equivalent/reference"] = Figure(passed, leg.n, leg.models, None, leg.told.interval)
    if found:
        n = next(iter(found.values())).n
        found[EQUIVALENT] = Figure(float(np.mean([x.value for x in found.values()])), n, len(readings))
    return found
