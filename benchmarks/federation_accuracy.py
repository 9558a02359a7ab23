"""What codecs cost a federation in accuracy: handwritten digits over five sites and a coordinator, paired over trials.

Real processes, TLS and files: `colearn-hpc serve`, and a `colearn-hpc fit` for each site. A trial has a split, weights
and an order of the data of its own, and all arms share them. The arm ``a millionth`` is the control: float32 with a
rate that is larger by a millionth. Nobody would call that another method, so what it differs in is what training itself
makes of a last bit.

A run that is finished is not done again: stop it, and start it again, as you like.

    python benchmarks/federation_accuracy.py --json benchmarks/results/federation_accuracy.json
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _federated
from common import REPOSITORY, environment, parser, report

from colearn_hpc.studies.statistics import of_trials, paired

ARMS = {"float32": [], "a millionth": ["--model.learning_rate", 0.05000005]}
ARMS |= {codec: ["--colearning.exchange", json.dumps({"codec": codec})] for codec in ("bf16", "int8")}
CONFIG = REPOSITORY / "configs" / "quickstart.yaml"
COLEARN = [sys.executable, "-m", "colearn_hpc"]


def train(arm: str, trial: int, data: Path, folder: Path, chosen: Any) -> None:
    """One run over all sites; ``folder/NAME`` is a site's run folder. Does nothing where it has been done."""
    names = [f"dc{k}" for k in range(chosen.sites)]
    if (folder / "finished").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    agreed = _federated.agree(folder, names, "127.0.0.1", chosen.port)
    command = [*COLEARN, "fit", "--config", CONFIG, "--centers", "null", "--seed_everything", trial]
    command += ["--data.seed", trial, "--data.train", data / "{center}.h5", "--data.test", data / "test.h5"]
    command += ["--colearning.rounds", chosen.rounds, *ARMS[arm]]
    command += ["--colearning.resume_points", "false", "--trainer.logger", "false"]
    command += ["--trainer.enable_progress_bar", "false", "--federation", agreed, "--name", "run"]
    running = [_federated.coordinator(agreed)]
    try:
        for name in names:
            words = [*command, "--site", name, "--runs", folder / f"at-{name}"]
            running.append(_federated.Process(words, folder / f"{name}.log"))
        while any(process.code is None for process in running):
            if any(process.code for process in running):
                break
            time.sleep(0.05)
        if any(process.code != 0 for process in running):
            sys.exit("\n".join(process.said()[-2000:] for process in running))
    finally:
        for process in running:
            process.end()
    (folder / "finished").touch()


def found(folder: Path) -> dict[str, Any]:
    """What a run came to: the last shared model on the test part, and what a site has sent."""
    lines = [json.loads(line) for line in (folder / "at-dc0/run/rounds.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if "centers" in line]
    own = [next(one for one in line["centers"] if one["name"] == "dc0") for line in rounds]
    metrics = own[-1]["shared_metrics"]
    return {
        "rounds": len(rounds),
        "epochs": rounds[-1]["epochs_done"],
        "accuracy (%)": 100 * metrics["val_acc"],
        "loss": metrics["val_loss"],
        "sent by a site (bytes)": sum(one["bytes_sent"] for one in own),
    }


def compared(runs: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """An arm against float32, trial by trial."""
    by_arm = {
        name: {run["trial"]: run["accuracy (%)"] for run in runs if run["arm"] == name} for name in ("float32", arm)
    }
    accuracy, difference = of_trials(list(by_arm[arm].values())), paired(by_arm[arm], by_arm["float32"])
    low, high = difference.interval
    return {
        "arm": arm,
        "trials": accuracy.count,
        "accuracy (%)": accuracy.mean,
        "sd": accuracy.deviation,
        "minus float32": difference.mean,
        "95 % from": low,
        "to": high,
        "better / equal / worse": f"{difference.won} / {difference.tied} / {difference.lost}",
        "largest difference": max(abs(by_arm[arm][t] - by_arm["float32"][t]) for t in by_arm[arm]),
        "sent by a site (kB)": sum(run["sent by a site (bytes)"] for run in runs if run["arm"] == arm)
        / accuracy.count
        / 1000,
    }


def main() -> None:
    """Train what is not trained yet, and print."""
    options = parser(__doc__)
    options.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="(default: all)")
    options.add_argument("--trials", type=int, default=10, help="(default: %(default)s)")
    options.add_argument("--sites", type=int, default=5, help="K (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=8, help="of a run (default: %(default)s)")
    options.add_argument(
        "--test-fraction", type=float, default=0.4, help="of the 1,797 digits, for test (default: %(default)s)"
    )
    options.add_argument("--port", type=int, default=19944, help="of the coordinator (default: %(default)s)")
    options.add_argument("--runs", type=Path, default=Path("runs/federation_accuracy"), help="(default: %(default)s)")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was started is ended
    runs: list[dict[str, Any]] = []
    for trial in range(chosen.trials):
        data = (chosen.runs / f"data-{trial}").resolve()
        if not (data / "test.h5").exists():
            command = [*COLEARN, "data", "digits", "--out", data, "--centers", chosen.sites, "--seed", trial]
            command += ["--test-fraction", chosen.test_fraction]
            subprocess.run([*map(str, command)], env=environment(), stdout=subprocess.DEVNULL, check=True)
        for arm in chosen.arms:
            folder = (chosen.runs / f"{arm.replace(' ', '-')}-{trial}").resolve()
            train(arm, trial, data, folder, chosen)
            runs.append({"arm": arm, "trial": trial} | found(folder))
            print(f"{arm}, trial {trial}: {runs[-1]['accuracy (%)']:.2f} %", file=sys.stderr, flush=True)
    report([compared(runs, arm) for arm in chosen.arms], chosen, runs=runs)


if __name__ == "__main__":
    main()
