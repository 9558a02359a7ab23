"""Data sources by the name that ``colearn-hpc data NAME`` uses: one file per source, imported when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from colearn_hpc.errors import DataError

if TYPE_CHECKING:
    from colearn_hpc.data.sources.base import Source

# name -> (module, class, one line of help); a table and not a scan, so that --help imports nothing.
SOURCES: dict[str, tuple[str, str, str]] = {
    "audioset": ("audioset", "AudioSet", "packed HDF5: embeddings (N, 10, 128) or log-mel (N, 240, 64)"),
    "cifar10": ("cifar10", "Cifar10", "CIFAR-10, python pickles or binary, folder or archive"),
    "csv-text": ("csv_text", "CsvText", "any CSV with a column of text and columns of labels"),
    "digits": ("digits", "Digits", "scikit-learn's 1,797 handwritten digits, 8 x 8; needs no download"),
    "imagefolder": ("imagefolder", "ImageFolder", "a folder, zip or tar of class/*.jpg|png, or split/class/*"),
    "imagenet": ("imagenet", "ImageNet", "ILSVRC2012: official tars, Kaggle's layout, or split/class/*.JPEG"),
    "speech-commands": ("speech_commands", "SpeechCommands", "Google's one-word clips, v0.01 or v0.02"),
    "toxic": ("toxic", "Toxic", "Kaggle's toxic comments: train.csv, test.csv, test_labels.csv"),
    "wav-folder": ("wav_folder", "WavFolder", "class/*.wav, or any WAV files with the class in the name"),
}


def source_class(name: str) -> type[Source]:
    """The class of a source.

    Raises:
        DataError: no source has that name.
    """
    if name not in SOURCES:
        raise DataError(f"data: there is no source {name!r}; choose one of {', '.join(sorted(SOURCES))}.")
    module, class_name, _ = SOURCES[name]
    found: type[Source] = getattr(importlib.import_module(f"colearn_hpc.data.sources.{module}"), class_name)
    return found
