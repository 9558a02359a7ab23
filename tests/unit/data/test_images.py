"""What an image file becomes: depth, orientation, and what is refused."""

import io
import struct

import numpy as np
import pytest
from miniatures import image_bytes, images, write_folder
from PIL import Image

from colearn_hpc.cli.data import main
from colearn_hpc.data import ShardDataModule
from colearn_hpc.data.images import CropDecoder, decode_image, verify_image
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.data.tallies import ChannelMoments
from colearn_hpc.errors import DataError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def saved(pixels, kind, **options):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, sample_format):
    """A TIFF of one strip, written by hand: Pillow writes no unsigned 32 bits."""
    rows, columns = values.shape
    bits, data = values.dtype.itemsize * 8, values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {256: columns, 257: rows, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: rows, 279: len(data)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: sample_format}).items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def test_grey_images_of_16_bits_keep_every_level():
    for content in (saved(RAMP, "PNG"), saved(RAMP, "TIFF"), saved(Image.fromarray(RAMP.astype(np.int32)), "PPM")):
        found = decode_image(content)
        assert found.dtype == np.uint16 and found.shape == (3, 8, 8) and (found == RAMP).all()
    (swapped,) = decode_image(tiff(RAMP, sample_format=1))[:1]
    assert (swapped == RAMP).all()


def test_film_that_counts_from_white_is_turned_round():
    found = decode_image(saved(RAMP, "TIFF", tiffinfo={262: 0}))
    assert (found == 65535 - RAMP).all()


@pytest.mark.parametrize("values", [RAMP.astype(np.float32) / 7 - 1000, RAMP.astype(np.int32) - 1024])
def test_32_bits_are_kept_as_stored(values):
    found = decode_image(saved(values, "TIFF"))
    assert found.dtype == np.float32 and (found == values.astype(np.float32)).all()


def test_unsigned_32_bits_do_not_become_negative():
    values = np.array([[0, 2**31, 2**32 - 256]], dtype=np.uint32)
    assert decode_image(tiff(values, sample_format=1))[0].tolist() == [[0.0, 2.0**31, 2.0**32 - 256]]


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="no finite numbers"):
        decode_image(saved(np.array([[0, np.nan]], dtype=np.float32), "TIFF"))


def test_deep_images_are_resized_in_their_own_range():
    found = decode_image(saved(np.full((16, 16), 40000, dtype=np.uint16), "PNG"), 8)
    assert found.dtype == np.uint16 and found.shape == (3, 8, 8) and (found == 40000).all()
    assert decode_image(saved(np.full((4, 4), 2.5, dtype=np.float32), "TIFF"), 2).tolist() == [[[2.5] * 2] * 2] * 3


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "RGBA"])
def test_other_modes_become_colours_of_8_bits(mode):
    image = Image.fromarray(images(1)[0]).convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    found = decode_image(saved(image, kind, **({"quality": 95} if kind == "JPEG" else {})))
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= (40 if kind == "JPEG" else 0)


def corner(orientation, kind="PNG", size=(16, 24)):
    """An image whose upper left corner is red when it is turned as its EXIF says."""
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[: size[0] // 2, : size[1] // 2, 0] = 255
    image = Image.fromarray(pixels)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(back[orientation]) if orientation in back else image
    return saved(stored, kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind, orientation):
    found = decode_image(corner(orientation, kind))
    assert found.shape == (3, 16, 24)
    red = found[0] > 128
    assert red[:8, :12].all() and not red[9:].any() and not red[:, 13:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_of_the_upright_image(orientation):
    content = corner(orientation, "JPEG", (160, 240))
    for decode in (CropDecoder(16, random=False), CropDecoder(112, random=False)):
        found = decode(content, np.random.default_rng(0))
        half = decode.size // 2
        red = found[0] > 128
        assert red[: half - 1, : half - 1].all() and not red[half + 1 :].any() and not red[:, half + 1 :].any()
    upright, turned = (
        CropDecoder(32, random=True)(c, np.random.default_rng(7))
        for c in (corner(1, "PNG"), corner(orientation, "PNG"))
    )
    assert np.array_equal(upright, turned)


def test_broken_exif_beside_a_good_image():
    content = saved(images(1, size=16)[0], "JPEG", exif=b"Exif\0\0rubbish")
    assert decode_image(content).shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_several_images_in_one_file_are_refused(kind):
    first, second = (Image.fromarray(p) for p in images(2))
    content = saved(first, kind, save_all=True, append_images=[second])
    for read in (decode_image, verify_image, lambda c: CropDecoder(4, random=False)(c, np.random.default_rng(0))):
        with pytest.raises(DataError, match="holds 2 images"):
            read(content)


def test_a_preview_behind_a_photograph_is_ignored():
    first, second = (Image.fromarray(p) for p in images(2, size=16))
    content = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(decode_image(content).astype(int) - images(2, size=16)[0].transpose(2, 0, 1)).max() < 30


def test_shards_of_files_refuse_what_their_decoder_would_make_white():
    for read in (verify_image, lambda c: CropDecoder(4, random=False)(c, np.random.default_rng(0))):
        with pytest.raises(DataError, match=r"more than 8 bits .uint16.; the source imagefolder keeps such images"):
            read(saved(RAMP, "PNG"))


# Through the command ------------------------------------------------------------------------------------------------


def xrays(folder, kind="PNG", dtype=np.uint16):
    """Two classes that differ in level, far below white: 12 bits in 16."""
    rng = np.random.RandomState(0)
    return write_folder(
        folder,
        {
            f"{split}/{name}/{i}.{kind.lower()}": saved((base + rng.randint(0, 50, (8, 8))).astype(dtype), kind)
            for split in ("train", "test")
            for name, base in (("dark", 500), ("bright", 3000))
            for i in range(4)
        },
    )


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.float32)])
def test_xrays_reach_the_network_with_their_contrast(tmp_path, capsys, kind, dtype):
    source = xrays(tmp_path / "in", kind, dtype)
    assert main(["imagefolder", str(source), "--out", str(tmp_path / "out"), "--centers", "1"]) == 0
    assert f"kept as {np.dtype(dtype)}" in capsys.readouterr().out
    shard = ShardDataset(tmp_path / "out" / "dc0.h5")
    assert shard.info.dtype == dtype and shard.info.metadata["scale"] == (1 / 65535 if dtype == np.uint16 else 1.0)
    for preload in (True, False):
        module = ShardDataModule(str(tmp_path / "out" / "dc0.h5"), batch_size=8, preload=preload)
        x, y = next(iter(module.train_dataloader()))
        ready = module.ready(x)
        bright, dark = (float(ready[y == label].mean()) for label in (0, 1))
        assert abs(bright - 1) < 0.05 and abs(dark + 1) < 0.05


def test_images_of_two_depths_are_no_data_set(tmp_path, capsys):
    source = write_folder(xrays(tmp_path / "in"), {"train/dark/z.png": image_bytes(images(1)[0])})
    assert main(["imagefolder", str(source), "--out", str(tmp_path / "out"), "--centers", "1"]) == 1
    assert "train/dark/z.png is uint8, train/bright/0.png is uint16; bring all images" in capsys.readouterr().err


def test_statistics_of_deep_images_do_not_overflow():
    moments = ChannelMoments()
    white = np.full((1, 512, 512), 65535, dtype=np.uint16)
    moments.add(white)
    moments._count, moments._sum, moments._squares = (
        n * 2**20 for n in (moments._count, moments._sum, moments._squares)
    )
    moments.add(np.zeros((1, 512, 512), dtype=np.uint16))
    found = moments.result(1 / 65535, 0.0)
    share = 2**20 / (2**20 + 1)
    assert abs(found["mean"][0] - share) < 1e-12 and abs(found["std"][0] - np.sqrt(share * (1 - share))) < 1e-12
