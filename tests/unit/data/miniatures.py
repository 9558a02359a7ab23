"""Small data sets in the true on-disk format of the large ones, for tests of sources, configs and studies.

Every builder takes the folder to build in, makes real files (real JPEGs, real archives) and returns the path
that a user would name on the command line.
"""

from __future__ import annotations

import csv
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CLASSES = ("bird", "cat", "frog")


def images(n: int, seed: int = 0, size: int = 8) -> np.ndarray:
    """(n, size, size, 3) uint8; smooth, so that JPEG keeps them distinct."""
    rng = np.random.RandomState(seed)
    corners = rng.randint(0, 256, (n, 2, 2, 3)).astype(np.float64)
    weights = np.linspace(0, 1, size)
    rows = corners[:, :1] * (1 - weights[:, None, None]) + corners[:, 1:] * weights[:, None, None]
    smooth = rows[:, :, :1] * (1 - weights[:, None]) + rows[:, :, 1:] * weights[:, None]
    return smooth.astype(np.uint8)


def image_bytes(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An image file's content."""
    from PIL import Image

    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def image_files(per_class: int = 6, per_class_test: int = 2, kind: str = "PNG", size: int = 8) -> dict[str, bytes]:
    """``split/class/0001.png`` → content, three classes."""
    files = {}
    for split, count, seed in (("train", per_class, 0), ("test", per_class_test, 1)):
        pixels = images(count * len(CLASSES), seed, size)
        for i in range(len(pixels)):
            name = f"{split}/{CLASSES[i % len(CLASSES)]}/{i:04d}.{'jpg' if kind == 'JPEG' else kind.lower()}"
            files[name] = image_bytes(pixels[i], kind)
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Files below ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes], extra: Iterable[tuple[zipfile.ZipInfo, bytes]] = ()) -> Path:
    """Files in a zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in extra:
            archive.writestr(info, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> Path:
    """Files in a tar, compressed if the name says so; ``extra`` members have no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


# CIFAR-10 -----------------------------------------------------------------------------------------------------------

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar_labels(n: int) -> list[int]:
    """Every class in turn."""
    return [i % 10 for i in range(n)]


def python2_pickle(entries: dict[str, object]) -> bytes:
    """A pickle as Python 2 wrote CIFAR-10's: byte strings, lists of small numbers, uint8 arrays of two dimensions."""

    def string(text: bytes) -> bytes:
        return b"T" + len(text).to_bytes(4, "little") + text

    def integer(number: int) -> bytes:
        return b"J" + number.to_bytes(4, "little", signed=True)

    def value(item: object) -> bytes:
        if isinstance(item, np.ndarray):
            dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
            dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb"
            empty = (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
                + integer(0)
                + b"\x85"
                + string(b"b")
                + b"\x87R"
            )
            shape = integer(item.shape[0]) + integer(item.shape[1]) + b"\x86"
            return empty + b"(" + integer(1) + shape + dtype + b"\x89" + string(item.tobytes()) + b"tb"
        if isinstance(item, list):
            return b"](" + b"".join(map(value, item)) + b"e"
        return integer(item) if isinstance(item, int) else string(str(item).encode())

    return b"\x80\x02}(" + b"".join(string(key.encode()) + value(item) for key, item in entries.items()) + b"u."


def cifar10_batches(pixels: np.ndarray, labels: list[int], per_batch: int) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Batch name → ((n, 3072) planes, labels): five of ``per_batch`` images, then the test batch with the rest."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), 3072)
    names = [f"data_batch_{i}" for i in range(1, 6)]
    found = {name: slice(i * per_batch, (i + 1) * per_batch) for i, name in enumerate(names)}
    found["test_batch"] = slice(5 * per_batch, None)
    return {name: (planes[part], labels[part]) for name, part in found.items()}


def cifar10_pickle_files(pixels: np.ndarray, labels: list[int], per_batch: int) -> dict[str, bytes]:
    """The files of ``cifar-10-batches-py``."""
    files = {
        name: python2_pickle({"batch_label": name, "labels": list(y), "data": x})
        for name, (x, y) in cifar10_batches(pixels, labels, per_batch).items()
    }
    files["batches.meta"] = python2_pickle({"num_cases_per_batch": per_batch, "label_names": list(CIFAR_CLASSES)})
    files["readme.html"] = b"<html></html>"
    return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}


def cifar10_binary_files(pixels: np.ndarray, labels: list[int], per_batch: int) -> dict[str, bytes]:
    """The files of ``cifar-10-batches-bin``."""
    files = {"cifar-10-batches-bin/batches.meta.txt": "\n".join(CIFAR_CLASSES).encode()}
    for name, (x, y) in cifar10_batches(pixels, labels, per_batch).items():
        rows = np.concatenate([np.array(y, dtype=np.uint8)[:, None], x], axis=1)
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
    return files


def cifar10(folder: Path, per_batch: int = 10, form: str = "pickle") -> Path:
    """CIFAR-10 with 5 × ``per_batch`` training and ``per_batch`` test images; ``form``: pickle, binary or tar.gz."""
    pixels, labels = images(6 * per_batch, size=32), cifar_labels(6 * per_batch)
    if form == "binary":
        return write_folder(folder, cifar10_binary_files(pixels, labels, per_batch)) / "cifar-10-batches-bin"
    files = cifar10_pickle_files(pixels, labels, per_batch)
    if form == "tar.gz":
        return write_tar(folder / "cifar-mini.tar.gz", files)
    return write_folder(folder, files) / "cifar-10-batches-py"


# ImageNet -----------------------------------------------------------------------------------------------------------

WNIDS = ("n01440764", "n01443537", "n02102040")


def imagenet_images(per_class: int = 4, seed: int = 0) -> dict[str, list[bytes]]:
    """wnid → JPEGs of several sizes."""
    return {
        wnid: [
            image_bytes(images(1, seed + 100 * c + i, size=40 + 8 * ((c + i) % 3))[0], "JPEG") for i in range(per_class)
        ]
        for c, wnid in enumerate(WNIDS)
    }


