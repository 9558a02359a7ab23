"""ImageNet: three layouts, one result; JPEGs stay as they are; every fault a clear answer."""

import io
import tarfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from miniatures import (
    WNIDS,
    image_bytes,
    imagenet_devkit_files,
    imagenet_kaggle_files,
    imagenet_official,
    imagenet_plain_files,
    images,
    tar_bytes,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

from colearn_hpc._torchvision import make_torchvision_importable
from colearn_hpc.data.datamodule import ShardDataModule
from colearn_hpc.data.images import CropDecoder
from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shards import ShardDataset, check_shard
from colearn_hpc.data.sources.imagenet import ImageNet
from colearn_hpc.errors import DataError

NAMES = ("a", "b")


def packed(path, out, **options):
    return pack(ImageNet(str(path)), Request(out, NAMES, **options))


def stored(path):
    """(label, JPEG bytes) of a shard, sorted."""
    dataset = ShardDataset(path, preload=True)
    ends = dataset._offsets
    return sorted(
        (int(dataset._y[i]), dataset._x[ends[i] : ends[i + 1]].numpy().tobytes()) for i in range(len(dataset))
    )


def build(tmp_path, layout):
    if layout.startswith("official"):
        return imagenet_official(tmp_path / "in", layout.split()[1])
    files = imagenet_kaggle_files() if layout.startswith("kaggle") else imagenet_plain_files()
    if layout.endswith("zip"):
        return write_zip(tmp_path / "in.zip", files)
    return write_tar(tmp_path / "in.tar", files) if layout.endswith("tar") else write_folder(tmp_path / "in", files)


LAYOUTS = ("official tar.gz", "official folder", "kaggle folder", "kaggle zip", "plain folder", "plain tar")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_hold_the_same_images_byte_for_byte(tmp_path, layout):
    packed(write_folder(tmp_path / "plain", imagenet_plain_files()), tmp_path / "expected")
    manifest = packed(build(tmp_path, layout), tmp_path / "out").manifest
    assert manifest["classes"] == sorted(WNIDS)
    for name in ("a", "b", "val"):
        assert stored(tmp_path / "out" / f"{name}.h5") == stored(tmp_path / "expected" / f"{name}.h5")
    assert sum(e["examples"] for e in manifest["centers"]) == 12 and manifest["evaluation"][0]["examples"] == 4
    check_shard(tmp_path / "out" / "a.h5")


def test_images_reach_the_network_in_one_size(tmp_path):
    packed(build(tmp_path, "plain folder"), tmp_path / "out")
    data = ShardDataModule(str(tmp_path / "out/a.h5"), val=str(tmp_path / "out/val.h5"), image_size=32, batch_size=3)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (3, 3, 32, 32) and x.dtype == torch.uint8 and y.shape == (3,)
    ready = data.ready(x)
    assert torch.allclose(ready[:, 0], (x[:, 0] / 255 - 0.485) / 0.229, atol=1e-5)
    val = [x for x, _ in data.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(val, [x for x, _ in data.val_dataloader()], strict=True))


def test_random_crops_follow_seed_and_epoch_in_any_number_of_workers(tmp_path):
    packed(build(tmp_path, "plain folder"), tmp_path / "out")

    def epoch(number, workers, seed=0):
        data = ShardDataModule(str(tmp_path / "out/a.h5"), image_size=16, num_workers=workers, seed=seed, batch_size=4)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([x for x, _ in loader])

    assert torch.equal(epoch(1, 0), epoch(1, 2))
    sums = [epoch(n, 0, seed).float().sum(dim=(1, 2, 3)).sort().values for n, seed in ((1, 0), (2, 0), (1, 1))]
    assert not torch.equal(sums[0], sums[1]) and not torch.equal(sums[0], sums[2])


def test_the_centre_crop_is_the_centre():
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[4:60, 20:76] = 255  # the centre: 64 x 0.875 = 56 pixels
    crop = CropDecoder(28, random=False)(image_bytes(pixels), np.random.default_rng(0))
    assert crop.shape == (3, 28, 28) and crop[:, 1:-1, 1:-1].min() == 255 and crop.min() > 150
    smaller = CropDecoder(28, random=False, centre=1.0)(image_bytes(pixels), np.random.default_rng(0))
    assert smaller.min() == 0


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (40, 900), (900, 40), (1, 1), (3, 200)])
def test_random_crops_of_any_shape_have_the_size_asked(size):
    buffer = io.BytesIO()
    Image.new("CMYK", size).save(buffer, "JPEG")
    for seed in range(20):
        crop = CropDecoder(24, random=True)(buffer.getvalue(), np.random.default_rng(seed))
        assert crop.shape == (3, 24, 24)


