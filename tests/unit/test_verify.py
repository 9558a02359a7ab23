"""``colearn-hpc verify`` over the folder of a run that was really trained, stopped, and resumed with more rounds."""

import json
import shutil

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.cli import main
from colearn_hpc.trainer.model_digest import model_digest

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Promise(pl.Callback):
    def terms(self):
        return {"differential privacy": "noise 1, ε up to 8"}


def fit(run, rounds, resume=False):
    pl.seed_everything(1, verbose=False)
    colearning = CoLearning(rounds=rounds, local_epochs=1, local_epochs_rule="fle", run_dir=run)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, callbacks=[colearning, Promise()], **QUIET)
    x = torch.randn(12, 4)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4)
    trainer.fit(Net(), loader, ckpt_path=colearning.resume_path() if resume else None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    fit(run, rounds=2)
    fit(run, rounds=4, resume=True)
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def said(run, capsys, *options):
    code = main(["verify", str(run), *options])
    return code, capsys.readouterr().out


def change(path, edit):
    content = [json.loads(text) for text in path.read_text().splitlines()]
    edit(content)
    path.write_text("".join(json.dumps(line) + "\n" for line in content))


def test_it_holds(run, capsys):
    code, out = said(run, capsys)
    assert code == 0 and out.endswith("\nholds\n"), out
    assert "from round 2 on dc0 agreed on sha256:" in out and "CoLearning(rounds): 2 -> 4" in out
    assert "dc0 gave to 4 of 4 rounds, trained on sha256:" in out and "noise 1, ε up to 8" in out
    assert "agreed     protocol version = 1" in out and "shared.ckpt is the shared model after round 3" in out
    head = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])["chain"]
    assert said(run, capsys, "--head", head)[0] == 0
    code, out = said(run, capsys, "--head", "sha256:" + "0" * 64)
    assert code == 1 and "the two folders tell two runs" in out


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda lines: lines[1].update(local_epochs=2), "round 1 does not follow"),
        (lambda lines: lines[3]["centers"][0].update(data="sha256:0"), "round 3 does not follow"),
        (lambda lines: lines.pop(1), "rounds 1 to 1 are missing"),
        (lambda lines: lines.pop(), "which no round has"),
        (lambda lines: lines[2].pop("chain"), "has no `chain`"),
        (lambda lines: lines.append({"round": 4}), "line 5 is damaged"),
    ],
)
def test_a_changed_log_is_found(edit, text, run, capsys):
    change(run / "rounds.jsonl", edit)
    code, out = said(run, capsys)
    assert code == 1 and text in out and out.endswith("does not hold\n"), out


def test_a_changed_contract_is_found(run, capsys):
    path = run / "contract.json"
    path.write_text(path.read_text().replace("ε up to 8", "ε up to 1"))
    code, out = said(run, capsys)
    assert code == 1 and "it was changed, or damaged" in out
    path.unlink()
    code, out = said(run, capsys)
    assert code == 1 and "contract.json is missing" in out


def test_a_changed_model_is_found(run, capsys):
    path = run / "shared.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["net.1.num_batches_tracked"] += 1  # a counter stays in its data center
    torch.save(checkpoint, path)
    assert said(run, capsys)[0] == 0
    checkpoint["state_dict"]["net.0.bias"][0] = torch.nextafter(
        checkpoint["state_dict"]["net.0.bias"][0], torch.ones(())
    )
    torch.save(checkpoint, path)
    code, out = said(run, capsys)
    assert code == 1 and "which no round has" in out
    path.write_bytes(b"no checkpoint")
    code, out = said(run, capsys)
    assert code == 1 and "cannot be read" in out


def test_a_run_of_before(run, capsys):
    """Read and resumed as ever; verified from where there is a chain."""

    def as_old(lines):
        del lines[2:]
        for line in lines:
            del line["chain"], line["centers"][0]["data"], line["centers"][0]["model"]

    change(run / "rounds.jsonl", as_old)
    (run / "contract.json").unlink()
    for point in (run / "centers" / "dc0").glob("resume-round000004*"):
        point.unlink()  # what is left is from before the last round: 3 rounds done
    fit(run, rounds=5, resume=True)
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 4, "lines 0, 1, 3 and 4: line 2 was lost by hand"
    code, out = said(run, capsys)
    assert code == 1 and "rounds 0 to 1 were written before there was a chain" in out


def test_digest_of_a_model():
    state = {"a": torch.arange(4.0), "b": torch.tensor(1.0, dtype=torch.bfloat16), "count": torch.tensor(3)}
    digest = model_digest(state)
    assert model_digest(dict(reversed(state.items()))) == digest == model_digest(state | {"count": torch.tensor(4)})
    for other in (
        state | {"a": torch.arange(4.0).reshape(2, 2)},
        state | {"a": torch.arange(4.0).double()},
        state | {"b": torch.tensor(1.0078125, dtype=torch.bfloat16)},
        {"c" if key == "a" else key: value for key, value in state.items()},
    ):
        assert model_digest(other) != digest
