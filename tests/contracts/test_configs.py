"""Every file in configs/ trains a round through the command line, on data that its own first lines tell how to make.

The data are miniatures in the true on-disk format. All runs share one process and one data center.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import miniatures
import pytest
import yaml

from colearn_hpc.cli import main
from colearn_hpc.studies.grid import RunPlan, expand
from colearn_hpc.studies.study_file import read_study

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

# The paper's settings: batch of a data center, T_0 (None: not in the paper), and the column of its table.
PAPER = {
    "cifar10_vgg19": (32, None, "val_acc"),
    "cifar10_resnet152": (32, 5, "val_acc"),
    "cifar10_inception_v4": (32, 20, "val_acc"),
    "cifar10_inception_resnet_v2": (32, 5, "val_acc"),
    "cifar10_densenet40": (32, 5, "val_acc"),
    "imagenet_vgg19": (256, None, "val_acc"),
    "imagenet_inception_v4": (256, None, "val_acc"),
    "imagenet_resnetv2_101": (256, None, "val_acc"),
    "toxic_bigru": (128, None, "val_auc"),
    "toxic_capsule": (128, None, "val_auc"),
    "speech_cnn": (None, None, "val_acc"),
    "audioset_fc": (128, None, "val_map"),
    "audioset_crnn": (128, None, "val_map"),
}

# The miniatures hold a few examples per data center, so a local epoch is one step. The large networks are whole, all
# layers and classes; what shrinks are their pictures: at 299 pixels a step takes a minute on a CPU. Inception's layers
# need 75, and Inception-V4 more: after one step its running statistics are far from the batch's, and at 96 pixels its
# evaluation overflows.
SMALL = {
    "cifar10_resnet152": {"model.init_args.network_args.input_size": 32},
    "cifar10_inception_v4": {"model.init_args.network_args.input_size": 160},
    "cifar10_inception_resnet_v2": {"model.init_args.network_args.input_size": 75},
    "imagenet_vgg19": {"data.init_args.image_size": 32},
    "imagenet_inception_v4": {"data.init_args.image_size": 160},
    "imagenet_resnetv2_101": {"data.init_args.image_size": 64},
}
BUDGET = {
    "colearning.rounds": 1,
    "colearning.local_epochs": 1,
    "colearning.resume_points": "false",
    "trainer.accelerator": "cpu",
    "trainer.num_sanity_val_steps": 0,
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "data.init_args.num_workers": 0,
}


def content_of(name: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def data_command(name: str) -> list[str]:
    """``colearn-hpc data …`` from the first lines of a config."""
    lines = [line[1:].strip() for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    first = next(i for i, line in enumerate(lines) if line.startswith("colearn-hpc data "))
    text = lines[first]
    while text.endswith("\\"):
        first += 1
        text = text[:-1] + lines[first]
    return shlex.split(text.partition("#")[0])[2:]


def miniature_of(source: str, out: str, folder: Path) -> Path | None:
    """A small data set in the form that ``source`` reads."""
    if source == "digits":
        return None
    if source == "cifar10":
        return miniatures.cifar10(folder, per_batch=2, form="tar.gz")
    if source == "imagenet":
        return miniatures.imagenet_official(folder)
    if source == "toxic":
        return miniatures.toxic(folder)
    if source == "speech-commands":
        return miniatures.write_tar(folder / "speech.tar.gz", miniatures.speech_commands_files())
    if source == "wav-folder":
        return miniatures.write_zip(folder / "digits.zip", miniatures.spoken_digits_files(takes=8))
    assert source == "audioset", f"no miniature for {source}"
    return miniatures.audioset(folder, logmel="logmel" in out)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder to run in, with the data of all configs made by the commands in their first lines."""
    folder = tmp_path_factory.mktemp("workplace")
    done = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in NAMES:
            command = data_command(name)
            if tuple(command) in done:
                continue
            done.add(tuple(command))
            out = command[command.index("--out") + 1]
            source = miniature_of(command[0], out, folder / "sources" / Path(out).name)
            if source is not None:
                assert not command[1].startswith("-")
                command[1] = str(source)
            if "--vectors" in command:
                command[command.index("--vectors") + 1] = str(miniatures.word_vectors(folder / "mini.vec"))
            assert main(["data", *command]) == 0, command
        yield folder


def test_every_table_of_the_paper_has_its_configs():
    assert set(NAMES) == {*PAPER, "quickstart", "spoken_digits_cnn"}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name):
    content, (batch, epochs, _) = content_of(name), PAPER[name]
    assert content["name"] == name and content["centers"] == 5
    assert content["colearning"]["decay"] == 0.25 and content["model"]["init_args"]["learning_rate"] == 0.01
    ranks = 4 if name.startswith("imagenet") else 1  # its first lines start four a data center
    assert batch in (None, content["data"]["init_args"]["batch_size"] * ranks)
    assert epochs in (None, content["colearning"]["local_epochs"])


