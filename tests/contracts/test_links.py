"""No dead link between the documents, and no path of anyone's machine in them."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    p
    for p in REPOSITORY.rglob("*.md")
    if not {".venv", ".venv-dev", "build", "runs", "data"} & set(p.relative_to(REPOSITORY).parts[:1])
]


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{path.name} links to {target}, which has no such heading"


def test_there_is_something_to_check():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {p.name for p in DOCUMENTS}


WIDTH = 120


def prose_too_wide(text: str) -> list[int]:
    """Numbers of the lines over WIDTH, tables, code and pictures left out."""
    found, code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.startswith("```")
        apart = code or line.lstrip().startswith(("|", "```")) or line.startswith("    ")
        if not apart and len(line) > WIDTH:
            found.append(number)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_prose_can_be_compared_line_by_line(path):
    assert prose_too_wide(path.read_text()) == []


def test_what_counts_as_prose():
    wide = "x" * (WIDTH + 1)
    assert prose_too_wide(f"{wide}\n| {wide} |\n    {wide}\n```\n{wide}\n```\n- {wide}") == [1, 7]
