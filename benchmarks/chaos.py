"""Random faults on 4 data centers x 2 ranks: does every run end with the bits of an undisturbed one?

    python benchmarks/chaos.py [--faults 5] [--seed 0] [--kinds raise@step ...] [--json FILE]

For each kind a real run (``colearn-hpc launch --restarts ... -- fit ... --inject ...``) on handwritten digits, with so
many faults at random data centers, ranks, rounds, local epochs and batches. A fault counts as survived when it struck
(its line stands in ``faults.jsonl``) and the run's shared model and round log are those of the undisturbed run, to
the bit. The time a fault costs is measured from its line to the moment when its data center trains again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from common import environment

CENTERS, RANKS, ROUNDS, BATCHES = 4, 2, 3, 5  # whole batches in a local epoch of the smallest shard
INSIDE = ("raise@step", "raise@validation", "oom@step", "nan@step", "hang@step", "nospace@checkpoint")
PROCESS = ("kill@step", "kill@validation", "kill@exchange", "kill@checkpoint", "segfault@step", "raise@exchange")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=5, help="of each kind (default 5: 60 in all)")
    parser.add_argument("--seed", type=int, default=0, help="of places and moments")
    parser.add_argument("--kinds", nargs="+", default=[*INSIDE, *PROCESS], choices=[*INSIDE, *PROCESS])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--folder", type=Path, help="keep the run folders here")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    data = ["data", "digits", "--out", str(folder / "digits"), "--centers", str(CENTERS)]
    subprocess.run([sys.executable, "-m", "colearn_hpc", *data], env=environment(), check=True)

    reference = run(folder, "undisturbed", [])
    if reference["code"]:
        sys.exit(f"the undisturbed run failed; see {folder}")
    epochs = [line["local_epochs"] for line in reference["rounds"]]
    print(f"undisturbed: {reference['seconds']:.0f} s, local epochs {epochs}", flush=True)
    dice, results = random.Random(arguments.seed), []
    for kind in arguments.kinds:
        orders = [order(kind, epochs, dice) for _ in range(arguments.faults)]
        result = run(folder, kind.replace("@", "-"), orders)
        same = result["code"] == 0 and result["bits"] == reference["bits"]
        survived = len(result["down"]) if same else 0
        down = result["down"] or [float("nan")]
        results.append(
            {
                "kind": kind,
                "faults": len(set(orders)),
                "struck": len(result["down"]),
                "survived": survived,
                "down_median_s": round(statistics.median(down), 1),
                "down_max_s": round(max(down), 1),
                "extra_s_per_fault": round((result["seconds"] - reference["seconds"]) / max(1, len(down)), 1),
                "code": result["code"],
            }
        )
        print(row(results[-1]), flush=True)
    struck, survived = (sum(r[key] for r in results) for key in ("struck", "survived"))
    print(f"{survived} of {struck} faults survived")
    if arguments.json:
        content = {"reference_s": reference["seconds"], "struck": struck, "survived": survived, "kinds": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(survived != struck)


def order(kind: str, epochs: list[int], dice: random.Random) -> str:
    """A fault of a kind somewhere in the run."""
    what, at = kind.split("@")
    center, of_round = dice.randrange(CENTERS), dice.randrange(ROUNDS)
    # Only leaders exchange and write.
    rank = 0 if at in ("exchange", "checkpoint") else dice.randrange(RANKS)
    epoch = 0 if at == "exchange" else dice.randrange(epochs[of_round])
    step = dice.randrange(BATCHES) if at == "step" else 0
    place = f"center=dc{center},rank={rank},round={of_round},epoch={epoch},step={step},at={at}"
    return f"{what}@{place}" + (",seconds=5" if what == "hang" else "")


def run(folder: Path, name: str, orders: list[str]) -> dict[str, Any]:
    """Launch a run with faults; what became of it."""
    command = [sys.executable, "-m", "colearn_hpc", "launch", "--centers", str(CENTERS)]
    command += ["--ranks-per-center", str(RANKS), "--restarts", str(2 * len(orders)), "--"]
    command += ["fit", "--model=Classifier", "--model.network=digits_cnn", "--data=ShardDataModule"]
    command += [f"--data.train={folder}/digits/{{center}}.h5", f"--data.test={folder}/digits/test.h5"]
    command += ["--data.batch_size=32", "--data.eval_batch_size=256", "--runs", str(folder), "--name", name]
    command += [f"--colearning.rounds={ROUNDS}", "--colearning.local_epochs=2", "--colearning.epsilon=0.02"]
    command += [f"--colearning.restarts={max(3, len(orders))}", "--trainer.accelerator=cpu"]
    command += ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    for one in orders:
        command += ["--inject+", one]
    start = time.monotonic()
    with (folder / f"{name}.out").open("w") as output:
        code = subprocess.run(command, env=environment(), stdout=output, stderr=output, timeout=1800).returncode
    seconds = time.monotonic() - start
    rounds, bits = [], ""
    if code == 0:
        rounds = [json.loads(line) for line in (folder / name / "rounds.jsonl").read_text().splitlines()]
        weights = torch.load(folder / name / "shared.ckpt", weights_only=False)["state_dict"]
        content = b"".join(value.numpy().tobytes() for value in weights.values())
        content += repr([(r["relative_change"], r["local_epochs"]) for r in rounds]).encode()
        bits = hashlib.sha256(content).hexdigest()
    return {"code": code, "seconds": seconds, "rounds": rounds, "bits": bits, "down": times_down(folder / name)}


def times_down(run_folder: Path) -> list[float]:
    """Per fault that struck: seconds until its data center trained again; 0 where it never stopped."""
    down = []
    for center in (run_folder / "centers").glob("*"):
        struck = center / "faults.jsonl"
        lines = (center / "log.txt").read_text(errors="replace").splitlines()
        starts = [moment(line) for line in lines if "training from round" in line]
        for line in struck.read_text().splitlines() if struck.exists() else ():
            fault = json.loads(line)
            stops = not fault["fault"].startswith(("hang", "nospace"))
            again = min((s for s in starts if s > fault["time"]), default=fault["time"]) if stops else fault["time"]
            down.append(again - fault["time"])
    return down


def moment(line: str) -> float:
    """The time at the head of a line of ``log.txt``, in seconds since 1970."""
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def row(result: dict[str, Any]) -> str:
    return (
        f"{result['kind']:20} struck {result['struck']} of {result['faults']}, survived {result['survived']}; training "
        f"again after {result['down_median_s']} s (max {result['down_max_s']}), {result['extra_s_per_fault']} s a fault"
    )


if __name__ == "__main__":
    main()
