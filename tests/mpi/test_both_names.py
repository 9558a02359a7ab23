"""Lightning has two names. Programs that say the other one, ``lightning.pytorch``, find the same package.

``COLEARN_LIGHTNING_PYTHON`` names a Python that has the package ``lightning`` besides everything else
(``make build/lightning/.done``).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi
PROGRAMS = Path(__file__).parent / "programs"
SCENARIOS = re.findall(r"@scenario\ndef (\w+)", (PROGRAMS / "unchanged.py").read_text())


@pytest.fixture(scope="module")
def python():
    """A Python with both names, and the environment in which its mpi4py finds the MPI of this one."""
    found = os.environ.get("COLEARN_LIGHTNING_PYTHON")
    if not found:
        pytest.skip("no lightning: set COLEARN_LIGHTNING_PYTHON to a Python that has it")
    return found


LIBRARIES = sorted((Path(sys.prefix) / "lib").glob("libmpi.so.*"))  # of the registry's Open MPI; elsewhere it is found
ENV = {"MPI4PY_LIBMPI": str(LIBRARIES[0])} if LIBRARIES else {}


@pytest.fixture(scope="module")
def finished(launch, python, tmp_path_factory):
    env = ENV | {"COLEARN_TEST_LIGHTNING": "lightning.pytorch"}
    return launch(2, "unchanged.py", tmp_path_factory.mktemp("unchanged"), env=env, python=python)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(finished, name):
    assert f"passed {name}\n" in finished.out, finished.err


def run(python, code, *arguments, **env):
    everything = dict(os.environ) | ENV | env
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, env=everything, timeout=120)


REPAIR = "from colearn_hpc._quick_imports import import_quickly; import_quickly()\n"
FIT = """
quiet = dict(max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
colearning = CoLearning(rounds=1, local_epochs=1, schedule="none", run_dir="run")
environment = DataCenterEnvironment(1)
trainer = L.Trainer(callbacks=[colearning], plugins=[environment], enable_checkpointing=False, **quiet)
trainer.fit(Boring())
print("taken:", isinstance(colearning, L.Callback), issubclass(Classifier, L.LightningModule))
"""
LIGHTNING = "import lightning as L\nfrom lightning.pytorch.demos.boring_classes import BoringModel as Boring\n"
USUAL = "import pytorch_lightning as L\nfrom pytorch_lightning.demos.boring_classes import BoringModel as Boring\n"
OURS = "from colearn_hpc import CoLearning, DataCenterEnvironment\nfrom colearn_hpc.models import Classifier\n"


@pytest.mark.parametrize(
    "imports",
    [LIGHTNING + OURS, OURS + LIGHTNING, "import pytorch_lightning\n" + LIGHTNING + OURS, OURS + USUAL],
    ids=["lightning first", "lightning last", "both", "the usual name last"],
)
def test_whatever_is_imported_first(python, tmp_path, monkeypatch, imports):
    monkeypatch.chdir(tmp_path)
    done = run(python, REPAIR + imports + FIT)
    assert "taken: True True" in done.stdout, done.stderr


def test_a_name_that_comes_too_late_is_told_so(python, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(python, REPAIR + "import pytorch_lightning\n" + OURS + LIGHTNING + FIT)
    assert "this Trainer is of lightning.pytorch" in done.stderr and "import lightning.pytorch before" in done.stderr


MODULE = """
import {name} as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Mine(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).pow(2).mean()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("how", ["on the command line", "in a file"])
def test_the_command_line_goes_by_the_users_class(python, tmp_path, monkeypatch, name, how):
    (tmp_path / "mine.py").write_text(MODULE.format(name=name))
    (tmp_path / "mine.yaml").write_text("model:\n  class_path: mine.Mine\n")
    monkeypatch.chdir(tmp_path)
    model = ["--model=mine.Mine"] if how == "on the command line" else ["--config", "mine.yaml"]
    code = "import sys; from colearn_hpc.cli import main; sys.exit(main(['fit', *sys.argv[1:]]))"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(python, code, *model, "--colearning.rounds=1", "--trainer.accelerator=cpu", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "run" / "shared.ckpt").exists()
