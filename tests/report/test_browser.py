"""The page in a real browser: nothing on its console, nothing wider than the screen, nothing fetched, and small."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.browser import chromium, measured, run_chromium
from tests.report.conftest import examples

from recerase.report.html import report_html
from recerase.types import Report, Verdict

LONGEST = ("A" * 118, "سيجارة إلكترونية قابلة لإعادة الشحن", "family \U0001f469‍\U0001f469‍\U0001f467 kit " * 6)


def many(report: Report, users: int) -> Report:
    """The report with worst examples of that many users."""
    made = examples() * (users // 20)
    return replace(report, examples=tuple(replace(e, user_id=f"user-{i}") for i, e in enumerate(made)))


def test_a_page_of_500_users_is_small(make_report: Any) -> None:
    page = report_html(many(make_report(Verdict.FAIL), 500)).encode()
    assert len(page) < 500_000


@pytest.fixture(scope="module")
def page(make_report: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html(many(make_report(Verdict.FAIL, titles=LONGEST, concept="brand=" + "W" * 110), 500)))
    return path


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen_and_the_console_is_empty(width: int, page: Path, tmp_path: Path) -> None:
    client, scroll, height, wide, console = measured(page, width, tmp_path)
    assert client == width
    assert scroll == width, wide
    assert wide == ""
    assert height > 1000
    assert console == ""


def test_the_console_is_read(tmp_path: Path) -> None:
    """The test above can fail: a page that does fetch and does not fit is seen."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><p style='width:900px'>x<script>console.error('seen')</script><img src=http://a.example/x>"
    )
    client, scroll, _, wide, console = measured(bad, 400, tmp_path)
    assert (client, scroll) == (400, 900 + 8)
    assert wide.startswith("P")
    assert "seen" in console


def test_it_is_drawn_and_printed(page: Path, tmp_path: Path) -> None:
    shot, paper = tmp_path / "shot.png", tmp_path / "paper.pdf"
    _, console = run_chromium(page.as_uri(), tmp_path, f"--screenshot={shot}", "--window-size=1280,1600")
    assert console == ""
    assert struct.unpack(">II", shot.read_bytes()[16:24]) == (1280, 1600)
    assert shot.stat().st_size > 50_000
    run_chromium(page.as_uri(), tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) > 2
