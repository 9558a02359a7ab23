"""The page in a real browser: silent on the console, readable on a phone and a desk, in light and dark."""

import html
import json
import re
import shutil
import subprocess

import pytest
from handmade import write_run

from colearn_hpc.studies.report import write_run_report, write_study_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

PHONE = 390
# Measures the page inside a frame, and says it in a way that --dump-dom shows.
FRAME = """<!DOCTYPE html><link rel="icon" href="data:,"><body><iframe id="f" style="width:{width}px;height:800px"
 src="{page}"></iframe><script>
document.getElementById("f").onload = () => {{
  const d = document.getElementById("f").contentDocument;
  for (const part of d.querySelectorAll("details")) part.open = true;
  const pictures = [...d.querySelectorAll("svg")];
  const tables = [...d.querySelectorAll(".table")];
  const overlapping = pictures.filter(picture => {{
    const boxes = [...picture.querySelectorAll("text")].map(text => text.getBoundingClientRect());
    return boxes.some((a, i) => boxes.slice(i + 1).some(b =>
      a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1));
  }});
  const figure = d.querySelector("figure"), point = JSON.parse(figure.dataset.points)[0];
  const box = figure.querySelector("svg").getBoundingClientRect();
  const scale = box.width / figure.querySelector("svg").viewBox.baseVal.width;
  figure.querySelector("svg").dispatchEvent(new PointerEvent("pointermove",
    {{clientX: box.left + point[0] * scale + 3, clientY: box.top + point[1] * scale}}));
  document.body.dataset.measured = JSON.stringify({{
    scroll: d.documentElement.scrollWidth, width: d.documentElement.clientWidth, pictures: pictures.length,
    least: Math.min(...pictures.map(s => s.getBoundingClientRect().width)),
    letters: Math.min(...pictures.map(s => s.querySelector("text").getBoundingClientRect().height)),
    overlapping: overlapping.map(s => s.querySelector("title").textContent),
    cut: tables.filter(t => t.scrollWidth > t.clientWidth).length,
    point: point[2], hint: figure.querySelector(".hint").hidden ? "" : figure.querySelector(".hint").textContent,
    color: d.defaultView.getComputedStyle(d.body).color,
    ink: d.defaultView.getComputedStyle(figure.querySelector("svg text")).fill,
  }});
}};
</script></body>"""


def browse(page, tmp_path, *options) -> subprocess.CompletedProcess:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def measured(page, tmp_path, width=PHONE, dark=False) -> dict:
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=page.as_uri()))
    options = ["--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width + 20},900"]
    found = browse(frame, tmp_path, *options)
    match = re.search(r'data-measured="([^"]*)"', found.stdout)
    assert match, found.stderr
    assert "CONSOLE" not in found.stderr
    return json.loads(html.unescape(match[1]))


def test_a_study_fits_a_phone_and_shows_its_pictures(study_folder, tmp_path):
    page = measured(write_study_report(study_folder), tmp_path)
    assert page["scroll"] <= page["width"] <= PHONE
    assert page["pictures"] == 2 + 3 + 6 * 6  # two of the arms, three of what they cost, six of every run
    assert page["least"] > 0.8 * PHONE and page["letters"] >= 9
    assert page["cut"] > 0, "tables scroll"
    assert page["overlapping"] == []


def test_a_studys_tables_fit_a_desk(study_folder, tmp_path):
    page = measured(write_study_report(study_folder), tmp_path, width=1200)
    assert page["scroll"] <= page["width"] and page["cut"] == 0


def test_the_value_under_the_pointer_is_shown(tmp_path):
    page = measured(write_run_report(write_run(tmp_path / "run")), tmp_path)
    assert page["hint"] == page["point"] == "val_acc 0.8, local epochs 3"


@pytest.mark.parametrize(("dark", "color"), [(False, "rgb(27, 31, 36)"), (True, "rgb(230, 237, 243)")])
def test_pictures_follow_the_readers_scheme(tmp_path, dark, color):
    page = measured(write_run_report(write_run(tmp_path / "run")), tmp_path, dark=dark)
    assert page["color"] == page["ink"] == color


def test_a_run_is_painted(tmp_path):
    shot = tmp_path / "shot.png"
    page = write_run_report(write_run(tmp_path / "run"))
    found = browse(page, tmp_path, f"--screenshot={shot}", "--window-size=800,1600")
    assert "CONSOLE" not in found.stderr
    from PIL import Image

    colors = Image.open(shot).convert("RGB").getcolors(1 << 24)
    assert (35, 128, 196) in {color for _, color in colors}  # the first line's blue: the pictures are not blank
