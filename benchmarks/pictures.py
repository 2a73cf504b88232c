"""The pictures of the README: what `recerase demo` says in a terminal, and its page; written to benchmarks/pictures.

    python benchmarks/pictures.py             # runs `recerase demo` first, about a minute on two idle cores
    python benchmarks/pictures.py DEMO-OUT    # from a demo that ran before

terminal.svg is rich's own export of the tables and the verdict that the command ends with, without the fonts it would fetch.
report.png is a screenshot of the page by headless Chromium, in 128 colours; without Chromium it is left as it is, and that is said.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from recerase.demo import demo
from recerase.report.html import report_html
from recerase.report.schema import read_report
from recerase.report.text import before_after_table, rules_table, verdict_panel
from recerase.runtime import RunConfig
from recerase.types import Report

PICTURES = Path(__file__).resolve().parents[1] / "benchmarks" / "pictures"
WIDTH, PAGE = 104, (1280, 1600)
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""
"""rich's own, without the fonts that it would fetch from elsewhere."""


def terminal(report: Report) -> str:
    """What the demo ends with, as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ recerase demo\n", style="bold"))
    for part in (before_after_table(report), Text(), rules_table(report.decision), Text(), verdict_panel(report)):
        console.print(part)
    return console.export_svg(title="recerase", code_format=FORMAT, unique_id="recerase")


def page(report: Report, out: Path) -> bool:
    """A screenshot of the first screens of the page; False where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as home:
        html, shot = Path(home, "report.html"), Path(home, "report.png")
        html.write_text(report_html(report))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}/profile"]
        size = [f"--screenshot={shot}", f"--window-size={PAGE[0]},{PAGE[1]}"]
        subprocess.run([browser, *flags, *size, html.as_uri()], check=True, capture_output=True, timeout=240)
        Image.open(shot).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)
    return True


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as home:
        place = Path(arguments[0]) if arguments else demo(Path(home, "demo"), run=RunConfig(device="cpu")).path
        report = read_report(place / "report.json")
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "terminal.svg").write_text(terminal(report))
    drawn = page(report, PICTURES / "report.png")
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    if not drawn:
        print("report.png was not drawn: no Chromium here (Debian: apt-get install chromium)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
