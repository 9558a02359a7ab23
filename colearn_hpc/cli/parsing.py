"""The parser of every command but ``fit``: what is wrong takes one line, with the nearest name that there is."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line each; its subcommands' parsers are of this kind too."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but an option that is not known is an error here, where its neighbours are known."""
        self._given = list(args) if args is not None else []
        known, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return known, others

    def error(self, message: str) -> NoReturn:
        """Print the line on stderr and end with exit code 2."""
        hint = self._hint(message)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}{'; ' if hint else ''}{hint}\n")

    def _hint(self, message: str) -> str:
        """What to do about one of argparse's own messages; nothing for the others, which say it themselves."""
        everything = f"`{self.prog} --help` lists what there is"
        if found := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            return nearest(found[1], self._option_string_actions) or everything
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            return nearest(found[1], re.findall(r"[\w.-]+", found[2]))
        if found := re.search(r"arguments are required: ([\w-]+)", message):
            # Where a required option is mistyped, argparse notices first that it is missing.
            unknown = (word for word in self._given if word[:2] == "--" and word not in self._option_string_actions)
            typed = next((word for word in unknown if nearest(word, [found[1]], cutoff=0.75)), None)
            return f"found {typed}" if typed else everything
        return ""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean X?``, or nothing where no name is near (difflib's ratio, 1 for equal ones)."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else ""
