from __future__ import annotations

import re

import pytest

from recerase.catalog.matching import PatternError, search


def test_expressions_mean_what_python_means() -> None:
    texts = [
        "Caf\u00e9 au lait",
        "VAPE pen",
        "vapes",
        "\u00e9t\u00e9",
        "na\u00efve\nline",
        "",
        "\U0001f9e8 firework",
        "\u017ftra\u00dfe",
        "a\u2028b",
        "x\ud800",
    ]
    for pattern in (
        r"\bvape\b",
        r"caf\u00e9\b",
        r"^n.*e$",
        r"(?=.*fire)work|lait",
        r"(.)\1",
        r"\w+\s\w+",
        r"(?s)n.+e$",
        r"[\u00e0-\u00ff]{2}",
        "s",
        r"a.b",
        "",
    ):
        expected = [re.search(pattern, text, re.IGNORECASE) is not None for text in texts]
        assert search(pattern, texts) == expected, pattern
    for wrong in ("(", "a{99999999999}", "(" * 5000, r"\k", "*"):
        with pytest.raises(PatternError):
            search(wrong, texts)
