"""Rehearsal of failures: a fault of a given kind at a given rank and moment, once, with proof that it struck.

    colearn-hpc launch --centers 4 --restarts 3 -- fit --config run.yaml --inject+ kill@center=dc2,round=1,step=3

Every fault that strikes first writes a line into ``centers/NAME/faults.jsonl``, and a run that is started again does
not strike again where a line stands already.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import colearn_hpc._lightning as pl
from colearn_hpc import faults
from colearn_hpc._lightning import Callback
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer.standing import Standing

KINDS = ("raise", "oom", "kill", "segfault", "hang", "nan", "nospace", "drop-link", "lost-gpu")
MOMENTS = ("step", "validation", "exchange", "checkpoint")


@dataclass(frozen=True)
class Fault:
    """One fault, as ordered.

    Attributes:
        text: the order.
        kind: ``raise`` (RuntimeError), ``oom`` (MemoryError; on a GPU torch's own), ``kill`` (SIGKILL), ``segfault``,
            ``hang`` (for ``seconds``), ``nan`` (in the weights), ``nospace`` (the disk is full), ``drop-link`` (takes
            network ``device`` down for ``seconds``; root only), ``lost-gpu`` (a kernel's assertion fails; without a GPU
            only the error that follows).
        center: name of the data center.
        rank: center_rank.
        round: i, from 0.
        epoch: local epoch in the round, from 0.
        step: batch in the epoch, from 0.
        at: ``step``, or ``validation``, ``exchange`` (in the mean; leaders), ``checkpoint`` (resume point written, not
            yet in its place; leaders).
        times: how often it strikes, over all restarts.
        seconds: for ``hang`` and ``drop-link``; 0: for ever.
        device: for ``drop-link``.
    """

    text: str
    kind: str
    center: str
    rank: int = 0
    round: int = 0
    epoch: int = 0
    step: int = 0
    at: str = "step"
    times: int = 1
    seconds: float = 0.0
    device: str = "eth0"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """``KIND@center=NAME,rank=R,round=I,epoch=E,step=S,...``; what is left out is 0.

        Raises:
            ConfigurationError: the order cannot be read.
        """
        kind, at, places = text.partition("@")
        values = dict(re.findall(r"(\w+)=([^,]+)", places))
        try:
            if (
                not at
                or kind not in KINDS
                or values.get("at", "step") not in MOMENTS
                or len(values) != places.count("=")
            ):
                raise ValueError
            numbers: dict[str, Any] = {key: int(values.pop(key)) for key in _NUMBERS if key in values}
            if "seconds" in values:
                numbers["seconds"] = float(values.pop("seconds"))
            return cls(text=text, kind=kind, **numbers, **values)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f'--inject "{text}" cannot be read; write e.g. "kill@center=dc1,rank=0,round=2,epoch=0,step=3", with a '
                f"kind of {', '.join(KINDS)} and at= one of {', '.join(MOMENTS)}"
            ) from None


_NUMBERS = ("rank", "round", "epoch", "step", "times")


class FaultInjector(Callback):
    """Strikes with the faults that concern this rank.

    Args:
        orders: texts for :meth:`Fault.parse`.
        standing: tells how the run stands, :meth:`CoLearning.standing`.
    """

    def __init__(self, orders: list[str], standing: Callable[[], Standing]) -> None:
        self._faults = [Fault.parse(order) for order in orders]
        self._standing = standing
        self._epoch = (0, 0)  # round, local epoch: the run counts on before the epoch's last moments

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        faults.on_moment(lambda moment: self._due(moment, pl_module))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self._standing()
        self._epoch = (now.round, now.epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._due("step", pl_module, batch_idx)()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._due("validation", pl_module, batch_idx)()

    def _due(self, moment: str, module: pl.LightningModule, step: int = 0) -> Callable[[], None]:
        """What strikes at ``moment``, if it belongs to this place in the run."""
        due: list[Fault] = []
        if self._faults:
            now = self._standing()
            me = (now.center, now.rank)
            for fault in self._faults:
                here = (fault.center, fault.rank) == me and fault.at == moment
                place = (fault.round, self._epoch[1] if moment == "exchange" else fault.epoch)
                if here and place == self._epoch and fault.step == step:
                    due.append(fault)

        def strike() -> None:
            for fault in due:
                self._fire(fault, module)

        return strike

    def _fire(self, fault: Fault, module: pl.LightningModule) -> None:
        file = self._standing().center_folder / "faults.jsonl"
        if count_fired(file).get(fault.text, 0) >= fault.times:
            return
        with file.open("a") as lines:
            lines.write(json.dumps({"fault": fault.text, "time": round(time.time(), 3)}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        strike(fault, module)


def count_fired(file: Path) -> dict[str, int]:
    """How often each fault has struck, as ``faults.jsonl`` tells."""
    fired: dict[str, int] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        text = json.loads(line)["fault"]
        fired[text] = fired.get(text, 0) + 1
    return fired


def strike(fault: Fault, module: pl.LightningModule) -> None:
    """Let it happen, here and now."""
    if fault.kind == "raise":
        raise RuntimeError(f"rehearsed: {fault.text}")
    if fault.kind == "oom":
        if module.device.type == "cuda":
            torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device=module.device)
        raise MemoryError(f"rehearsed: {fault.text}")
    if fault.kind == "lost-gpu":
        if module.device.type == "cuda":
            torch._assert_async(torch.zeros((), device=module.device))
            torch.cuda.synchronize()
        raise RuntimeError(f"CUDA error: device-side assert triggered (rehearsed: {fault.text})")
    if fault.kind == "nospace":
        raise OSError(28, "No space left on device (rehearsed)")
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault.kind == "hang":
        time.sleep(fault.seconds or 10**9)
    if fault.kind == "nan":
        with torch.no_grad():
            next(p for p in module.parameters() if p.requires_grad).fill_(float("nan"))
    if fault.kind == "drop-link":
        again = f"; sleep {fault.seconds}; ip link set {fault.device} up" if fault.seconds else ""
        subprocess.Popen(["sh", "-c", f"ip link set {fault.device} down{again}"])
