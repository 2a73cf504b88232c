"""The README's pictures: a terminal's SVG is well formed, shows what the console shows, and fetches nothing."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from tests.report.conftest import make_report as make_report

from recerase.types import Verdict

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = runpy.run_path(str(REPOSITORY / "benchmarks" / "pictures.py"))


def words(svg: str) -> str:
    return " ".join("".join(Xml.fromstring(svg).itertext()).replace("\xa0", " ").split())


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_terminal_is_drawn_of_a_report(make_report: Any, verdict: Verdict) -> None:
    report = make_report(verdict, concept="<b> & Vaping")
    svg = PICTURES["terminal"](report)
    assert f"{verdict.value.upper()} {report.decision.reason[:20]}" in words(svg)
    assert "concept <b> & Vaping" in words(svg)
    assert not re.search(r"@font-face|@import|url\((?!#)|href", svg)


def test_the_committed_pictures_are_small_and_of_the_demo() -> None:
    svg = (REPOSITORY / "benchmarks" / "pictures" / "terminal.svg").read_text()
    assert "recerase demo" in words(svg)
    assert "concept category=Vaping" in words(svg)
    assert len(svg) < 100_000
    png = (REPOSITORY / "benchmarks" / "pictures" / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) < 150_000
