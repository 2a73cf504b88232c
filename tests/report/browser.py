"""A headless Chromium, where there is one: what a page says on its console, how wide it is, and how it looks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)
FRAME = """<!doctype html><meta charset="utf-8"><title>wait</title><style>body{{margin:0}}iframe{{border:0}}</style>
<iframe src="{page}" style="width:{width}px;height:1200px" onload="
const seen = this.contentDocument, root = seen.documentElement;
const wide = [...seen.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .tall, svg')
  && e.getBoundingClientRect().right > {width} + 1).map(e => e.tagName + '.' + e.className);
document.title = [root.clientWidth, root.scrollWidth, root.scrollHeight, wide.slice(0, 5).join(' ')].join('|')"></iframe>"""
"""Chromium's window is never narrower than 500 px; a frame in it can be."""


def chromium() -> str:
    """The browser's path, or the test is skipped."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


def run_chromium(url: str, home: Path, *flags: str) -> tuple[str, str]:
    """stdout and what was said on the page's console."""
    line = [chromium(), *FLAGS, f"--user-data-dir={home / 'profile'}", *flags, url]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


def measured(page: Path, width: int, home: Path) -> tuple[int, int, int, str, str]:
    """In a frame `width` px wide: client width, scroll width, height, elements that stick out, and the console."""
    frame = home / f"frame{width}.html"
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    out, console = run_chromium(
        frame.as_uri(), home, "--virtual-time-budget=4000", "--dump-dom", "--window-size=1400,1200"
    )
    title = re.search(r"<title>(.*?)</title>", out, re.DOTALL)
    assert title is not None, out[:500]
    client, scroll, height, wide = title.group(1).split("|")
    return int(client), int(scroll), int(height), wide, console
