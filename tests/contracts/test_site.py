"""The documentation site has every page in its navigation; `make docs` builds it and follows its links."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import build  # noqa: E402


def in_navigation(entries) -> set[str]:
    """The pages below an entry of ``nav``."""
    found = set()
    for entry in entries:
        for below in entry.values():
            found |= {below} if isinstance(below, str) else in_navigation(below)
    return found


def test_every_page_is_in_the_navigation():
    nav = in_navigation(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    made = {*build.pages().values(), "reference/commands.md", *(f"reference/{name}.md" for name in build.REFERENCE)}
    assert nav == made


def test_what_the_reference_names_is_there():
    for _, parts in build.REFERENCE.values():
        for part in parts:
            module, _, name = part.rpartition(".")
            file = ROOT / (module if name[0].isupper() else part).replace(".", "/")
            assert file.with_suffix(".py").exists(), part


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("[data](data.md#sources)", "[data](data.md#sources)"),
        ("[Slurm](../slurm/README.md)", "[Slurm](slurm.md)"),
        ("![a](pictures/quickstart.svg)", "![a](pictures/quickstart.svg)"),
        ("[`between.py`](../colearn_hpc/between.py)", "`between.py`"),
        ("[web](https://example.org)", "[web](https://example.org)"),
        ("[here](#below)", "[here](#below)"),
    ],
)
def test_links(link, becomes):
    assert build.relinked(f"See {link}.", "docs/faq.md", "faq.md") == f"See {becomes}."


def test_troubleshooting_has_all_messages():
    page = build.with_messages((ROOT / "colearn_hpc/cli/troubleshooting.md").read_text())
    anchors = re.findall(r'<span id="([\w-]+)">', page)
    assert len(anchors) > 300 and "configuration-resume-and-overwrite-exclude-each-other" in anchors
    section = page.partition("## ranks")[2].partition("## differs")[0]
    assert "centers&#61;… cannot share … equally" in section


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="x"></h1><a href="b.html#x">1</a><a href="#x">2</a><a href="c.html">3</a>')
    (tmp_path / "b.html").write_text('<h1 id="y"></h1><a href="a.html#x">4</a>')
    assert sorted(build.dead_links(tmp_path)) == [
        "a.html: b.html#x: no such heading",
        "a.html: c.html leads nowhere",
    ]
