"""The page in a real browser: no error, nothing asked for from outside, no sideways scrolling on a phone, accessible.

Skipped where there is no Chromium (`CHROMIUM` names one that is not on the path). Accessibility is checked where
`AXE_CORE` names axe-core's `axe.min.js`, which is not part of this project (npm install axe-core).
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.world import done, records, write_jsonl, write_model, write_recipe
from tests.report.world import write_evaluation

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("AXE_CORE")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--dump-dom", "--virtual-time-budget=30000"]
WIDTHS = (360, 768, 1280)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; install it or set CHROMIUM"),
]
# Notes what goes wrong from the first byte on; a second script tells it to the page around.
WATCH = """<script>window.seen = {errors: [], blocked: []};
addEventListener("error", event => seen.errors.push(String(event.message || event.target)), true);
addEventListener("securitypolicyviolation", event => seen.blocked.push(event.blockedURI));
console.error = console.warn = (...words) => seen.errors.push(words.join(" "));</script>"""
TELL = """<script>AXE
addEventListener("load", async () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  seen.width = innerWidth; seen.needed = document.documentElement.scrollWidth;
  seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  seen.ground = getComputedStyle(document.body).backgroundColor;
  seen.asked = performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:"));
  if (window.axe && innerWidth == 360)
    seen.axe = (await axe.run()).violations.map(one => [one.id, one.impact, one.nodes[0].html]);
  parent.postMessage(seen, "*");
});</script></body>"""
AROUND = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><body><script>
addEventListener("message", event => {
  const told = document.createElement("pre"); told.className = "told"; told.textContent = JSON.stringify(event.data);
  document.body.append(told);
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    base = write_model(folder / "base")
    data = write_jsonl(folder / "rows.jsonl", records())
    runs = []
    for name, options in {"cc": {"log_connection": True}, "plain": {"connection": "none"}}.items():
        recipe = write_recipe(folder / f"{name}.yaml", model=str(base), data=str(data), **options)
        done("train", "--config", recipe, "--output_dir", folder / name)
        runs.append(folder / name)
    flags = {"en": [1, 0] * 20, "qaa": [1, 0, 0, 1] * 10}
    scored = [f"{name}={write_evaluation(folder / f'e-{name}', name, flags)}" for name in ("plain", "cc")]
    output = folder / "page.html"
    done("report", *runs, "--evaluation", *scored, "--output", output)
    return output.read_text(encoding="utf-8")


def visit(page: str, folder: Path, dark: bool = False, axe: str = "") -> list[dict]:
    """Open copies of the page that watch themselves, in frames of `WIDTHS` (a window cannot be as narrow as a phone),
    and return what they saw."""
    watched = page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", TELL.replace("AXE", axe, 1), 1)
    watched = watched.replace("style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'", 1)
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(watched)}"></iframe>'
        for width in WIDTHS
    )
    around = folder / "around.html"
    around.write_text(AROUND + frames, encoding="utf-8")
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900"]
    flags.append(f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    command = [str(CHROMIUM), *flags, f"file://{around}"]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    told = re.findall(r'<pre class="told">(.*?)</pre>', dump, re.S)
    seen = sorted((json.loads(html.unescape(one)) for one in told), key=lambda one: one["width"])
    assert [one["width"] for one in seen] == list(WIDTHS), dump[-2000:]
    return seen


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def seen(request, page, tmp_path_factory) -> list[dict]:
    axe = Path(AXE).read_text(encoding="utf-8") if AXE else ""
    found = visit(page, tmp_path_factory.mktemp("visit"), request.param, axe)
    assert all(one["dark"] == request.param for one in found)
    return found


def test_no_error_no_request_no_sideways_scrolling(seen):
    for one in seen:
        assert one["ground"] == ("rgb(20, 23, 26)" if one["dark"] else "rgb(255, 255, 255)")
        assert one["errors"] == one["blocked"] == one["asked"] == []
        assert one["needed"] <= one["width"]


@pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name axe-core's axe.min.js")
def test_axe_finds_nothing(seen):
    assert seen[0]["axe"] == []


def test_what_is_asked_for_from_outside_would_be_seen(page, tmp_path):
    """What is looked for above can be found."""
    seen = visit(page.replace("<main", '<img src="https://example.org/a.png" alt=""><main', 1), tmp_path)
    assert all(any("example.org" in one for one in each["blocked"]) for each in seen)
