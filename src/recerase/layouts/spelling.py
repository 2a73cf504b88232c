"""How a tool writes codes as tokens, and a SID as text: `<a_60><b_1>`, or `<|sid_begin|><s_a_60><s_b_1><|sid_end|>`.

The one decision: a spelling is data of a layout. Whatever reads or writes tokens (tokenizer files, SID tables, prompts, files
beside them) is given one and knows no pattern of its own. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

MOST_CODE = 1 << 22
"""Codes are below this; a token with another number is a token like any other."""
_DIGITS = r"(0|[1-9]\d{0,8})"


@dataclass(frozen=True)
class Spelling:
    """Tokens `<{mark}{letter}_{code}>`, the letter telling the level; `begin` and `end` stand around a SID in texts."""

    mark: str = ""
    begin: str = ""
    end: str = ""

    @cached_property
    def _token(self) -> re.Pattern[str]:
        return re.compile(rf"<{re.escape(self.mark)}([a-z])_{_DIGITS}>")

    @cached_property
    def codes(self) -> re.Pattern[str]:
        """The codes of a SID in a text, without what begins and ends it."""
        return re.compile(rf"(?:<{re.escape(self.mark)}[a-z]_\d+>)+")

    @cached_property
    def sid(self) -> re.Pattern[str]:
        """A whole SID in a text."""
        return re.compile(f"{re.escape(self.begin)}{self.codes.pattern}{re.escape(self.end)}")

    def token(self, level: int, code: int) -> str:
        """The token of a code."""
        return f"<{self.mark}{chr(ord('a') + level)}_{code}>"

    def place(self, token: str) -> tuple[int, int] | None:
        """Level and code of a token; None for any other text, a number with zeros in front among them."""
        match = self._token.fullmatch(token)
        return None if match is None or int(match[2]) >= MOST_CODE else (ord(match[1]) - ord("a"), int(match[2]))

    def text(self, codes: Iterable[int]) -> str:
        """The codes of a SID as text, those behind its end (-1) left out."""
        return "".join(self.token(level, code) for level, code in enumerate(codes) if code >= 0)

    def whole(self, codes: Iterable[int]) -> str:
        """A SID as it stands in texts."""
        return f"{self.begin}{self.text(codes)}{self.end}"

    def read(self, text: str) -> list[int]:
        """The codes of a whole SID. Raises ValueError when the text is none."""
        if self.sid.fullmatch(text) is None:
            raise ValueError(f"{text!r:.80} is no SID like {self.whole((1, 2))}")
        found = [
            self.place(f"{token}>") for token in text.removeprefix(self.begin).removesuffix(self.end).split(">")[:-1]
        ]
        codes = [place[1] for place in found if place is not None]
        if None in found or self.whole(codes) != text:
            raise ValueError(f"{text!r:.80} leaves out a level, or has a code that is none")
        return codes


PLAIN = Spelling()
"""LETTER, LC-Rec, MiniOneRec."""
ONEREC = Spelling("s_", "<|sid_begin|>", "<|sid_end|>")
"""OpenOneRec and OneRec-Think."""
