"""Files whose texts name SIDs (prompts in parquet, JSON or plain text): which item is meant, and what the text is then to say.

The one decision: an item is told by the record, never by a SID that others have too. A record with a user whose items are known, and
whose SIDs are those of the first of these items in their order, is rewritten item by item. Anything else is rewritten SID by SID,
which says enough only if all items of a SID now have one and the same SID again; else nothing is written, with a sentence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recerase.errors import EraseError, TableError
from recerase.layouts.sid_parquet import replaced, texts_of, with_columns
from recerase.layouts.spelling import Spelling

USER = "user_id"
ORDER = ("description", "groundtruth")
"""Columns whose SIDs are a user's items in order, as generate_sid_prediction_data.py and its like of OneRec-Think write them."""


@dataclass
class Rewriter:
    """SIDs as they were and are to be, and whose items are known."""

    spelling: Spelling
    old: Mapping[str, str]
    """Item -> its SID as text; likewise `new`."""
    new: Mapping[str, str]
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """User -> items in order."""

    def __post_init__(self) -> None:
        meant: dict[str, set[str]] = defaultdict(set)
        for item, sid in self.old.items():
            meant[sid].add(self.new[item])
        self._known = set(meant)
        self._plain = {sid: next(iter(to)) for sid, to in meant.items() if len(to) == 1}

    def check(self, text: str, path: Path) -> None:
        """Raises TableError for a SID in a text that no item has."""
        unknown = next((sid for sid in self.spelling.sid.findall(text) if sid not in self._known), None)
        if unknown is not None:
            raise TableError(
                f"{path} names {unknown}, which is the SID of no item.",
                "Its SIDs are of another table: give files of one training.",
            )

    def text(self, text: str, path: Path) -> str:
        """A text with every SID exchanged. Raises EraseError when a SID does not tell which item is meant."""
        return self.spelling.sid.sub(lambda match: self._one(match[0], path), text)

    def parquet(self, data: bytes, path: Path) -> bytes:
        """A parquet file with every SID exchanged; the file itself where none is another. Raises EraseError likewise."""
        columns = texts_of(data, path)
        made = {name: list(values) for name, values in columns.items()}
        users = columns.get(USER, [])
        ordered = [name for name in ORDER if name in columns]
        for row in range(len(next(iter(columns.values()), []))):
            owners = self._owners(str(users[row]), [columns[name][row] for name in ordered]) if users else None
            if owners is not None:
                following = iter(owners)
                for name in ordered:
                    made[name][row] = self.spelling.sid.sub(
                        lambda match: self.new[next(following)],  # noqa: B023 - used at once
                        columns[name][row],
                    )
            for name in columns:
                if owners is None or name not in ordered:
                    made[name][row] = replaced(columns[name][row], lambda text: self.text(text, path))
        return with_columns(data, {name: values for name, values in made.items() if values != columns[name]})

    def _owners(self, user: str, texts: Sequence[str | None]) -> list[str] | None:
        """The items that the texts of a user's record name, in order; None when they are not those the user is known for."""
        items = [item for item in self.users.get(user, ()) if item in self.old]
        if not items or not all(isinstance(text, str) for text in texts):
            return None
        stood = [sid for text in texts for sid in self.spelling.sid.findall(text or "")]
        return items[: len(stood)] if stood == [self.old[item] for item in items[: len(stood)]] else None

    def _one(self, sid: str, path: Path) -> str:
        if sid not in self._plain:
            raise EraseError(
                f"{path} names {sid}, which several items share and not all of them keep, in a record that does not say which.",
                "Make that file again from the items, or leave it out; users are told apart with sequential_data_processed.txt.",
            )
        return self._plain[sid]


def read_users(text: str, path: Path) -> dict[str, list[str]]:
    """User -> items of `sequential_data_processed.txt`: a line a user, by white space. Raises TableError for a user twice."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    users = {line[0]: line[1:] for line in lines}
    if len(users) != len(lines):
        raise TableError(f"{path} has a user twice.", "Restore it.")
    return users
