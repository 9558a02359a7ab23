"""Images in folders: every form gives the same shards, every fault a clear answer."""

import numpy as np
import pytest
from miniatures import CLASSES, image_bytes, image_files, images, write_folder, write_tar, write_zip

from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.data.sources.imagefolder import ImageFolder
from colearn_hpc.errors import DataError


def packed(path, out, size=None, names=("a", "b"), **request):
    return pack(ImageFolder(str(path), size), Request(out, names, **request))


def contents(folder):
    """Every example of every shard as bytes, sorted: what the shards hold, up to order."""
    found = {}
    for path in sorted(folder.glob("*.h5")):
        dataset = ShardDataset(path)
        x, y = dataset[list(range(len(dataset)))]
        found[path.name] = sorted((int(label), image.numpy().tobytes()) for image, label in zip(x, y, strict=True))
    return found


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("top", ["", "cifar/images/"])
def test_every_form_gives_the_same_shards(tmp_path, form, top):
    files = image_files()
    expected = packed(write_folder(tmp_path / "plain", files), tmp_path / "expected")
    shuffled = {f"{top}{name}": files[name] for name in reversed(list(files))}
    if form == "folder":
        source = write_folder(tmp_path / "source", shuffled)
    else:
        source = (write_zip if form == "zip" else write_tar)(tmp_path / f"source.{form}", shuffled)
    manifest = packed(source, tmp_path / "out").manifest
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert manifest["classes"] == list(CLASSES) == expected.manifest["classes"]
    assert [entry["examples"] for entry in manifest["centers"]] == [9, 9]


def test_pixels_and_labels_are_those_of_the_files(tmp_path):
    source = write_folder(tmp_path / "source", image_files(per_class=4))
    packed(source, tmp_path / "out", names=("only",))
    x, y = ShardDataset(tmp_path / "out" / "only.h5")[list(range(12))]
    expected = images(12)
    by_class = [i for label in range(3) for i in range(label, 12, 3)]
    assert np.array_equal(x, expected[by_class].transpose(0, 3, 1, 2))
    assert y.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    source = write_folder(tmp_path / "source", image_files())
    packed(source, tmp_path / "out")
    pixels = images(18) / 255
    for name in ("a", "b", "test"):
        metadata = ShardDataset(tmp_path / "out" / f"{name}.h5").info.metadata
        assert np.allclose(metadata["mean"], pixels.mean(axis=(0, 1, 2)), atol=1e-12)
        assert np.allclose(metadata["std"], pixels.std(axis=(0, 1, 2)), atol=1e-12)


def test_test_images_that_were_trained_on_are_noted(tmp_path):
    files = image_files()
    source = write_folder(tmp_path / "s", files | {"test/cat/copy.png": files["train/cat/0001.png"]})
    assert packed(source, tmp_path / "out").notes == (
        "1 of 7 examples for test and validation are training examples, too, so results look better than they are",
    )


def test_validation_split_by_any_of_its_names(tmp_path):
    files = image_files() | {name.replace("test/", "valid/"): c for name, c in image_files().items() if "test/" in name}
    manifest = packed(write_folder(tmp_path / "s", files), tmp_path / "out").manifest
    assert [(e["split"], e["file"], e["examples"]) for e in manifest["evaluation"]] == [
        ("val", "val.h5", 6),
        ("test", "test.h5", 6),
    ]


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    files = image_files()
    for i, (kind, mode) in enumerate([("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"), ("JPEG", "CMYK")]):
        files[f"train/cat/mode{i}.png"] = image_bytes(images(1)[0], kind, mode)
    manifest = packed(write_folder(tmp_path / "s", files), tmp_path / "out").manifest
    assert sum(entry["examples"] for entry in manifest["centers"]) == 23


def test_resizing_brings_all_to_one_size(tmp_path):
    files = image_files() | {"train/cat/large.png": image_bytes(images(1, size=20)[0])}
    source = write_folder(tmp_path / "s", files)
    with pytest.raises(DataError, match=r"large.png has 20 x 20 pixels, those before it 8 x 8; set --size"):
        packed(source, tmp_path / "out")
    packed(source, tmp_path / "out", size=6)
    assert ShardDataset(tmp_path / "out" / "a.h5").info.shape == (3, 6, 6)


GOOD = image_bytes(images(1)[0])
JPEG = image_bytes(images(1, size=64)[0], "JPEG")
BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "html": b"<!DOCTYPE html><html>404</html>",
    "NUL bytes": bytes(1000),
    "cut PNG": GOOD[:-30],
    "PNG head only": GOOD[:20],
    "cut JPEG": JPEG[: len(JPEG) // 2],
    "JPEG head only": JPEG[:10],
    "flipped magic": b"\0\0\0\0" + GOOD[4:],
    "PNG with a wrong checksum": GOOD[:40] + bytes([GOOD[40] ^ 0xFF]) + GOOD[41:],
    # A header that claims 60,000 x 60,000 pixels in a few hundred bytes.
    "bomb": GOOD[:16] + (60000).to_bytes(4, "big") * 2 + GOOD[24:],
    "an archive": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("what", BROKEN)
def test_unreadable_images_are_refused_or_skipped_as_asked(tmp_path, what):
    files = image_files() | {"train/cat/broken.png": BROKEN[what], "test/cat/broken.png": BROKEN[what]}
    source = write_folder(tmp_path / "s", files)
    with pytest.raises(DataError, match=r"(train|test)/cat/broken.png: is .*--on-error skip"):
        packed(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    result = packed(source, tmp_path / "out", on_error="skip")
    assert sorted(item.name for item in result.skipped) == ["test/cat/broken.png", "train/cat/broken.png"]
    assert result.manifest["skipped"]["count"] == 2
    assert sum(entry["examples"] for entry in result.manifest["centers"]) == 18


LAYOUTS = {
    "no images": ({"train/cat/readme.txt": b"hello"}, "holds no images"),
    "nothing": ({}, "holds no images"),
    "no class folders": ({"train/1.png": GOOD, "train/cat/2.png": GOOD}, "is not at split/class/image"),
    "unknown split": ({"train/cat/1.png": GOOD, "extra/cat/1.png": GOOD}, "extra/cat/1.png is not at split"),
    "no training images": ({"test/cat/1.png": GOOD, "val/cat/1.png": GOOD}, "no folder train/"),
    "class only in test": ({"train/cat/1.png": GOOD, "test/dog/1.png": GOOD}, "training examples have not: 'dog'"),
    "fewer images than centers": ({"train/cat/1.png": GOOD, "test/cat/1.png": GOOD}, "only 1 examples"),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_other_layouts_are_refused(tmp_path, what):
    files, message = LAYOUTS[what]
    (tmp_path / "s").mkdir()
    with pytest.raises(DataError, match=message):
        packed(write_folder(tmp_path / "s", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, -1, 100000])
def test_impossible_sizes(tmp_path, size):
    with pytest.raises(DataError, match="--size"):
        ImageFolder(str(tmp_path), size)


def test_without_a_test_folder_there_is_a_note(tmp_path):
    files = {name: content for name, content in image_files().items() if name.startswith("train")}
    result = packed(write_folder(tmp_path / "s", files), tmp_path / "out")
    assert "no test.h5 is written" in " ".join(result.notes) and result.manifest["evaluation"] == []