def tar_bytes(files: dict[str, bytes]) -> bytes:
    """A tar's content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def imagenet_devkit_files(truth: list[int]) -> dict[str, bytes]:
    """meta.mat (ids not in the order of the wnids, inner nodes behind the leaves) and the ground truth."""
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [
        (3, WNIDS[0], "tench", 0),
        (1, WNIDS[1], "goldfish", 0),
        (2, WNIDS[2], "spaniel", 0),
        (4, "n00001740", "entity", 3),
    ]
    synsets = np.array(rows, dtype=fields).reshape(-1, 1)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": buffer.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in truth).encode(),
    }


def imagenet_official(folder: Path, devkit: str = "tar.gz") -> Path:
    """The two tars and the devkit, as image-net.org gives them; validation images have ids 3, 1, 2, 3."""
    train = {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{i}.JPEG": content for i, content in enumerate(contents)})
        for wnid, contents in imagenet_images().items()
    }
    write_tar(folder / "ILSVRC2012_img_train.tar", train)
    val = imagenet_images(2, seed=7)
    ordered = [val[WNIDS[0]][0], val[WNIDS[1]][0], val[WNIDS[2]][0], val[WNIDS[0]][1]]
    # In the archive they are not in order.
    numbered = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": ordered[i] for i in (2, 0, 3, 1)}
    write_tar(folder / "ILSVRC2012_img_val.tar", numbered)
    files = imagenet_devkit_files([3, 1, 2, 3])
    if devkit == "tar.gz":
        write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", files)
    else:
        write_folder(folder, files)
    return folder


def imagenet_kaggle_files() -> dict[str, bytes]:
    """Kaggle's layout: validation images flat, their classes in LOC_val_solution.csv."""
    files = {}
    for wnid, contents in imagenet_images().items():
        files |= {f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{i}.JPEG": c for i, c in enumerate(contents)}
    val = imagenet_images(2, seed=7)
    ordered = [(WNIDS[0], 0), (WNIDS[1], 0), (WNIDS[2], 0), (WNIDS[0], 1)]
    lines = ["ImageId,PredictionString"]
    for i, (wnid, which) in enumerate(ordered):
        files[f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{i + 1:08d}.JPEG"] = val[wnid][which]
        lines.append(f"ILSVRC2012_val_{i + 1:08d},{wnid} 85 1 499 272 {wnid} 3 4 5 6 ")
    files["ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG"] = val[WNIDS[0]][0]
    files["LOC_val_solution.csv"] = "\n".join(lines).encode()
    files["LOC_synset_mapping.txt"] = b"n01440764 tench, Tinca tinca\n"
    return files


def imagenet_plain_files() -> dict[str, bytes]:
    """``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``."""
    files = {}
    for split, contents in (("train", imagenet_images()), ("val", imagenet_images(2, seed=7))):
        for wnid, found in contents.items():
            kept = found if split == "train" or wnid == WNIDS[0] else found[:1]
            files |= {f"{split}/{wnid}/{wnid}_{i}.JPEG": content for i, content in enumerate(kept)}
    return files


# Text ---------------------------------------------------------------------------------------------------------------

TOXIC_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
COMMENTS = (
    "Thanks for your edits, they're good.",
    'He said "you are ""an idiot""" and left',
    "You IDIOT!!! 😡😡\nGo away\n\n\nnow",
    "Überprüft, s’il vous plaît — 漢字 ok, thanks",
    "good good good, a comma, another",
    "   ",
    "idiot idiot, you're an idiot; thanks",
    "=Heading=\n* list, 'quoted'",
)


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows as Kaggle writes them: everything that needs it in quotes, newlines inside fields kept."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def toxic_files(n: int = 40, m: int = 24) -> dict[str, bytes]:
    """train.csv, test.csv and test_labels.csv; every third test row is not scored; test ids come in another order."""
    rng = np.random.RandomState(0)

    def text(i: int) -> str:
        return COMMENTS[i % len(COMMENTS)] + (f" number {i % 5}" if i >= len(COMMENTS) else "")

    labels = rng.randint(0, 2, (n + m, 6))
    train = [["id", "comment_text", *TOXIC_LABELS], *([f"tr{i:04x}", text(i), *labels[i]] for i in range(n))]
    test = [["id", "comment_text"], *([f"te{i:04x}", text(i)] for i in range(m))]
    scored = [[f"te{i:04x}", *([-1] * 6 if i % 3 == 0 else labels[n + i])] for i in reversed(range(m))]
    return {
        "train.csv": csv_bytes(train),
        "test.csv": csv_bytes(test),
        "test_labels.csv": csv_bytes([["id", *TOXIC_LABELS], *scored]),
    }


def toxic(folder: Path, n: int = 40, m: int = 24) -> Path:
    """The three files in a folder."""
    return write_folder(folder, toxic_files(n, m))


def word_vectors(
    path: Path, words: Iterable[str] = ("good", "thanks", "Idiot", ",", "漢字"), dimensions: int = 5
) -> Path:
    """fastText's ``.vec``; vectors have the digits of the word's position."""
    words = list(words)
    lines = [f"{len(words)} {dimensions}"]
    lines += [f"{word} " + " ".join(f"{i + d / 10:.4f}" for d in range(dimensions)) for i, word in enumerate(words)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode() + b"\n")
    return path


# Sound --------------------------------------------------------------------------------------------------------------


def wav_bytes(samples: np.ndarray, rate: int = 16000, bits: int = 16, kind: str = "pcm", extra: bytes = b"") -> bytes:
    """A WAV file of samples in −1 … 1, (frames,) or (frames, channels); ``kind``: pcm, float or extensible."""
    frames = samples if samples.ndim == 2 else samples[:, None]
    if kind == "float":
        data = frames.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = np.clip(np.rint(frames * 128) + 128, 0, 255).astype(np.uint8).tobytes()
    else:
        whole = np.clip(np.rint(frames * 2.0 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype("<i4")
        data = np.ascontiguousarray(whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8]).tobytes()
    channels, width = frames.shape[1], bits // 8
    code = {"pcm": 1, "float": 3, "extensible": 0xFFFE}[kind]
    form = struct.pack("<HHIIHH", code, channels, rate, rate * channels * width, channels * width, bits)
    if kind == "extensible":
        form += struct.pack("<HHIH", 22, bits, 0, 1) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + extra
    chunks += b"data" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def tone(hertz: float, seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    """(frames,) a sine of half amplitude."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def speech_commands_files(
    words: Iterable[str] = ("yes", "no", "bed"), speakers: int = 12, lists: bool = True
) -> dict[str, bytes]:
    """``<word>/<speaker>_nohash_<n>.wav``, every fourth shorter than a second, noise, and the lists."""
    files, listed = {}, {"validation_list.txt": "", "testing_list.txt": ""}
    for w, word in enumerate(words):
        for s in range(speakers):
            name = f"{word}/{s * 2654435761 % 2**32:08x}_nohash_{s % 2}.wav"
            files[name] = wav_bytes(tone(200 + 150 * w + 5 * s, 0.7 if s % 4 == 0 else 1.0))
            if s % 6 == 1:
                listed["validation_list.txt"] += f"{name}\n"
            elif s % 6 == 2:
                listed["testing_list.txt"] += f"{name}\n"
    noise = np.random.RandomState(0).uniform(-0.1, 0.1, 40000)
    files |= {"_background_noise_/white.wav": wav_bytes(noise), "_background_noise_/README.md": b"noise"}
    files |= {"README.md": b"Speech Commands", "LICENSE": b"CC BY"}
    return files | ({name: text.encode() for name, text in listed.items()} if lists else {})


def speech_commands(folder: Path, **options: object) -> Path:
    """Speech Commands as a folder."""
    return write_folder(folder, speech_commands_files(**options))  # type: ignore[arg-type]


def spoken_digits_files(
    speakers: Iterable[str] = ("anna", "ben"), takes: int = 5, rate: int = 8000
) -> dict[str, bytes]:
    """``recordings/{label}_{speaker}_{n}.wav`` at 8 kHz."""
    return {
        f"recordings/{digit}_{speaker}_{n}.wav": wav_bytes(tone(150 + 60 * digit + 9 * s + n, 0.4, rate), rate)
        for digit in range(10)
        for s, speaker in enumerate(speakers)
        for n in range(takes)
    }


# AudioSet -----------------------------------------------------------------------------------------------------------


def audioset(folder: Path, logmel: bool = False, classes: int = 527, n: int = 12) -> Path:
    """bal_train.h5, unbal_train.h5 (twice as many) and eval.h5, packed with compression as published."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(0)
    for name, count in (("bal_train", n), ("unbal_train", 2 * n), ("eval", n)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            shape = (count, 240, 64) if logmel else (count, 10, 128)
            x = rng.normal(-8, 3, shape).astype(np.float32) if logmel else rng.randint(0, 256, shape).astype(np.uint8)
            file.create_dataset("x", data=x, compression="gzip", chunks=(1, *shape[1:]))
            file.create_dataset("y", data=rng.uniform(size=(count, classes)) < 3 / classes)
            file.create_dataset("video_id_list", data=np.array([f"id{i:09d}".encode() for i in range(count)]))
    lines = ["index,mid,display_name", *(f'{i},/m/{i:04x},"Sound {i}, loud"' for i in range(classes))]
    (folder / "class_labels_indices.csv").write_text("\n".join(lines))
    return folder
