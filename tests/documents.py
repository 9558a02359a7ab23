"""What the documentation tells a reader to type: pages as scripts that a test can run, and all command lines in them.

Blocks of a page that are run, in their order:

    ```bash                      commands
    ```python title="train.py"   a file, also of another kind: yaml
    ```diff title="train.py"     a change to a file that was shown before
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ELSEWHERE = {".venv", ".venv-dev", "build", "runs", "data"}  # top folders that are not ours
_BLOCK = re.compile(r"^```(\w*)(?: title=\"(.+?)\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_END = "END_OF_FILE"


def documents() -> list[Path]:
    """All Markdown files of the repository, and the configurations.

    But the changelog: it tells of commands that are no more.
    """
    found = (path for path in ROOT.rglob("*.md") if path.relative_to(ROOT).parts[0] not in _ELSEWHERE)
    return sorted(path for path in [*found, *ROOT.glob("configs/**/*.yaml")] if path.name != "CHANGELOG.md")


def runnable() -> list[str]:
    """The pages of docs/ that mark a block as ``bash``, seen from there."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [str(page.relative_to(ROOT / "docs")) for page in pages if "```bash\n" in page.read_text()]


def script(page: Path, before: str = "") -> str:
    """A page as one program for bash, which ends at the first command that fails.

    It is the page as it stands, but that a ``fit`` of a configuration as it comes has two rounds.

    Args:
        page: the file.
        before: how the heading begins at which the program is to end; empty: the whole page.
    """
    shown = page.read_text()
    if before:
        shown = shown[: shown.index(f"\n## {before}")]
    parts, files = ["set -euo pipefail"], dict[str, str]()
    for language, name, text in _BLOCK.findall(shown):
        if language == "bash":
            parts.append(re.sub(r"( fit --config \S+)$", r"\1 --colearning.rounds=2", text, flags=re.MULTILINE))
        elif name:
            files[name] = changed(files[name], text) if language == "diff" else text
            parts.append(f"cat > {shlex.quote(name)} <<'{_END}'\n{files[name]}{_END}")
    return "\n".join(parts)


def changed(file: str, diff: str) -> str:
    """A file after a change that is shown as in ``diff -u``, without the lines that begin with @@.

    Raises:
        ValueError: what is to be replaced is not in the file, or more than once.
    """
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if not line.startswith("+"))
    after = "".join(line[1:] for line in lines if not line.startswith("-"))
    if file.count(before) != 1:
        raise ValueError(f"{file.count(before)} times in the file: {before}")
    return file.replace(before, after)


@dataclass(frozen=True)
class CommandLine:
    """A command line of ours in a document.

    Attributes:
        where: the document.
        words: what follows ``colearn-hpc``.
        whole: it can be typed like that; otherwise it names a command, or leaves something out (…).
    """

    where: str
    words: tuple[str, ...]
    whole: bool


def command_lines(path: Path) -> Iterator[CommandLine]:
    """Every one in a document: in blocks that are not Python, in indented lines and between backticks in its text; of a
    configuration in its comments."""
    text = path.read_text()
    where = str(path.relative_to(ROOT))
    if path.suffix == ".yaml":
        text = "```yaml\n" + re.sub(r"^# ?", "", text, flags=re.MULTILINE) + "```\n"
    blocks = [block for language, _, block in _BLOCK.findall(text) if language != "python"]
    prose = _BLOCK.sub("", text)
    indented = re.compile(r"^    \S.*(?:\n    .*)*", re.MULTILINE)
    blocks += indented.findall(prose)
    for block in blocks:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for found in re.finditer(r"\bcolearn-hpc (?=[a-z-])", line):
                yield _command_line(where, line[found.end() :], whole=True)
    for span in re.findall(r"`([^`]+)`", indented.sub("", prose)):
        if found := re.search(r"\bcolearn-hpc ([a-z-].*)", " ".join(span.split())):
            yield _command_line(where, found[1], whole=False)


def _command_line(where: str, text: str, whole: bool) -> CommandLine:
    """Of what follows ``colearn-hpc`` in a line: up to where the shell would end the command."""
    words = list[str]()
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in lexer:
            if word == ":" or set(word) <= set("();<>|&"):
                break
            words.append(word)
    except ValueError:  # a quote that was opened before: bash -c '… colearn-hpc …'
        return _command_line(where, re.split(r"['\"]", text)[0], whole)
    words = [word for word in words if not word.startswith("[--")]  # which may be left out
    told = [word for word in words if "…" not in word and word != "..."]
    return CommandLine(where, tuple(told), whole and told == words)
