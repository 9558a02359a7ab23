"""The data module: own file only, batched preparation, the same batches after a resume, clear errors."""

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from colearn_hpc.data.datamodule import ShardDataModule, shard_path
from colearn_hpc.data.shards import ShardWriter
from colearn_hpc.errors import DataError


class Recorder(pl.LightningModule):
    """Trains one number and remembers the batches of each stage."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def _note(self, stage, batch):
        self.seen[stage].append(tuple(part.clone() for part in batch))
        return (self.weight - batch[0].float().mean()) ** 2

    def training_step(self, batch, index):
        return self._note("train", batch)

    def validation_step(self, batch, index):
        self._note("val", batch)

    def test_step(self, batch, index):
        self._note("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **options):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(**(settings | options))


pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def test_batches_reach_the_model_ready(tmp_path, make_shard):
    train, test = make_shard("dc0.h5", n=10), make_shard("test.h5", n=7, seed=1)
    model = Recorder()
    trainer(tmp_path).fit(model, ShardDataModule(str(train), test=str(test), batch_size=4, eval_batch_size=3))
    assert [len(y) for _, y in model.seen["train"]] == [4, 4, 2]
    assert [len(y) for _, y in model.seen["val"]] == [3, 2, 2]
    with h5py.File(test) as file:
        mean, std = np.array([0.4, 0.5, 0.6]).reshape(3, 1, 1), np.array([0.2, 0.3, 0.4]).reshape(3, 1, 1)
        expected = (file["x"][:] / 255 - mean) / std
        x, y = (torch.cat(parts) for parts in zip(*model.seen["val"], strict=True))
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert np.allclose(x, expected, atol=1e-5) and np.array_equal(y, file["y"][:])


def test_augment_is_for_training_transform_for_all(tmp_path, make_shard):
    calls = []

    def augment(x):
        calls.append(("augment", tuple(x.shape), float(x.min()) >= 0.0 and float(x.max()) <= 1.0))
        return x + 100

    def transform(x):
        calls.append(("transform", tuple(x.shape), float(x.min()) >= 200))
        return x[:, :, :2] - 5000

    model = Recorder()
    path = str(make_shard(n=4))
    data = ShardDataModule(path, test=path, batch_size=4, augment=augment, transform=transform)
    trainer(tmp_path).fit(model, data)
    trainer(tmp_path).test(model, data, verbose=False)
    # Whole batches: augmentation of [0, 1] values in training alone, mean and std, the transform at the very end.
    assert calls == [
        ("augment", (4, 3, 4, 5), True),
        ("transform", (4, 3, 4, 5), True),
        ("transform", (4, 3, 4, 5), False),
        ("transform", (4, 3, 4, 5), False),
    ]
    x = model.seen["test"][0][0]
    assert x.shape == (4, 3, 2, 5) and x.max() < -4900


def test_mean_and_std_of_a_waveform_are_not_applied_to_its_log_mel(tmp_path, make_shard):
    """They are of the samples: two numbers that mean nothing to 40 bands."""
    path = tmp_path / "wave.h5"
    metadata = {"scale": 1 / 32768, "mean": [0.0], "std": [0.5]}
    with ShardWriter(
        path, task="classification", classes=["a", "b"], kind="wave", length=2, metadata=metadata
    ) as shard:
        for label in (0, 1):
            shard.append(np.full(16_000, 8192, dtype=np.int16), label)
    data = ShardDataModule(str(path), transform=lambda x: x.mean(dim=1, keepdim=True).expand(-1, 40) - 10)
    assert torch.equal(data.ready(torch.full((2, 16_000), 8192, dtype=torch.int16)), torch.full((2, 40), -9.5))


def test_a_transform_can_be_named_on_the_command_line(tmp_path, make_shard):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(ShardDataModule, "data")
    shift = {"class_path": "colearn_hpc.data.transforms.TimeShift", "init_args": {"max_shift": 7}}
    log_mel = {"class_path": "colearn_hpc.data.audio_features.SpeechLogMel"}
    parsed = parser.parse_object({"data": {"train": str(make_shard()), "augment": shift, "transform": log_mel}})
    data = parser.instantiate_classes(parsed).data
    assert data.augment.max_shift == 7 and data.transform(torch.zeros(2, 16_000)).shape == (2, 98, 40)


def test_validation_is_the_test_set_unless_named(tmp_path, make_shard):
    train, test, val = (str(make_shard(name, n=n)) for name, n in (("a.h5", 6), ("test.h5", 4), ("val.h5", 5)))
    for given, count in ((None, 4), (val, 5)):
        model = Recorder()
        data = ShardDataModule(train, val=given, test=test)
        trainer(tmp_path).fit(model, data)
        trainer(tmp_path).test(model, data, verbose=False)
        assert sum(len(y) for _, y in model.seen["val"]) == count
        assert sum(len(y) for _, y in model.seen["test"]) == 4


def test_training_without_evaluation(tmp_path, make_shard):
    model = Recorder()
    trainer(tmp_path).fit(model, ShardDataModule(str(make_shard(n=5))))
    assert sum(len(y) for _, y in model.seen["train"]) == 5 and model.seen["val"] == []


def test_a_resumed_run_continues_with_the_same_batches(tmp_path, make_shard):
    path = str(make_shard(n=20))

    def run(epochs, **fit):
        model = Recorder()
        one = trainer(tmp_path, max_epochs=epochs)
        one.fit(model, ShardDataModule(path, batch_size=6, seed=3), **fit)
        return one, [y.tolist() for _, y in model.seen["train"]], [x for x, _ in model.seen["train"]]

    _, labels, pixels = run(4)
    half, first, _ = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, second, resumed = run(4, ckpt_path=str(tmp_path / "half.ckpt"))
    assert first + second == labels
    assert all(torch.equal(a, b) for a, b in zip(pixels[8:], resumed, strict=True))
    assert labels[:4] != labels[4:8]


def test_the_center_comes_from_the_environment(tmp_path, make_shard, monkeypatch):
    make_shard("lyon.h5", n=4), make_shard("tokyo.h5", n=9)
    monkeypatch.setenv("DATA", str(tmp_path))
    for center, examples in (("lyon", 4), ("tokyo", 9)):
        monkeypatch.setenv("COLEARN_CENTER", center)
        data = ShardDataModule("$DATA/{center}.h5")
        assert data.train_examples == examples and data.num_classes == 3


def test_only_the_own_file_is_opened(tmp_path, make_shard, monkeypatch):
    make_shard("lyon.h5")
    (tmp_path / "tokyo.h5").write_text("damaged")
    monkeypatch.setenv("COLEARN_CENTER", "lyon")
    ShardDataModule(str(tmp_path / "{center}.h5")).setup("fit")


def test_a_center_without_a_file_is_told_what_there_is(tmp_path, make_shard, monkeypatch):
    make_shard("lyon.h5"), make_shard("tokyo.h5")
    monkeypatch.setenv("COLEARN_CENTER", "oslo")
    with pytest.raises(
        DataError, match=r"data.train.*oslo.h5 of data center oslo .that folder holds lyon.h5, tokyo.h5"
    ):
        ShardDataModule(str(tmp_path / "{center}.h5")).setup("fit")


def test_a_center_without_a_name(tmp_path, monkeypatch):
    monkeypatch.delenv("COLEARN_CENTER", raising=False)
    with pytest.raises(DataError, match="COLEARN_CENTER is not set"):
        shard_path("{center}.h5", "train")


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(DataError, match="variable that is not set"):
        shard_path("$NO_SUCH/dc0.h5", "train")


def test_the_home_folder_is_found(make_shard, monkeypatch):
    path = make_shard("dc0.h5")
    monkeypatch.setenv("HOME", str(path.parent))
    assert shard_path("~/dc0.h5", "train") == path


@pytest.mark.parametrize("what", ["shape", "classes", "task"])
def test_shards_of_different_data_sets_do_not_mix(tmp_path, make_shard, what):
    train = make_shard("dc0.h5")
    other = tmp_path / "test.h5"
    if what == "classes":
        make_shard("test.h5", classes=4)
    else:
        task, y = ("multilabel", [1, 0, 0]) if what == "task" else ("classification", 0)
        classes = ["class0", "class1", "class2"]
        with ShardWriter(other, task=task, classes=classes, kind="image") as writer:
            writer.append(np.zeros((3, 9, 9) if what == "shape" else (3, 4, 5), np.uint8), y)
    with pytest.raises(DataError, match=rf"test.h5: {what} is .* but .*dc0.h5 has"):
        ShardDataModule(str(train), test=str(other)).setup("fit")


def test_several_labels_and_tokens_have_the_types_that_losses_want(tmp_path):
    path = tmp_path / "s.h5"
    with ShardWriter(path, task="multilabel", classes=["a", "b"], encoding="tokens", kind="tokens") as writer:
        writer.append(np.array([1, 2, 0], np.int32), [1, -1])
    model = Recorder()
    trainer(tmp_path).fit(model, ShardDataModule(str(path)))
    x, y = model.seen["train"][0]
    assert (x.dtype, y.dtype) == (torch.int64, torch.float32)
    assert x.tolist() == [[1, 2, 0]] and y.tolist() == [[1.0, -1.0]]


def test_prediction_runs_over_the_test_examples(tmp_path, make_shard):
    class Predictor(Recorder):
        def predict_step(self, batch, index):
            return batch[1]

    data = ShardDataModule(str(make_shard("a.h5")), test=str(make_shard("test.h5", n=7)), batch_size=3)
    labels = trainer(tmp_path).predict(Predictor(), data)
    assert torch.cat(labels).tolist() == [i % 3 for i in range(7)]


def test_overfit_batches_is_refused(tmp_path, make_shard):
    with pytest.raises(DataError, match="limit_train_batches"):
        trainer(tmp_path, overfit_batches=1).fit(Recorder(), ShardDataModule(str(make_shard())))


def test_workers_deliver_the_same_batches_in_every_epoch(tmp_path, make_shard):
    path = str(make_shard(n=12))
    runs = []
    for workers in (0, 2):
        model = Recorder()
        data = ShardDataModule(path, batch_size=5, num_workers=workers, preload=False)
        trainer(tmp_path, max_epochs=2).fit(model, data)
        runs.append([y.tolist() for _, y in model.seen["train"]])
    assert runs[0] == runs[1]


def test_val_and_test_of_one_file_are_held_once(make_shard):
    train, test = str(make_shard("a.h5")), str(make_shard("test.h5"))
    data = ShardDataModule(train, test=test)
    data.setup()
    assert data._datasets["val"] is data._datasets["test"]
