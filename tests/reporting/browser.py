"""Pages in a headless browser: what they look like, and what does not fit."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_FLAGS = (*_QUIET, "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=2000")
_MEASURE = """
const rolls = e => e && (getComputedStyle(e).overflowX === "auto" || rolls(e.parentElement));
const name = e => e.tagName + "." + (e.getAttribute("class") || "") + ": " + e.textContent.trim().slice(0, 40);
const width = document.documentElement.clientWidth, all = [...document.body.querySelectorAll("*")];
const text = document.createRange();
const out = all.filter(e => !rolls(e) && e.getBoundingClientRect().right > width + 1);
const cells = [...document.querySelectorAll("th, td, dd, dt, h4, figcaption")];
const cut = cells.filter(e => { text.selectNodeContents(e); const inner = text.getBoundingClientRect();
  return inner.width && inner.right > e.getBoundingClientRect().right + 1; });
const visible = [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().width);
parent.postMessage(JSON.stringify({
  width: innerWidth, page: document.documentElement.scrollWidth, out: out.map(name), cut: cut.map(name),
  pictures: [...document.images].map(i => i.naturalWidth), figures: visible.map(e => e.getBoundingClientRect().width),
}), "*");
"""
_FRAME = """<!doctype html><body><script>
addEventListener("message", event => { document.body.dataset.measured = event.data; });
</script><iframe src="measured.html" style="border: 0; width: %dpx; height: 900px"></iframe>"""
"""A window is never narrower than 500 pixels, a frame is."""


def _run(page: Path, width: int, height: int, *flags: str) -> str:
    assert CHROMIUM is not None
    profile = page.parent / "profile"
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", *flags]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout


def screenshot(page: Path, out: Path, width: int, height: int) -> Path:
    """Takes a picture of the top of a page."""
    _run(page, width, height, f"--screenshot={out}")
    return out


def measure(page: Path, width: int) -> dict[str, Any]:
    """Lays the page out for a window and returns its width, what sticks out of it or of its cell, and its pictures."""
    text, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert policies == 1, "the page forbids scripts, also this one"
    copy = page.with_name("measured.html")
    copy.write_text(text.replace("</body>", f"<script>{_MEASURE}</script></body>"))
    frame = page.with_name("frame.html")
    frame.write_text(_FRAME % width)
    found = re.search(r'data-measured="([^"]*)"', _run(frame, 1400, 1000, "--dump-dom"))
    assert found is not None, "the browser ran no script"
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured
