"""Writing and reading shards: nothing lost, nothing half, in any process."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import torch
from miniatures import image_bytes, images
from torch.utils.data import DataLoader

from colearn_hpc.data import shard_writer
from colearn_hpc.data.samplers import TrainBatchSampler
from colearn_hpc.data.shards import ShardDataset, ShardWriter, check_shard, read_info
from colearn_hpc.errors import DataError


def write(path, n, *, announced, kept=None, **options):
    """A features shard whose example i is (i, i + 0.5)."""
    settings = {"task": "classification", "classes": ["a", "b"], "length": announced}
    with ShardWriter(path, **(settings | options)) as writer:
        for i in range(n):
            if kept is None or i in kept:
                writer.append(np.array([i, i + 0.5], dtype=np.float32), i % 2)
    return path


@pytest.mark.parametrize("announced", [None, 5000, 7000])
def test_every_example_arrives_whatever_was_announced(tmp_path, announced):
    dataset = ShardDataset(write(tmp_path / "s.h5", 5000, announced=announced))
    x, y = dataset[list(range(5000))]
    assert torch.equal(x, torch.stack([torch.arange(5000.0), torch.arange(5000.0) + 0.5], dim=1))
    assert torch.equal(y, torch.arange(5000) % 2)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["x"].chunks is None and file["y"].chunks is None
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_memory_held_by_the_writer_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "_BUFFER_BYTES", 64)
    writer = ShardWriter(tmp_path / "s.h5", task="classification", classes=["a"])
    for _ in range(100):
        writer.append(np.zeros(4, dtype=np.float32), 0)
        assert len(writer._x) < 5
    writer.close()
    assert read_info(tmp_path / "s.h5").examples == 100


def test_more_than_announced_is_refused(tmp_path):
    with pytest.raises(DataError, match="more examples than the 3 announced"):
        write(tmp_path / "s.h5", 4, announced=3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(3, np.float32), 0, "shape"),
        (np.zeros(2, np.float64), 0, "type"),
        (np.zeros(2, np.float32), 9, "out of range"),
        (np.zeros(2, np.float32), -1, "out of range"),
        (np.zeros(2, np.float32), "cat", "labels"),
        (np.zeros(2, np.float32), [0, 1], "labels|shape"),
    ],
)
def test_examples_that_do_not_fit_leave_no_file(tmp_path, x, y, message):
    with (
        pytest.raises(DataError, match=message),
        ShardWriter(tmp_path / "s.h5", task="classification", classes=["a", "b"]) as writer,
    ):
        writer.append(np.zeros(2, np.float32), 0)
        writer.append(x, y)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DataError])
def test_an_exception_leaves_no_file_and_keeps_the_old_one(tmp_path, error):
    path = write(tmp_path / "s.h5", 3, announced=3)
    before = path.read_bytes()
    with pytest.raises(error), ShardWriter(path, task="classification", classes=["a"]) as writer:
        for _ in range(5000):
            writer.append(np.zeros(2, np.float32), 0)
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    assert path.read_bytes() == before


def test_the_name_appears_only_at_the_end(tmp_path):
    writer = ShardWriter(tmp_path / "s.h5", task="classification", classes=["a"], length=9999)
    for _ in range(9999):
        writer.append(np.zeros(2, np.float32), 0)
    assert not (tmp_path / "s.h5").exists()
    writer.close()
    writer.close()
    assert read_info(tmp_path / "s.h5").examples == 9999


def test_an_empty_shard_is_never_written(tmp_path):
    with pytest.raises(DataError, match="would be empty"):
        write(tmp_path / "s.h5", 0, announced=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        ShardWriter(tmp_path / "file" / "s.h5", task="classification", classes=["a"])


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
    mine = shard_writer.temporary_name(tmp_path / "dc0.h5")
    process = multiprocessing.get_context("fork").Process(target=lambda: None)
    process.start()
    process.join()
    dead = mine.with_name(mine.name.replace(f".{mine.name.split('.')[-3]}.", f".{process.pid}."))
    for path in (mine, dead, tmp_path / "dc0.h5"):
        path.write_text("")
    shard_writer.remove_leftovers(tmp_path)
    assert mine.exists() and (tmp_path / "dc0.h5").exists() and not dead.exists()


def test_info_tells_what_was_written(make_shard):
    info = read_info(make_shard(n=7, source="test"))
    assert (info.task, info.kind, info.encoding, info.source) == ("classification", "image", "array", "test")
    assert (info.examples, info.shape, info.dtype) == (7, (3, 4, 5), np.uint8)
    assert info.classes == ("class0", "class1", "class2")
    assert info.metadata == {"scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def test_text_lies_in_the_head_of_the_file_and_may_be_long(tmp_path):
    long = [f"class number {i}" for i in range(9000)]
    write(tmp_path / "s.h5", 2, announced=2, classes=long, metadata={"note": "é", "empty": ""})
    info = read_info(tmp_path / "s.h5")
    assert info.classes == tuple(long) and info.metadata == {"note": "é", "empty": ""}
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs.get_id("note").dtype == "S2" and file.attrs.get_id("classes").dtype == object


def test_names_of_classes_keep_their_letters(tmp_path):
    write(tmp_path / "s.h5", 2, announced=2, classes=["été", "雪 🙂"])
    assert read_info(tmp_path / "s.h5").classes == ("été", "雪 🙂")


@pytest.mark.parametrize("preload", [True, False, "auto"])
def test_batches_are_the_examples_in_the_order_asked(make_shard, preload):
    path = make_shard(n=10)
    dataset = ShardDataset(path, preload)
    assert dataset.preloaded is (preload is not False)
    with h5py.File(path, locking=False) as file:
        x, y = dataset[[7, 0, -1, 7]]
        assert np.array_equal(x, file["x"][:][[7, 0, 9, 7]]) and np.array_equal(y, file["y"][:][[7, 0, 9, 7]])
        one, label = dataset[3]
        assert np.array_equal(one, file["x"][3]) and int(label) == file["y"][3]
    assert (x.dtype, y.dtype, x.shape, y.shape) == (torch.uint8, torch.int64, (4, 3, 4, 5), (4,))
    assert len(dataset) == 10
    for wrong in (10, -11, [0, 10]):
        with pytest.raises(IndexError):
            dataset[wrong]


def test_auto_preloads_up_to_the_limit(make_shard):
    path = make_shard(n=10)
    size = 10 * (3 * 4 * 5 + 8)
    assert ShardDataset(path, preload_limit=size).preloaded
    assert not ShardDataset(path, preload_limit=size - 1).preloaded
    with pytest.raises(DataError, match="preload"):
        ShardDataset(path, preload="yes")


@pytest.mark.parametrize(("method", "preload"), [("fork", True), ("fork", False), ("spawn", False)])
def test_two_workers_see_what_one_process_sees(make_shard, method, preload):
    """The parent has the file open first: a handle that crossed the fork would crash or return noise."""
    dataset = ShardDataset(make_shard(n=40), preload)
    dataset[[0]]
    sampler = TrainBatchSampler(dataset, 4, 1, 0)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    expected = [dataset[batch] for batch in sampler]
    assert len(batches) == 10
    for (x, y), (x0, y0) in zip(batches, expected, strict=True):
        assert torch.equal(x, x0) and torch.equal(y, y0)


@pytest.mark.parametrize("preload", [True, False])
def test_a_pickled_dataset_reads_the_same(make_shard, preload):
    dataset = ShardDataset(make_shard(n=5), preload)
    before = dataset[[4, 2]]
    after = pickle.loads(pickle.dumps(dataset))[[4, 2]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_shard_that_vanished_is_named(make_shard):
    path = make_shard()
    dataset = ShardDataset(path, preload=False)
    path.unlink()
    with pytest.raises(DataError, match=r"dc0\.h5.*moved"):
        dataset[0]


def test_a_shard_that_was_replaced_is_not_read_at_the_old_places(make_shard):
    path = make_shard(n=10)
    dataset = ShardDataset(path, preload=False)
    make_shard(n=9)
    with pytest.raises(DataError, match="was replaced"):
        dataset[0]


def test_a_shard_cut_while_in_use_is_noticed(make_shard):
    path = make_shard(n=10)
    dataset = ShardDataset(path, preload=False)
    dataset[0]
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(DataError, match="shorter than it was"):
        dataset[list(range(10))]


@pytest.mark.parametrize("preload", [True, False])
def test_image_bytes_come_back_as_pixels(tmp_path, preload):
    pixels = images(6, size=9)
    with ShardWriter(
        tmp_path / "s.h5", task="classification", classes=["a", "b"], encoding="jpeg", kind="image"
    ) as writer:
        for i in range(6):
            writer.append(image_bytes(pixels[i]), i % 2)
    dataset = ShardDataset(tmp_path / "s.h5", preload)
    x, y = dataset[[5, 1]]
    assert np.array_equal(x, pixels[[5, 1]].transpose(0, 3, 1, 2)) and y.tolist() == [1, 1]
    assert check_shard(tmp_path / "s.h5").class_counts.tolist() == [3, 3]


def test_decoding_is_seeded_by_seed_epoch_and_example(tmp_path):
    with ShardWriter(tmp_path / "s.h5", task="classification", classes=["a"], encoding="jpeg", kind="image") as writer:
        for pixels in images(3):
            writer.append(image_bytes(pixels), 0)

    def noise(content, rng):
        return rng.integers(0, 256, (3, 2, 2)).astype(np.uint8)

    def draw(seed, epoch, index):
        dataset = ShardDataset(tmp_path / "s.h5", decode=noise, seed=seed)
        sampler = TrainBatchSampler(dataset, 3, 1, 0)
        sampler.set_epoch(epoch)
        batch = next(iter(sampler))
        return dataset[batch][0][batch.index(index)].tolist()

    assert draw(0, 0, 1) == draw(0, 0, 1)
    draws = [draw(*which) for which in [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]]
    assert all(draws[i] != draws[j] for i in range(4) for j in range(i))


def test_images_of_several_sizes_form_no_batch(tmp_path):
    with ShardWriter(tmp_path / "s.h5", task="classification", classes=["a"], encoding="jpeg", kind="image") as writer:
        writer.append(image_bytes(images(1, size=8)[0]), 0)
        writer.append(image_bytes(images(1, size=9)[0]), 0)
    with pytest.raises(DataError, match="several sizes"):
        ShardDataset(tmp_path / "s.h5")[[0, 1]]


def test_several_labels_per_example(tmp_path):
    with ShardWriter(
        tmp_path / "s.h5", task="multilabel", classes=["a", "b"], encoding="tokens", kind="tokens"
    ) as writer:
        writer.append(np.array([1, 2, 0], np.int32), [1, 0])
        writer.append(np.array([3, 0, 0], np.int32), [-1, 1])
    report = check_shard(tmp_path / "s.h5")
    assert report.class_counts.tolist() == [1, 1]
    x, y = ShardDataset(tmp_path / "s.h5")[[1, 0]]
    assert x.tolist() == [[3, 0, 0], [1, 2, 0]] and y.tolist() == [[-1, 1], [1, 0]]
