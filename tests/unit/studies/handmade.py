"""Run folders made by hand: no training, no MPI."""

import json
from pathlib import Path

import yaml

STATUS = {
    "state": "finished",
    "round": 2,
    "local_epoch": 3,
    "local_epochs": 3,
    "batch": 2,
    "batches": 2,
    "samples_per_second": 512.25,
    "loss": 0.5,
    "seconds_left": None,
    "host": "n0",
    "time": 1_000_000.0,
}


def round_line(index, epochs_done, local_epochs=3, after=None, accuracy=0.9, centers=5, examples=60, sent=1000):
    return {
        "round": index,
        "local_epochs": local_epochs,
        "learning_rates": [0.03, 0.02, 0.01][:local_epochs],
        "relative_change": 0.1 / (index + 1),
        "epochs_done": epochs_done,
        "next_local_epochs": after or local_epochs,
        "centers": [
            {
                "name": f"dc{k}",
                "examples": examples * local_epochs,
                "train_seconds": 2.0,
                "wait_seconds": 0.5,
                "exchange_seconds": 0.1,
                "bytes_sent": sent,
                "steps": 2 * local_epochs,
                "divergence": 0.02 + 0.001 * k,
                "local_metrics": {"train_loss": 0.5 / (index + 1)},
                "shared_metrics": {"val_loss": 1 - accuracy, "val_acc": accuracy},
            }
            for k in range(centers)
        ],
    }


def write_run(folder: Path, accuracies=(0.8, 0.9), status="finished", centers=5, method="colearning", **line) -> Path:
    """A run folder as ``fit`` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        round_line(i, 3 * (i + 1), accuracy=accuracy, centers=centers, **line) for i, accuracy in enumerate(accuracies)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    summary = {"status": status, "ranks": centers, "rounds": len(lines), "seconds": 12.5}
    summary |= {"parameters": 100, "parameter_bytes": 400}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {
        "method": method,
        "model": {"class_path": "Classifier", "init_args": {"network": "digits_cnn"}},
        "data": {"class_path": "ShardDataModule", "init_args": {"batch_size": 32}},
        "colearning": {"epsilon": 0.06, "local_epochs_rule": "ile"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "status").mkdir(exist_ok=True)
    for k in range(centers):
        (folder / "status" / f"dc{k}.json").write_text(json.dumps(STATUS | {"host": f"n{k}"}))
    return folder