@pytest.mark.skipif(
    find_spec("torchvision") is None, reason="torchvision, the oracle of the centre crop, is not installed"
)
@pytest.mark.parametrize("size", [(300, 401), (401, 300), (256, 256)])
def test_the_centre_crop_is_torchvisions(size):
    """Resize(256) and CenterCrop(224), in one step: not the same bits, but the same picture at the same place."""
    make_torchvision_importable()
    from torchvision.transforms import v2

    corners = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    crop = CropDecoder(224, random=False)(buffer.getvalue(), np.random.default_rng(0)).astype(float)
    wanted = np.asarray(v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])(image)).transpose(2, 0, 1)
    assert np.abs(crop - wanted).mean() < 1
    assert np.abs(np.roll(crop, 3, axis=2) - wanted).mean() > 2  # three pixels aside would be noticed


def test_random_crops_keep_their_ranges():
    shares, ratios = [], []
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = CropDecoder._random_box(200, 120, rng)
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 120
        shares.append((right - left) * (bottom - top) / (200 * 120))
        ratios.append((right - left) / (bottom - top))
    assert 0.07 < min(shares) < 0.12 and 0.7 < max(shares) < 1.0
    assert 0.73 < min(ratios) < 0.8 and 1.27 < max(ratios) < 1.36


def test_reduced_decoding_shows_the_same_picture():
    """A large JPEG is decoded at a fraction of its size: not the same bits, but the same picture."""
    content = image_bytes(images(1, size=1024)[0], "JPEG")
    crop = CropDecoder(64, random=False)(content, np.random.default_rng(0)).astype(float)
    with Image.open(io.BytesIO(content)) as image:
        full = image.resize((64, 64), Image.Resampling.BILINEAR, box=(64, 64, 960, 960))
    assert np.abs(crop - np.asarray(full).transpose(2, 0, 1)).mean() < 2


