"""Which run folder a ``fit`` command is about, without the libraries that its own parser needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml


def run_folder(fit: Sequence[str]) -> Path:
    """The run folder that arguments of ``fit`` name, by ``--name`` and ``--runs``, or in a ``--config`` file."""
    found = {"runs": "runs", "name": "run"}
    words = iter(fit)
    for word in words:
        option, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and option in ("config", *found):
            value = value if equals else next(words, "")
            found |= _settings(Path(value), found) if option == "config" else {option: value}
    return Path(found["runs"], found["name"])


def _settings(config: Path, wanted: dict[str, str]) -> dict[str, str]:
    try:
        content = yaml.safe_load(config.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # `fit` has said so
    return {key: str(content[key]) for key in wanted if isinstance(content, dict) and key in content}
