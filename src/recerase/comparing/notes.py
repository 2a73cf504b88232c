"""What the figures of a comparison do not say, in sentences.

The one decision: whatever was not measured, or was measured in a way that a reader might not expect, is said with the table.
"""

from __future__ import annotations

from collections.abc import Iterator

from recerase.comparing.session import PLACES, Session

LEAST_REFERENCES = 3


def notes_of(session: Session) -> tuple[str, ...]:
    """The notes of a comparison whose rows are filled."""
    return tuple(
        [
            *_read(session),
            *_earlier(session),
            *_references(session),
            *_scopes(session),
            *session.extras.notes,
            *_not_read(session),
        ]
    )


def _read(session: Session) -> Iterator[str]:
    config = session.config
    width = "the decoder's own beam for that" if config.beam is None else f"a beam of {config.beam}"
    yield (
        f"Figures are read on test users, by the audit's own probes, on lists of {PLACES} with {width}; an audit reads longer lists "
        "with a wider one."
    )
    if not config.search:
        yield "Untuned: every method runs with its own settings, or those given; --search N gives all an equal budget."
    elif not config.keep_tried:
        yield "Models that the search tried and did not choose were taken away; what was read off them is kept."
    for name, why in session.left_out.items():
        yield f"Left out of all: {name}. {why}"
    if len(config.seeds) == 1:
        yield "One seed: the spread from seed to seed is unknown."
    alone = [x.name for x in session.entrants if x.card.prepares and not getattr(x.config, "prepared", "")]
    if alone:
        yield f"{', '.join(alone)} was given nothing prepared (--set NAME.prepared=DIR): its seconds hold the preparation."
    ready = [x.name for x in session.entrants if getattr(x.config, "prepared", "")]
    if ready:
        yield f"{', '.join(ready)} was prepared before: its seconds are of the request alone."


def _earlier(session: Session) -> Iterator[str]:
    for text in session.bench.gone.noted(session.bench.concept.members):
        yield f"{text} Whether they stay out was not measured; audit the model you take."


def _references(session: Session) -> Iterator[str]:
    n = len(session.references)
    if n == 0:
        yield "There is no reference: likeness to a model that never saw the concept was not measured."
        return
    if n == 1:
        yield "One reference: its spread from seed to seed is unknown, and no classifier was asked."
    elif n < LEAST_REFERENCES:
        yield "Two references tell nothing of their spread: equivalence at it was not tested, and lists' overlap not compared."
    yield (
        "Masses are compared, under the old and the new SIDs, with the mean of the references under the old, which are read on "
        "histories without concept items. Far below it is over-forgetting, not a merit."
    )
    if n > 1:
        yield (
            "AUC: how well a classifier tells the erased models from references by what each does with a user (mass, place of the "
            "concept, entropy, overlap of lists); beside it how well references are told from each other. Alike: their difference is "
            "at most .05. Nothing is asked of fewer than fifty users."
        )


def _scopes(session: Session) -> Iterator[str]:
    config = session.config
    same = [x.name for x in session.entrants if len({tuple(session.models[x.name, s]) for s in config.scopes}) == 1]
    if len(config.scopes) > 1 and same:
        yield f"The scope asked for made no difference to {', '.join(same)}: the same models stand in both tables."
    alone = [x.name for x in session.entrants if "influence" not in getattr(x.config, "scopes", ("output",))]
    if "influence" in config.scopes and alone:
        yield f"Scope influence: {', '.join(alone)} press for scope output alone, and stand there as they are."
    yield (
        "History influence: the share of ten places that another item takes when the concept items of a history are dropped, over "
        "users of the concept. References are given the same histories. Scope influence wants it at nought, scope output allows it."
    )


def _not_read(session: Session) -> Iterator[str]:
    missing = (
        ["probes, membership and precision"]
        if session.config.relearn
        else ["relearning, probes, membership, precision"]
    )
    yield f"What could come back by other ways ({missing[0]}) was not measured; audit the model you take."
