"""Builds the documentation site into build/site: collects the pages, calls Zensical, checks every link of the result.

    python docs/site/build.py

The pages are the repository's own Markdown. A link to another page stays one. A link to a file that is no page, such as
a source file, becomes its text: the site has no sources beside it.
"""

from __future__ import annotations

import ast
import html.parser
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"

# Beside docs/**/*.md: file of the repository -> page.
ELSEWHERE = {
    "slurm/README.md": "slurm.md",
    "packaging/README.md": "packaging.md",
    "packaging/RELEASING.md": "releasing.md",
    "colearn_hpc/algorithm/README.md": "method.md",
    "colearn_hpc/protocol/README.md": "protocol.md",
    "colearn_hpc/cli/troubleshooting.md": "troubleshooting.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
FOLDERS = {"slurm": "slurm/README.md", "packaging": "packaging/README.md", "slurm/other": "docs/clusters.md"}

# Page of the reference -> heading, and what mkdocstrings takes from the docstrings.
REFERENCE = {
    "api": (
        "In your own code",
        [
            "colearn_hpc.trainer.callback.CoLearning",
            "colearn_hpc.trainer.standing.Standing",
            "colearn_hpc.mpi.topology.DataCenter",
            "colearn_hpc.trainer.environment.DataCenterEnvironment",
            "colearn_hpc.trainer.private_training.PrivateTraining",
            "colearn_hpc.errors",
        ],
    ),
    "rules": (
        "Rules and rivals",
        [
            "colearn_hpc.algorithm.learning_rate",
            "colearn_hpc.algorithm.local_epochs",
            "colearn_hpc.algorithm.outer",
            "colearn_hpc.algorithm.combine",
            "colearn_hpc.algorithm.codec",
        ],
    ),
    "data-models": (
        "Data and models",
        [
            "colearn_hpc.data.datamodule.ShardDataModule",
            "colearn_hpc.data.shard_writer.ShardWriter",
            "colearn_hpc.data.transforms",
            "colearn_hpc.models.task.Classifier",
            "colearn_hpc.models.task_multilabel.MultilabelTask",
            "colearn_hpc.models.muon.Muon",
            "colearn_hpc.models.registry",
        ],
    ),
    "run-folder": ("Run folder", ["colearn_hpc.trainer.run_folder", "colearn_hpc.protocol.reports"]),
}


def main() -> int:
    """Build and check; returns the exit code."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for source, page in pages().items():
        text = (ROOT / source).read_text()
        if page == "troubleshooting.md":
            text = with_messages(text)
        write(page, relinked(text, source, page))
    shutil.copytree(ROOT / "docs" / "pictures", PAGES / "pictures")
    shutil.copy(ROOT / "docs" / "site" / "style.css", PAGES)
    for name, (title, parts) in REFERENCE.items():
        write(f"reference/{name}.md", "\n\n".join([f"# {title}", *(f"::: {part}" for part in parts)]) + "\n")
    write("reference/commands.md", commands())
    shutil.rmtree(SITE, ignore_errors=True)
    zensical = Path(sys.executable).with_name("zensical")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    code = subprocess.run([zensical, "build", "--strict", "--clean"], cwd=ROOT, env=environment).returncode
    wrong = [] if code else list(dead_links(SITE))
    print(*wrong, sep="\n", file=sys.stderr)
    if not (code or wrong):
        print(f"documentation: {SITE / 'index.html'}")
    return code or int(bool(wrong))


def pages() -> dict[str, str]:
    """File of the repository -> its page."""
    own = {str(path.relative_to(ROOT)): str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    return own | ELSEWHERE


def write(page: str, text: str) -> None:
    path = PAGES / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def relinked(text: str, source: str, page: str) -> str:
    """A file's text with its links as the site needs them.

    Args:
        text: Markdown.
        source: the file, seen from the repository's root.
        page: where it is on the site.
    """
    known = pages()

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        if re.match(r"\w+:|#", target):
            return found[0]
        path, hash_, anchor = target.partition("#")
        file = os.path.normpath(Path(source).parent / path)
        if file.startswith("docs/pictures/"):
            goal = file.removeprefix("docs/")
        elif (goal := known.get(FOLDERS.get(file, file), "")) == "":
            return words  # a source file
        elif re.fullmatch(r"[\w/.-]+\.md", words):  # who reads the site sees no files
            words = title_of(FOLDERS.get(file, file))
        return f"{mark}[{words}]({os.path.relpath(goal, Path(page).parent)}{hash_}{anchor})"

    return re.sub(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", link, text)


def title_of(source: str) -> str:
    """The heading of a Markdown file of the repository."""
    return next(line[2:] for line in (ROOT / source).read_text().splitlines() if line.startswith("# "))


def with_messages(text: str) -> str:
    """The troubleshooting page with all messages of each kind, as the source has them."""
    from colearn_hpc.cli.explain import sections

    found, taken = messages(), set()
    for key in sections():
        if texts := found.get(key):
            lines = [f'- <span id="{anchor(key, said, taken)}">{html_of(said)}</span>' for said in texts]
            below = "\n".join(["\n\n**All messages of this kind** (… stands for what was set or found):\n", *lines, ""])
            section = re.compile(rf"(^## {key}\n.*?)\n*(?=^## |\Z)", re.DOTALL | re.MULTILINE)
            text = section.sub(lambda part, below=below: f"{part[1]}{below}\n", text)
    return text


def anchor(key: str, said: str, taken: set[str]) -> str:
    """An anchor for a message, of its first words; it is added to ``taken``."""
    words = re.findall(r"[a-z0-9]+", said.lower())
    names = ("-".join([key, *words[:count]]) for count in range(6, len(words) + 1))
    name = next((name for name in names if name not in taken), f"{key}-{len(taken)}")
    taken.add(name)
    return name


def html_of(said: str) -> str:
    """A message as text: nothing in it is markup."""
    escaped = said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]{}~^=:|])", lambda found: f"&#{ord(found[0])};", escaped)


def messages() -> dict[str, list[str]]:
    """Key -> the texts with which errors of that kind are made in the source."""
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "colearn_hpc").rglob("*.py"))}
    keys = {"ColearnError": ""}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in range(5):  # as deep as classes are derived
        for node in classes:
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id in keys:
                    keys[node.name] = own_key(node) or keys[base.id]
    texts: dict[str, dict[str, None]] = {}
    for path, tree in trees.items():
        # The equations know no ColearnError; who calls them makes one of the same text.
        here = keys | ({"ValueError": "configuration"} if path.parent.name == "algorithm" else {})
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
            key = here.get(call.func.id) if isinstance(call.func, ast.Name) else None
            if key and len(re.findall(r"[A-Za-z]{3,}", said := text_of(call.args[0]))) > 2:
                texts.setdefault(key, {})[said] = None
    return {key: sorted(found) for key, found in texts.items()}


def own_key(node: ast.ClassDef) -> str:
    """What ``key = "..."`` says in a class."""
    for line in node.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "key":
            return str(ast.literal_eval(line.value))
    return ""


def text_of(node: ast.expr) -> str:
    """A string of the source; … for what is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def commands() -> str:
    """What every command says for ``--help``."""
    os.environ["COLUMNS"] = "100"
    import importlib

    from colearn_hpc._torchvision import make_torchvision_importable
    from colearn_hpc.cli import COMMANDS, LIGHTNING, fit_help
    from colearn_hpc.cli.completion import help_of, subcommands

    make_torchvision_importable()  # some commands import Lightning, and beside it may lie the registry's torchvision

    parts = ["# Commands", "What each command says for `--help`."]
    for name, (module, _) in COMMANDS.items():
        if module in LIGHTNING:
            parts += [f"## {name}", f"```text\n{fit_help.page(name, 100)}\n```"]
            continue
        run = importlib.import_module(f"colearn_hpc.cli.{module}").main
        text = help_of(run)
        parts += [f"## {name}", f"```text\n{text.rstrip()}\n```"]
        for below in subcommands(text):
            parts += [f"### {name} {below}", f"```text\n{help_of(run, below).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


class Links(html.parser.HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif (name == "href" and tag == "a") or (name == "src" and tag in ("img", "script")):
                self.targets.append(value or "")


def dead_links(site: Path) -> Iterator[str]:
    """Every link within the site that leads nowhere."""
    read = {}
    for path in site.rglob("*.html"):
        read[path] = Links()
        read[path].feed(path.read_text())
    anchors = {path: links.anchors for path, links in read.items()}
    for path, links in read.items():
        if path.name == "404.html":
            continue  # its links begin at the server's root
        for target in links.targets:
            address = urllib.parse.urlsplit(target)
            fragment = urllib.parse.unquote(address.fragment)
            if address.scheme or address.netloc:
                continue
            file = (path.parent / urllib.parse.unquote(address.path)).resolve() if address.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                yield f"{path.relative_to(site)}: {target} leads nowhere"
            elif fragment and fragment not in anchors.get(file, {fragment}):
                yield f"{path.relative_to(site)}: {target}: no such heading"


if __name__ == "__main__":
    sys.exit(main())
