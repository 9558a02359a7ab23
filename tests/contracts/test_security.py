"""docs/security.md promises nothing without a test that exists."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "security.md"
LINK = re.compile(r"\[(test_\w+)\]\((\.\./tests/[^)#]+)\)")


def rows(page: str, heading: str) -> list[str]:
    """The rows of the first table under a heading, without its head."""
    text = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def names(path: Path) -> set[str]:
    """Test functions of a file, and what it gives a test's name to."""
    return set(re.findall(r"^(?:    )?(?:def |)(test_\w+)(?:\(| =)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("row", rows(PAGE.read_text(), "Promises"), ids=lambda row: row.split("|")[1].strip()[:50])
def test_every_promise_has_a_test(row):
    assert len(row.strip("|").split("|")) == 3 and LINK.search(row.split("|")[-2]), row


@pytest.mark.parametrize(("name", "path"), sorted(set(LINK.findall(PAGE.read_text()))))
def test_the_test_exists(name, path):
    file = (PAGE.parent / path).resolve()
    assert file.exists() and name in names(file), f"{path} has no {name}"


def test_there_are_promises_and_every_table_with_tests_is_read():
    page = PAGE.read_text()
    assert len(rows(page, "Promises")) >= 10 and len(rows(page, "Attacks that were tried")) >= 3


def test_who_finds_something_knows_where_to_go():
    assert "docs/security.md" in (REPOSITORY / "SECURITY.md").read_text()
    assert "(../SECURITY.md)" in PAGE.read_text()
