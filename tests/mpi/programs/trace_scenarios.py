"""The small runs that traces.py records, by the names of their goldens in tests/golden/traces/."""

import functools

from pytorch_lightning.callbacks import EarlyStopping

from colearn_hpc import OuterSGD

OVERLAP = {"exchange": {"overlap": True}}
NESTEROV = {"outer_optimizer": OuterSGD(learning_rate=0.7, momentum=0.9, nesterov=True)}
ON_DEVICE = {"exchange": {"device": True}}
STREAMING = NESTEROV | {"exchange": {"fragments": 2}}
SOON = functools.partial(EarlyStopping, "val_loss", min_delta=10.0, patience=2)


def scenario(*parts, centers=2, ranks=1, **settings):
    """A run, and how it is disturbed.

    Args:
        parts: settings that one ``fit`` of several has beside the common ones.
        centers: data centers.
        ranks: of each.
        settings: arguments of :func:`fit`.
    """
    return {"centers": centers, "ranks": ranks, "parts": [settings | part for part in parts or [{}]]}


SCENARIOS = {
    "plain": scenario(),
    "doubling": scenario(epsilon=0.2, rounds=4),
    "one-center": scenario(centers=1),
    "int8": scenario(exchange={"codec": "int8"}),
    "bf16": scenario(exchange={"codec": "bf16"}),
    "outer": scenario(**NESTEROV),
    "examples": scenario(weighting="examples"),
    "averaged-state": scenario(optimizer="Adam", optimizer_state="average"),
    "kept-state": scenario(optimizer="Adam", optimizer_state="keep"),
    "overlap-T1": scenario(local_epochs=1, rounds=4, **OVERLAP),
    "overlap-T2": scenario(**OVERLAP),
    "overlap-T1-to-T2": scenario(local_epochs=1, epsilon=0.2, rounds=4, **OVERLAP),
    "overlap-int8": scenario(exchange={"overlap": True, "codec": "int8"}),
    "ensemble": scenario(combine="predictions"),
    "restart-in-mid-round": scenario(fails=("dc1", 3, "1", 1)),
    "restart-after-mean": scenario(fails=("dc0", 3, "validation", 1)),
    "restart-after-mean-int8": scenario(fails=("dc1", 3, "validation", 1), exchange={"codec": "int8"}),
    "restart-overlap": scenario(fails=("dc1", 3, "1", 1), **OVERLAP),
    "sits-out": scenario(fails=("dc1", 2, "1", 9), on_failure="continue_without"),
    "first-sits-out": scenario(fails=("dc0", 3, "1", 9), on_failure="continue_without"),
    "stopped-in-mid-epoch": scenario({"stops": (3, 1)}, {}),
    "stopped-at-epoch-end": scenario({"stops": (2, "last")}, {}),
    "stopped-under-way": scenario({"stops": (2, 1)}, {}, **OVERLAP),
    "fewer-rounds": scenario({}, {"rounds": 2}),
    "more-rounds": scenario({"rounds": 2}, {}, exchange={"codec": "int8"}),
    "fewer-rounds-under-way": scenario({"stops": (2, 1)}, {"rounds": 1}, **OVERLAP),
    "max-epochs": scenario(rounds=None, trainer={"max_epochs": 5}),
    "max-steps": scenario(rounds=None, trainer={"max_steps": 14}),
    "early-stopping": scenario(rounds=None, callbacks=[SOON]),
    "one-leaves": scenario(leaves=("dc1", 2, "1")),
    "2-ranks": scenario(ranks=2, exchange={"lanes": 1}),
    "2-ranks-2-lanes": scenario(ranks=2, exchange={"lanes": 2}),
    "2-ranks-overlap": scenario(ranks=2, exchange={"lanes": 2, "overlap": True}),
    "2-ranks-restart-in-mid-round": scenario(ranks=2, exchange={"lanes": 2}, fails=("dc1", 3, "1", 1)),
    "2-ranks-restart-after-mean": scenario(ranks=2, exchange={"lanes": 2}, fails=("dc1", 3, "validation", 1)),
    "one-of-3-leaves": scenario(centers=3, leaves=("dc2", 2, "1")),
    "one-of-3-leaves-overlap": scenario(centers=3, leaves=("dc2", 2, "1"), **OVERLAP),
}
# No golden; what each must end like.
OTHERS = {
    "restart-after-mean-outer": scenario(fails=("dc1", 3, "validation", 1), **NESTEROV),
    "streaming": scenario(**STREAMING),
    "restart-after-mean-streaming": scenario(fails=("dc1", 3, "validation", 1), **STREAMING),
    "restart-after-last-means-streaming": scenario(fails=("dc0", 5, "validation", 1), **STREAMING),
}
ENDS_LIKE = {name: "streaming" if "streaming" in name else "outer" for name in OTHERS}
# From device to device: here all of it but CUDA.
DEVICE = {
    "plain": scenario(**ON_DEVICE),
    "outer": scenario(**NESTEROV, **ON_DEVICE),
    "averaged-state": scenario(optimizer="Adam", optimizer_state="average", **ON_DEVICE),
    "examples": scenario(weighting="examples", **ON_DEVICE),
    "restart-after-mean": scenario(fails=("dc1", 3, "validation", 1), **ON_DEVICE),
    "sits-out": scenario(fails=("dc1", 2, "1", 9), on_failure="continue_without", **ON_DEVICE),
    "stopped-in-mid-epoch": scenario({"stops": (3, 1)}, {}, **ON_DEVICE),
    "2-ranks": scenario(ranks=2, exchange={"lanes": 1, "device": True}),
    "2-ranks-2-lanes": scenario(ranks=2, exchange={"lanes": 2, "device": True}),
    "2-ranks-restart-in-mid-round": scenario(ranks=2, exchange={"lanes": 2, "device": True}, fails=("dc1", 3, "1", 1)),
    "one-of-3-leaves": scenario(centers=3, leaves=("dc2", 2, "1"), **ON_DEVICE),
    "2-ranks-sits-out": scenario(ranks=2, fails=("dc1", 2, "1", 9), on_failure="continue_without", **ON_DEVICE),
}
OTHERS["2-ranks-sits-out"] = scenario(ranks=2, fails=("dc1", 2, "1", 9), on_failure="continue_without")
OTHERS |= {f"device-{name}": found for name, found in DEVICE.items()}
ENDS_LIKE |= {f"device-{name}": name for name in DEVICE}
