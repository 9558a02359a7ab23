"""A data center without a Trainer, quick to start: it goes through rounds by the real averager, and can be killed.

usage: summing.py FOLDER ROUNDS SIZE PAUSE SETTINGS [FEDERATION SITE]

With FEDERATION and SITE this process is that site. Without, this MPI world holds so many "centers" of SETTINGS, each
with a folder FOLDER/dcK. SETTINGS: JSON, of Settings: sums, secure, weighting, codec (by name), on_failure.
"Training" is a function of the weights and of numbers drawn by (round, data center); with "wanders" in SETTINGS also
of a number that differs each time, as on a GPU that does not repeat itself. "kill_at": the process kills itself in the
middle of that round's exchange, once.
FOLDER/rounds has a line per round; at the end FOLDER/done has the digest of the shared model. FOLDER/own.bin: what
nobody else may see, its numbers and weights.
"""

import toy  # first: makes torchvision importable
import hashlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from colearn_hpc import DataCenter, faults
from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.errors import LeftBehindError, LeftOut
from colearn_hpc.join import as_site, read_membership
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.reports import CenterReport
from colearn_hpc.protocol.run import Decision, RoundPlace
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averaging import MeanAverager
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import RoundEnd
from colearn_hpc.trainer.sums import Prepared, WholeSums

toy.quiet()
logging.basicConfig(format="%(asctime)s %(message)s")
folder, rounds, size, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
chosen = json.loads(sys.argv[5])
wanders, kill_at, standing = chosen.pop("wanders", False), chosen.pop("kill_at", None), [0]
codec = codec_of(chosen.pop("codec", "fp32"))
membership = read_membership(*sys.argv[6:8]) if len(sys.argv) > 6 else None
center = as_site(DataCenter.join(chosen.pop("centers", 1)), membership)
settings = Settings(None, None, codec=codec, lanes=1, federated=membership is not None, **chosen)
if membership is None:
    folder /= center.name
folder.mkdir(parents=True, exist_ok=True)
place = Place.of(center, may_miss=settings.may_miss, membership=membership)
index = place.between.index
hiding = None
if settings.secure:
    from colearn_hpc.trainer.secure_sums import SecureSums

    hiding = SecureSums(place, settings, folder)
sums = WholeSums(place, settings, hiding) if settings.whole_numbers else None
prepare, averager = WholeSums.prepare, MeanAverager(place, settings, sums)


def recorded(self, mean):
    found = prepare(self, mean)
    with (folder / "own.bin").open("ab") as file:
        if isinstance(found, Prepared):
            file.write(found.source.vector.numpy()[:4000].tobytes())
        file.write(mean.model.pack().numpy()[:4000].tobytes())
    return found


def struck(moment):
    """Die in the middle of an exchange."""
    if moment == "exchange" and standing[0] == kill_at and not (folder / "struck").exists():
        (folder / "struck").touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), float(index)))
        self.register_buffer("variance", torch.full((size // 10 + 1,), 1.0))


def train(module, round_):
    time.sleep(pause)
    draw = np.random.default_rng([round_, index])
    with torch.no_grad():
        module.weight.mul_(0.999).add_(torch.from_numpy(draw.standard_normal(size, dtype=np.float32)), alpha=0.01)
        module.variance.mul_(0.9).add_(torch.from_numpy(draw.random(len(module.variance), dtype=np.float32)), alpha=0.1)
        if wanders:
            module.weight.add_(torch.randn(size, generator=torch.Generator().manual_seed(os.getpid())), alpha=1e-4)


def save(round_, module):
    torch.save((round_, module.state_dict(), averager.state_dict()), folder / "point.tmp")
    (folder / "point.tmp").replace(folder / "point")


def go():
    talk, module = place.conversation, Model()
    talk.meet(Topic(TopicKind.START), "the same settings")
    run_id = talk.decide(Topic(TopicKind.RUN_ID), lambda: "a run")
    averager.watch(module)
    if (folder / "point").exists():
        now, weights, state = torch.load(folder / "point")
        module.load_state_dict(weights)
        averager.load_state_dict(state)
    else:
        now = 0
        place.between.broadcast([module.weight, module.variance])
        averager.start_from(module)
        save(0, module)
    if hiding is not None:
        hiding.join(run_id)
    WholeSums.prepare = recorded
    faults.on_moment(lambda moment: lambda: struck(moment))
    while now < rounds:
        standing[0] = now
        averager.begin_epoch(module)
        train(module, now)
        averager.end_epoch(module)
        here = RoundPlace(now, 1, now, last=now + 1 >= rounds)
        report = CenterReport(center.name, examples=10 + index)
        told = lambda change, given: Decision(change, 1).to_plain()  # noqa: E731
        found = averager.take(RoundEnd(module, [], report, here, told, known=now))
        now = found.others.round
        with (folder / "rounds").open("a") as file:
            changed = "void" if found.void else found.decision.change.hex()
            print(now, changed, found.report.divergence.hex(), found.report.absent, file=file)
        now += 1
        save(now, module)
    place.between.finish(None)
    content = torch.cat([module.weight.detach(), module.variance]).numpy().tobytes()
    (folder / "done").write_text(hashlib.sha256(content).hexdigest())


try:
    go()
except LeftBehindError as error:
    print(error, file=sys.stderr)
    sys.exit(86)
except LeftOut:
    (folder / "done").write_text("left out")
