"""A report of a real evaluation, opened from disk in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from volar.sim.evaluate import EvaluateConfig, evaluate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (`make test` runs .ci/browser to install it)")
WIDTH = 1180
# Appended to a copy of the report: what the page has become, once everything in it is loaded.
_PROBE = """<script>addEventListener("load", () => {
  const facts = {
    videos: [...document.querySelectorAll("video")].map(v => `${v.readyState}:${v.videoWidth}x${v.videoHeight}`),
    fetched: performance.getEntriesByType("resource").map(r => r.name.slice(0, 15)),
    wide: document.documentElement.scrollWidth - innerWidth,
    intervals: [...document.querySelectorAll(".interval rect")].filter(r => r.getBoundingClientRect().width > 0).length,
  };
  document.body.setAttribute("data-facts", JSON.stringify(facts).replaceAll('"', "'"));
})</script>"""


@pytest.fixture(scope="module")
def report(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "out"
    evaluate(EvaluateConfig(policy=artifact_folder, tasks=("reach",), episodes=2, videos=2, workers=1, output=output))
    return output / "report.html"


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Headless, and without any network: every name fails to resolve."""
    assert BROWSER is not None
    profile = page.parent / "profile"
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--no-first-run",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--hide-scrollbars"]
    command += [f"--window-size={WIDTH},1500", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def test_a_browser_loads_the_films_fetches_nothing_and_has_nothing_to_complain_about(report: Path) -> None:
    probed = report.with_name("probed.html")
    probed.write_text(report.read_text() + _PROBE)
    done = chromium(probed, "--dump-dom")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    found = re.search(r'data-facts="([^"]*)"', done.stdout)
    assert found is not None, done.stdout[-2000:]
    facts = json.loads(found.group(1).replace("'", '"'))
    assert len(facts["videos"]) == 2
    assert all(video.endswith(":512x256") and int(video[0]) >= 2 for video in facts["videos"])  # 2: has a frame
    assert all(name.startswith("data:") for name in facts["fetched"])
    assert facts["wide"] <= 0  # nothing to scroll sideways
    assert facts["intervals"] >= 2 * 2 * 2  # band and tick, of two conditions, for the task and overall


def test_a_complaint_would_be_noticed(report: Path) -> None:
    """The two checks above can fail."""
    probed = report.with_name("faulty.html")
    probed.write_text(report.read_text() + '<img src="http://volar.invalid/a.png"><script>nonsense()</script>' + _PROBE)
    done = chromium(probed, "--dump-dom")
    assert any("nonsense is not defined" in line for line in done.stderr.splitlines() if "CONSOLE" in line)
    assert "http://volar.inv" in done.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_shows_intervals_films_and_text(report: Path, scheme: str, tmp_path: Path) -> None:
    picture = tmp_path / f"{scheme}.png"
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    chromium(report, f"--screenshot={picture}", *dark)
    pixels = imageio.imread(picture)[..., :3].astype(int)  # (H, W, 3)
    assert pixels.shape[1] == WIDTH
    background = pixels[5, 5]
    assert (background.mean() < 60) == (scheme == "dark")
    assert (np.abs(pixels - background).max(-1) > 30).mean() > 0.05  # not blank
    good = {"light": (23, 133, 95), "dark": (63, 191, 146)}[scheme]  # --good, of ticks
    assert (np.abs(pixels - np.array(good)).max(-1) <= 3).sum() >= 2 * 3 * 12  # a tick is 3 by 12
