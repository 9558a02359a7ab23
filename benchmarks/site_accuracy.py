"""How a finished study's models fare at each data center, added to the study's JSON: the worst one, and the spread.

Each run's shared model (with FedBN each data center's own) is tried on the common test examples, class by class. A data
center's accuracy is the mean of those of its classes, each weighted by its share among the data center's own training
examples: what the model would score there on new examples. All test examples count for all data centers, where test
sets of their own would hold a few dozen each. Where not the classes differ but the inputs, `--test` names test sets of
the data centers' own.

    python benchmarks/study_rows.py runs/bench_digits_sites --json benchmarks/results/bench_digits_sites.json
    python benchmarks/site_accuracy.py runs/bench_digits_sites --json benchmarks/results/bench_digits_sites.json
    python benchmarks/site_accuracy.py runs/bench_spoken_speakers --centers 6 \
      --test data/speakers/own_test/{center}.h5 --json benchmarks/results/bench_spoken_speakers.json
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import common  # noqa: F401 - first: makes torchvision importable
import torch
import yaml
from pytorch_lightning.cli import instantiate_class
from torch import Tensor
from torch.utils.data import DataLoader

from colearn_hpc.data.datamodule import ShardDataModule
from colearn_hpc.models import Classifier


def accuracies(run: Path, names: list[str], test: str | None) -> list[float]:
    """Of the models that a run ended with, at each data center."""
    data = yaml.safe_load((run / "settings.yaml").read_text())["data"]["init_args"]
    transform = json.dumps(data.get("transform"))
    found = []
    for name in names:
        inputs, labels = examples((test or data["test"]).format(center=name), transform)
        own = run / "centers" / name / "own.ckpt"
        right = predictions(own if own.exists() else run / "shared.ckpt", inputs) == labels
        if test is not None:
            found.append(float(right.double().mean()))
            continue
        shares = class_shares(data["train"].format(center=name))
        by_class = torch.stack([right[labels == c].double().mean() for c in range(len(shares))])
        found.append(float(shares @ by_class))
    return found


@functools.cache
def examples(path: str, transform: str = "null") -> tuple[Tensor, Tensor]:
    """All inputs of a shard as a model gets them, and their labels."""
    made = json.loads(transform)
    data = ShardDataModule(train=path, test=path, transform=made and instantiate_class((), made))
    data.setup("test")
    loader = data.test_dataloader()
    assert isinstance(loader, DataLoader)
    inputs, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return data.ready(inputs), labels


@functools.cache
def class_shares(path: str) -> Tensor:
    """The share of each class among a shard's examples."""
    labels = examples(path)[1]
    return torch.bincount(labels, minlength=10).double() / len(labels)


@torch.no_grad()
def predictions(checkpoint: Path, inputs: Tensor) -> Tensor:
    """The likeliest class of each input."""
    module = Classifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    found: Tensor = module(inputs).argmax(1)
    return found


def main() -> None:
    """Add ``sites`` to each row: the accuracy at each data center."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("folder", type=Path, help="of a study: runs/NAME")
    options.add_argument("--json", type=Path, required=True, help="file that study_rows.py wrote, to add to")
    options.add_argument("--centers", type=int, default=5, help="data centers dc0, dc1, … (default: %(default)s)")
    options.add_argument("--test", metavar="PATTERN", help="test sets of the data centers' own, with {center}")
    chosen = options.parse_args()
    found: dict[str, Any] = json.loads(chosen.json.read_text())
    names = [f"dc{k}" for k in range(chosen.centers)]
    for row in found["rows"]:
        row["sites"] = accuracies(chosen.folder / "runs" / row["run"], names, chosen.test)
    chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
