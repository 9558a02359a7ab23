"""The page in a real browser: it opens, says nothing on the console, shows its pictures, and fits a phone."""

import re
import shutil
import subprocess

import pytest
from handmade import write_run

from colearn_hpc.studies.report import write_run_report, write_study_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

PHONE = 390
# Measures the page inside a frame as wide as a phone, and says it in a way that --dump-dom shows.
FRAME = """<!DOCTYPE html><link rel="icon" href="data:,"><body><iframe id="f" style="width:{width}px;height:800px"
 src="{page}"></iframe><script>
document.getElementById("f").onload = () => {{
  const d = document.getElementById("f").contentDocument;
  for (const part of d.querySelectorAll("details")) part.open = true;
  const pictures = [...d.querySelectorAll("svg")];
  const least = Math.min(...pictures.map(s => s.getBoundingClientRect().width));
  const letters = Math.min(...pictures.map(s => s.querySelector("text").getBoundingClientRect().height));
  const said = [d.documentElement.scrollWidth, d.documentElement.clientWidth, pictures.length,
    Math.round(least), Math.round(letters)];
  document.body.dataset.measured = said.join(" ");
}};
</script></body>"""


def browse(page, tmp_path, *options) -> subprocess.CompletedProcess:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def measured(page, tmp_path) -> list[int]:
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=PHONE, page=page.as_uri()))
    found = browse(frame, tmp_path, "--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom")
    match = re.search(r'data-measured="([^"]*)"', found.stdout)
    assert match, found.stderr
    assert "CONSOLE" not in found.stderr
    return [int(number) for number in match[1].split()]


def test_a_study_fits_a_phone_and_shows_its_pictures(study_folder, tmp_path):
    scroll_width, width, pictures, least, letters = measured(write_study_report(study_folder), tmp_path)
    assert scroll_width <= width <= PHONE
    assert pictures == 2 + 6 * 6  # two of the arms, six of every run
    assert least > 0.8 * PHONE and letters >= 9


def test_a_run_fits_a_phone_and_is_painted(tmp_path):
    page = write_run_report(write_run(tmp_path / "run"))
    scroll_width, width, pictures, _, _ = measured(page, tmp_path)
    assert scroll_width <= width <= PHONE and pictures == 6
    shot = tmp_path / "shot.png"
    found = browse(page, tmp_path, f"--screenshot={shot}", "--window-size=800,1600")
    assert "CONSOLE" not in found.stderr
    from PIL import Image

    colors = Image.open(shot).convert("RGB").getcolors(1 << 24)
    assert (0, 114, 178) in {color for _, color in colors}  # the first line's blue: the pictures are not blank
