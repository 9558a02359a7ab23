"""The number of classes of a network, against that of the data."""

import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningCLI

from colearn_hpc.data import ShardDataModule, ShardWriter
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models import Classifier, MultilabelTask


def digits(path, classes=3, task="classification"):
    names = [f"digit {i}" for i in range(classes)]
    with ShardWriter(path, task=task, classes=names, kind="image") as writer:
        for i in range(6):
            label = i % classes if task == "classification" else [i % 2] * classes
            writer.append(np.full((1, 8, 8), i, np.uint8), label)
    return ShardDataModule(str(path), batch_size=3)


def run(folder, model, module):
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=folder, **options)
    trainer.fit(model, datamodule=module)
    return trainer


def test_left_out_it_is_the_number_of_the_data(tmp_path):
    model = Classifier("digits_cnn")
    trainer = run(tmp_path, model, digits(tmp_path / "a.h5", 3))
    assert model.network.classifier.out_features == 3 and model.hparams["num_classes"] == 3
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(again.network.classifier.weight, model.network.classifier.weight)


def test_too_few_is_an_error_that_names_both(tmp_path):
    model = Classifier("digits_cnn", num_classes=2)
    message = r"num_classes=2, but the data have 3 classes \(digit 0, digit 1, digit 2\); set num_classes=3"
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path, model, digits(tmp_path / "a.h5", 3))


def test_too_many_is_a_warning_that_names_both(tmp_path):
    model = Classifier("digits_cnn", num_classes=5)
    with pytest.warns(UserWarning, match=r"num_classes=5, but the data have 3 classes .*: 2 of the outputs"):
        run(tmp_path, model, digits(tmp_path / "a.h5", 3))
    assert model.network.classifier.out_features == 5


def test_the_right_number_says_nothing(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, Classifier("digits_cnn", num_classes=3), digits(tmp_path / "a.h5", 3))
    assert not [w for w in caught if "num_classes" in str(w.message)]


def test_data_that_do_not_tell_it(tmp_path):
    loader = torch.utils.data.DataLoader([(torch.zeros(1, 8, 8), 0)])
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **options)
    with pytest.raises(ConfigurationError, match="num_classes is not set, and the data do not tell it"):
        trainer.fit(Classifier("digits_cnn"), loader)
    trainer.fit(Classifier("digits_cnn", num_classes=10), loader)


def test_several_labels(tmp_path):
    model = MultilabelTask("digits_cnn")
    run(tmp_path, model, digits(tmp_path / "a.h5", 4, "multilabel"))
    assert model.network.classifier.out_features == 4
    for wrong in (3, 5):
        with pytest.raises(ConfigurationError, match=rf"num_classes={wrong}, but the data have 4 classes"):
            run(tmp_path, MultilabelTask("digits_cnn", num_classes=wrong), digits(tmp_path / "b.h5", 4, "multilabel"))


@pytest.mark.parametrize(("task", "kind"), [(Classifier, "classification"), (MultilabelTask, "multilabel")])
@pytest.mark.parametrize("given", [(), ("--model.num_classes=4",)])
def test_from_a_command_line(tmp_path, task, kind, given):
    """LightningCLI hands save_hyperparameters what was written, not what the constructor made of it."""
    digits(tmp_path / "a.h5", 4, kind)
    options = ["--data.batch_size=3", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    options += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    arguments = ["fit", "--model.network=digits_cnn", f"--data.train={tmp_path / 'a.h5'}", *given, *options]
    cli = LightningCLI(task, ShardDataModule, args=arguments, save_config_callback=None)
    assert cli.model.network.classifier.out_features == 4
    cli.trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = task.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(again.network.classifier.weight, cli.model.network.classifier.weight)