@pytest.fixture
def fit(workplace, monkeypatch):
    """``fit(config, name, more options)`` -> the record of the one round; in this process, as data center dc0."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLEARN_CENTER", "dc0")
    monkeypatch.setattr(sys, "argv", ["colearn-hpc"])  # fit writes it

    def run(config: Path, name: str, more: dict | None = None) -> dict:
        options = [f"--{key}={value}" for key, value in (BUDGET | (more or {})).items()]
        assert main(["fit", "--config", str(config), f"--name={name}", "--centers=1", *options]) == 0
        (line,) = (workplace / "runs" / name / "rounds.jsonl").read_text().splitlines()
        return json.loads(line)

    return run


@pytest.mark.exhaustive(sample=6)
@pytest.mark.parametrize("name", NAMES)
def test_config_trains_a_round(name, fit, workplace):
    record = fit(CONFIGS / f"{name}.yaml", name, SMALL.get(name))
    (center,) = record["centers"]
    data = Path(content_of(name)["data"]["init_args"]["train"]).parent
    there = json.loads((workplace / data / "dataset.json").read_text())
    assert center["name"] == "dc0" and center["examples"] == there["centers"][0]["examples"] > 1
    assert 0 < record["relative_change"] < math.inf
    metric = PAPER[name][2] if name in PAPER else "val_acc"
    assert 0 <= center["shared_metrics"][metric] <= 1 and math.isfinite(center["shared_metrics"]["val_loss"])
    if name.startswith(("cifar10", "spoken", "speech")):
        matrix = json.loads((workplace / "runs" / name / "centers" / "dc0" / "confusion.json").read_text())
        split = "val" if "speech" in name else "test"
        assert matrix["stage"] == "val" and len(matrix["classes"]) == len(matrix["counts"])
        assert [sum(map(sum, matrix["counts"]))] == [e["examples"] for e in there["evaluation"] if e["split"] == split]
    for file in (workplace / "runs" / name).glob("*.ckpt"):  # half a GiB for VGG-19
        file.unlink()


def plans_of(study: str, smoke: bool = False) -> list[RunPlan]:
    return expand(read_study(CONFIGS / "studies" / f"{study}.yaml", smoke))


@pytest.mark.parametrize(
    ("study", "config_of"),
    [
        ("table3", {model: f"imagenet_{model}" for model in ("vgg19", "inception_v4", "resnetv2_101")}),
        ("table4", {model: f"toxic_{model}" for model in ("bigru", "capsule")}),
        ("table5", {"": "speech_cnn"}),
    ],
)
def test_studies_train_what_the_configs_say(study, config_of):
    """Net, task, data and batch of each model of a table are those of its own file, co-learning's rules too."""
    plans = plans_of(study)
    assert {plan.model for plan in plans} == set(config_of) and {plan.arm for plan in plans} == {"vanilla", "clr+ile"}
    for plan in plans:
        content = content_of(config_of[plan.model])
        content["data"]["init_args"]["seed"] = plan.seed
        assert plan.settings["model"] == content["model"] and plan.settings["data"] == content["data"]
        changed = {"rounds": None, "schedule": "clr", "local_epochs_rule": "ile"}
        if plan.arm == "clr+ile":
            assert plan.settings["colearning"] == content["colearning"] | changed


@pytest.mark.parametrize("pooling", ["ap", "mp", "sa", "ma"])
def test_each_pooling_of_table_6_trains_a_round(pooling, fit, tmp_path):
    plan = next(p for p in plans_of("table6") if (p.arm, p.model) == ("clr+ile", pooling))
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(plan.settings))
    (center,) = fit(path, f"table6-{pooling}")["centers"]
    assert 0 <= center["shared_metrics"]["val_map"] <= 1 and "val_dprime" in center["shared_metrics"]


@pytest.mark.parametrize("study", ["table3", "table4", "table5", "table6"])
def test_smoke_studies_give_all_arms_the_same_samples(study):
    """A fraction of the batches: vanilla's one data center takes as many steps as the five together."""
    for plan in plans_of(study, smoke=True):
        limit = plan.settings["trainer"]["limit_train_batches"]
        assert isinstance(limit, float) and plan.settings["trainer"]["max_epochs"] == 1
        examples = {"table3": 1_281_167, "table4": 159_571, "table5": 51_088, "table6": 2_041_789}[study]
        batch = plan.settings["data"]["init_args"]["batch_size"] * plan.ranks_per_center
        assert int(math.ceil(examples / batch) * limit) == 5 * int(math.ceil(examples / 5 / batch) * limit) == 10