GOOD = image_bytes(images(1, size=64)[0], "JPEG")
BROKEN = {
    "empty": b"",
    "text": b"no image",
    "NUL bytes": bytes(300),
    "cut": GOOD[:-40],
    "head only": GOOD[:12],
    "wrong magic": b"\0\0" + GOOD[2:],
    "end mark on nothing": b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9",
    "cut PNG under a JPEG's name": image_bytes(images(1, size=64)[0])[:-30],
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_images_are_refused_or_skipped(tmp_path, what):
    files = imagenet_plain_files() | {f"train/{WNIDS[0]}/{WNIDS[0]}_9.JPEG": BROKEN[what]}
    source = write_folder(tmp_path / "in", files)
    with pytest.raises(DataError, match=rf"{WNIDS[0]}_9.JPEG: is .*--on-error skip"):
        packed(source, tmp_path / "out")
    result = packed(source, tmp_path / "out", on_error="skip")
    assert len(result.skipped) == 1 and sum(e["examples"] for e in result.manifest["centers"]) == 12
    check_shard(tmp_path / "out" / "a.h5"), check_shard(tmp_path / "out" / "b.h5")


@pytest.mark.parametrize("kind", ["PNG", "trailing bytes"])
def test_the_odd_ones_of_the_real_imagenet_pass(tmp_path, kind):
    """One file is a PNG by content, some have padding behind their end mark."""
    odd = image_bytes(images(1, size=64)[0]) if kind == "PNG" else GOOD + b"\0\0\n"
    files = imagenet_plain_files() | {f"train/{WNIDS[0]}/odd.JPEG": odd}
    manifest = packed(write_folder(tmp_path / "in", files), tmp_path / "out").manifest
    assert sum(e["examples"] for e in manifest["centers"]) == 13


def rewrite(name, change):
    """Change a file's content."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def replace_train(files):
    return lambda folder: write_tar(folder / "ILSVRC2012_img_train.tar", files)


def replace_val(files, extra=()):
    return lambda folder: write_tar(folder / "ILSVRC2012_img_val.tar", files, extra)


def devkit(**change):
    def damage(folder):
        files = imagenet_devkit_files([3, 1, 2, 3])
        for name in list(files):
            for part, content in change.items():
                if part in name:
                    files[name] = content
        write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", {n: c for n, c in files.items() if c is not None})

    return damage


def member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


ONE = tar_bytes({"n01440764_1.JPEG": GOOD})
BAD_OFFICIAL = {
    "no val tar": (lambda f: (f / "ILSVRC2012_img_val.tar").unlink(), "no ILSVRC2012_img_val.tar"),
    "no devkit": (lambda f: (f / "ILSVRC2012_devkit_t12.tar.gz").unlink(), "no meta.mat"),
    "train cut": (rewrite("ILSVRC2012_img_train.tar", lambda b: b[: len(b) // 2]), "is damaged"),
    "train empty": (rewrite("ILSVRC2012_img_train.tar", lambda b: b""), "is damaged"),
    "train text": (rewrite("ILSVRC2012_img_train.tar", lambda b: b"hello" * 500), "is damaged"),
    "val cut": (rewrite("ILSVRC2012_img_val.tar", lambda b: b[:3000]), "is damaged"),
    "inner tar cut": (replace_train({"n01440764.tar": ONE[:700]}), "is damaged"),
    "inner tar text": (replace_train({"n01440764.tar": b"hello" * 300}), "is damaged"),
    "inner tar leads out": (replace_train({"n01440764.tar": tar_bytes({"../evil.JPEG": GOOD})}), "leads out"),
    "outer tar leads out": (replace_train({"../n01440764.tar": ONE}), "leads out"),
    "not a wnid": (replace_train({"dogs.tar": ONE}), "only <wnid>.tar"),
    "images in the outer tar": (replace_train({"n01440764_1.JPEG": GOOD}), "only <wnid>.tar"),
    "inner tar of text files": (replace_train({"n01440764.tar": tar_bytes({"a.txt": b"1"})}), "only images"),
    "no classes": (replace_train({}), "no training images"),
    "val symlink": (
        replace_val({}, [member("ILSVRC2012_val_00000001.JPEG", tarfile.SYMTYPE, "/etc/passwd")]),
        "a link",
    ),
    "val of another name": (replace_val({"cat.JPEG": GOOD}), "no line in the devkit"),
    "val beyond the truth": (replace_val({"ILSVRC2012_val_00000005.JPEG": GOOD}), "no line in the devkit"),
    "val class not in train": (replace_train({"n01440764.tar": ONE}), "training examples have not"),
    "truth with an unknown id": (devkit(ground_truth=b"3\n1\n2\n999\n"), "line 4 of .* is b'999'"),
    "truth of inner nodes": (devkit(ground_truth=b"3\n1\n2\n4\n"), "line 4 of"),
    "truth as text": (devkit(ground_truth=b"3\ncat\n2\n3\n"), "line 2 of .* is b'cat'"),
    "no truth": (devkit(ground_truth=None), "no ILSVRC2012_validation_ground_truth.txt"),
    "meta damaged": (devkit(meta=b"MATLAB 5.0" + bytes(200)), "no MATLAB file"),
    "meta empty": (devkit(meta=b""), "no MATLAB file"),
    "devkit cut": (rewrite("ILSVRC2012_devkit_t12.tar.gz", lambda b: b[:200]), "damaged|cannot be read|neither"),
}


@pytest.mark.parametrize("what", BAD_OFFICIAL)
def test_damaged_official_archives_are_refused(tmp_path, what):
    source = imagenet_official(tmp_path / "in")
    damage, message = BAD_OFFICIAL[what]
    damage(source)
    with pytest.raises(DataError, match=message):
        packed(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*")) and not (tmp_path / "evil.JPEG").exists()


def without(files, text):
    return {name: content for name, content in files.items() if text not in name}


BAD_TREES = {
    "flat val without solution": (without(imagenet_kaggle_files(), "LOC_val"), "no LOC_val_solution.csv"),
    "solution without columns": (imagenet_kaggle_files() | {"LOC_val_solution.csv": b"a,b\n1,2\n"}, "no columns"),
    "solution not UTF-8": (imagenet_kaggle_files() | {"LOC_val_solution.csv": b"\xff\xfe\xfa"}, "no columns"),
    "solution with an empty class": (
        imagenet_kaggle_files() | {"LOC_val_solution.csv": b"ImageId,PredictionString\nx,\n"},
        "no columns",
    ),
    "image at the top": (imagenet_plain_files() | {"cat.JPEG": GOOD}, "is not at train/<class>/"),
    "no train": (without(imagenet_plain_files(), "train"), "no training images"),
    "empty": ({"readme": b""}, "no training images"),
}


@pytest.mark.parametrize("what", BAD_TREES)
def test_other_trees_are_refused(tmp_path, what):
    files, message = BAD_TREES[what]
    with pytest.raises(DataError, match=message):
        packed(write_folder(tmp_path / "in", files), tmp_path / "out")
