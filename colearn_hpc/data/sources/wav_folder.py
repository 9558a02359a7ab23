"""Any collection of WAV files whose class is in the folder or in the file's name."""

from __future__ import annotations

import argparse
import re
from typing import Any

from colearn_hpc.data.sources.base import SPLITS, left_out
from colearn_hpc.data.sources.clips import ClipSource, Members, is_wav
from colearn_hpc.data.sources.imagefolder import SPLIT_NAMES
from colearn_hpc.errors import DataError


class WavFolder(ClipSource):
    """WAV files as (samples,) int16; the class is the folder, or the ``{label}`` of a pattern.

    The split, in this order: ``test_where`` (and ``val_where``) over a field of the pattern, such as ``speaker=theo``
    to test on a voice never heard; folders ``train/``, ``test/``, ``val/`` above the class; else the names tell none.

    Args:
        path: folder, zip or tar.
        pattern: of the file name, such as ``{label}_{speaker}_{n}.wav``; ``None``: the folder is the class.
        test_where: ``FIELD=VALUE,VALUE``; a value may be a range of whole numbers, ``0-4``.
        val_where: the same for validation.
        group_by: the field of the pattern that tells who an example comes from, such as ``speaker``.
        rate: samples per second of the clips.
        seconds: their length.
    """

    name = "wav-folder"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """SRC, --rate, --seconds and how to find class and split."""
        cls.add_clip_arguments(parser)
        parser.add_argument(
            "--pattern", help="of the file names, e.g. {label}_{speaker}_{n}.wav (default: class/*.wav)"
        )
        parser.add_argument("--test-where", metavar="FIELD=V,…", help="test clips by a field of the pattern: n=0-4")
        parser.add_argument("--val-where", metavar="FIELD=V,…", help="validation clips likewise")
        parser.add_argument(
            "--group-by", metavar="FIELD", help="field of the pattern for --partition by-group: speaker"
        )

    @classmethod
    def from_arguments(cls, options: argparse.Namespace) -> WavFolder:
        """From the options."""
        return cls(
            options.src,
            pattern=options.pattern,
            test_where=options.test_where,
            val_where=options.val_where,
            group_by=options.group_by,
            rate=options.rate,
            seconds=options.seconds,
        )

    def __init__(
        self,
        path: str,
        pattern: str | None = None,
        test_where: str | None = None,
        val_where: str | None = None,
        group_by: str | None = None,
        rate: int = 16000,
        seconds: float = 1.0,
    ) -> None:
        super().__init__(path, rate, seconds)
        self._pattern = pattern
        self._expression = _expression(pattern) if pattern is not None else None
        self._where = {
            split: _condition(where, option, self._expression)
            for split, where, option in (("test", test_where, "--test-where"), ("val", val_where, "--val-where"))
            if where is not None
        }
        self._texts = {"test_where": test_where, "val_where": val_where}
        if group_by is not None and group_by not in (known := _known(self._expression)):
            raise DataError(f"--group-by: {group_by!r} is no field of the pattern; it has {', '.join(known)}.")
        self._group_by = group_by

    def parameters(self) -> dict[str, Any]:
        """All options."""
        # Only where it is set: folders of earlier versions are still this data set.
        grouped = {"group_by": self._group_by} if self._group_by is not None else {}
        return super().parameters() | self._texts | {"pattern": self._pattern} | grouped

    def members(self, names: list[str]) -> Members:
        """By pattern or folder."""
        clips = [name for name in names if is_wav(name)]
        if not clips:
            raise DataError(f"{self._tree.path}: holds no .wav files among {len(names)} files.")
        fields = {name: self._fields(name) for name in clips}
        split_of = self._splits(clips, fields)
        splits: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        for name in clips:
            splits[split_of.get(name, "train")].append((name, fields[name]["label"]))
        notes = left_out(names, clips, "are no .wav")
        if not splits["train"]:
            raise DataError(f"{self._tree.path}: no clip is left for training; change --test-where or --val-where.")
        groups = {name: fields[name][self._group_by] for name in clips} if self._group_by is not None else {}
        return Members(splits, notes, unsplit=not split_of, groups=groups)

    def _fields(self, name: str) -> dict[str, str]:
        parts = name.split("/")
        if self._expression is None:
            if len(parts) < 2:
                raise DataError(f"{self._tree.path}: {name} is in no class folder; set --pattern {{label}}_{{n}}.wav.")
            return {"label": parts[-2]}
        match = self._expression.fullmatch(parts[-1])
        if match is None:
            raise DataError(f"{self._tree.path}: {name} does not fit --pattern {self._pattern}; correct it.")
        return match.groupdict()

    def _splits(self, clips: list[str], fields: dict[str, dict[str, str]]) -> dict[str, str]:
        """Name → split; empty where nothing tells the split."""
        if self._where:
            found = {}
            for name in clips:
                matching = [split for split, (field, values) in self._where.items() if fields[name][field] in values]
                if len(matching) > 1:
                    raise DataError(f"{self._tree.path}: {name} is both --test-where and --val-where.")
                found[name] = matching[0] if matching else "train"
            return found
        # split/class/*.wav, or split/*.wav where the file's name tells the class.
        depth = -3 if self._expression is None else -2
        above = {name: parts[depth].lower() if len(parts := name.split("/")) >= -depth else "" for name in clips}
        if all(folder in SPLIT_NAMES for folder in above.values()):
            return {name: SPLIT_NAMES[folder] for name, folder in above.items()}
        return {}


def _expression(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    names = pieces[1::2]
    if "label" not in names or len(set(names)) < len(names) or any(not name.isidentifier() for name in names):
        raise DataError(f"--pattern: {pattern!r} needs {{label}} once, and other names at most once.")
    text = re.escape(pieces[0])
    for name, rest in zip(names, pieces[2::2], strict=True):
        text += f"(?P<{name}>[^/]+?){re.escape(rest)}"
    return re.compile(text, re.IGNORECASE)


def _known(expression: re.Pattern[str] | None) -> tuple[str, ...]:
    """The fields that a name tells; a folder tells the class alone."""
    return tuple(expression.groupindex) if expression is not None else ("label",)


def _condition(where: str, option: str, expression: re.Pattern[str] | None) -> tuple[str, frozenset[str]]:
    field, equals, text = where.partition("=")
    known = _known(expression)
    if not equals or field not in known or not text:
        raise DataError(f"{option}: {where!r} should be FIELD=VALUE,… with a field of the pattern: {', '.join(known)}.")
    values: set[str] = set()
    for part in text.split(","):
        if span := re.fullmatch(r"(\d{1,6})-(\d{1,6})", part):
            values |= {str(i) for i in range(int(span[1]), int(span[2]) + 1)}
        else:
            values.add(part)
    return field, frozenset(values)
