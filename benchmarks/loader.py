"""How fast batches come: from a shard, from a tensor in memory, from image files. Ratios are taken within one run.

The variants take turns, round by round, so that another process on the machine slows all of them alike; the figure of
each is its best round. Nothing here is asserted; a table goes to stderr, JSON to stdout.

    python benchmarks/loader.py --examples 10000 --batch-size 32
    python benchmarks/loader.py --examples 3000 --size 400 --crop 224 --workers 2   # against decoding alone
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from colearn_hpc.data.images import CropDecoder, decode_image
from colearn_hpc.data.samplers import TrainBatchSampler
from colearn_hpc.data.shards import ShardDataset, ShardWriter


class Tensors(Dataset):
    """The upper limit: whole batches indexed out of tensors."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.tensor(index)
        return self.x[positions], self.y[positions]


class Fancy(Dataset):
    """What shards avoid: HDF5's own selection of many rows, which must be sorted first."""

    def __init__(self, path: Path) -> None:
        self.file = h5py.File(path, "r", locking=False)

    def __len__(self) -> int:
        return len(self.file["y"])

    def __getitem__(self, index: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        order = np.argsort(index)
        rows = np.asarray(index)[order]
        back = np.argsort(order)
        return torch.from_numpy(self.file["x"][rows][back]), torch.from_numpy(self.file["y"][rows][back])


class Files(Dataset):
    """Decoding at every access, as from a folder of images (already in memory: no disk is measured)."""

    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = np.stack([decode_image(self.contents[i]) for i in index])
        return torch.from_numpy(images), torch.zeros(len(index), dtype=torch.int64)


class Bare:
    """What the processor allows: processes that decode (and crop) and do nothing else; nothing comes back."""

    def __init__(self, contents: list[bytes], processes: int, crop: int) -> None:
        self.shares = [contents[k::processes] for k in range(processes)]
        self.crop = CropDecoder(crop, random=True) if crop else None

    def __call__(self, number: int) -> Iterable:
        ready = multiprocessing.get_context("fork")
        workers = [ready.Process(target=self.decode, args=(share,)) for share in self.shares]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        return [(None, share) for share in self.shares]

    def decode(self, share: list[bytes]) -> None:
        from PIL import Image

        for number, content in enumerate(share):
            if self.crop:
                self.crop(content, np.random.default_rng(number))
            else:
                Image.open(io.BytesIO(content)).convert("RGB").load()


def pictures(examples: int, size: int) -> np.ndarray:
    """(examples, 3, size, size) uint8: noise that is smooth over a few pixels. As JPEG, 0.5 byte a pixel."""
    from PIL import Image

    coarse = np.random.RandomState(0).randint(0, 256, (examples, -(-size // 6), -(-size // 6), 3), dtype=np.uint8)
    smooth = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in coarse]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in smooth])


def write_shards(folder: Path, pixels: np.ndarray, contents: list[bytes]) -> tuple[Path, Path]:
    """The same images as arrays and as JPEG bytes."""
    paths = folder / "array.h5", folder / "jpeg.h5"
    for path, encoding, examples in ((paths[0], "array", list(pixels)), (paths[1], "jpeg", contents)):
        with ShardWriter(path, task="classification", classes=["a"], encoding=encoding, kind="image") as writer:
            for example in examples:
                writer.append(example, 0)
    return paths


def measure(loaders: dict[str, Callable[[int], Iterable]], examples: int, rounds: int) -> dict[str, float]:
    """Examples per second of each, the best of ``rounds``, taken in turn."""
    best = dict.fromkeys(loaders, 0.0)
    for number in range(rounds):
        for name, epoch in loaders.items():
            start = time.perf_counter()
            seen = sum(len(batch[1]) for batch in epoch(number))
            best[name] = max(best[name], seen / (time.perf_counter() - start))
            assert seen == examples, f"{name}: {seen} of {examples} examples arrived"
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=10000, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--crop", type=int, default=0, help="random crops of that many pixels from JPEGs (default: whole images)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes for the shard of JPEGs (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    from PIL import Image

    pixels = pictures(options.examples, options.size)
    contents = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    y = torch.zeros(options.examples, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as folder:
        array, jpeg = write_shards(Path(folder), pixels, contents)
        crop = CropDecoder(options.crop, random=True) if options.crop else None
        batched: dict[str, tuple[Dataset, int]] = {
            "tensor in memory": (Tensors(torch.from_numpy(pixels), y), 0),
            "shard, preloaded": (ShardDataset(array, preload=True), 0),
            "shard, from disk": (ShardDataset(array, preload=False), 0),
            "HDF5 fancy indexing": (Fancy(array), 0),
            "shard of JPEGs": (ShardDataset(jpeg, preload=False, decode=crop), options.workers),
            "decoding files": (Files(contents), 0),
        }

        def epochs(dataset: Dataset, workers: int) -> Callable[[int], Iterable]:
            sampler = TrainBatchSampler(dataset, options.batch_size, 1, 0)
            loader = DataLoader(
                dataset, sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0
            )

            def epoch(number: int) -> Iterable:
                sampler.set_epoch(number)
                return loader

            return epoch

        loaders = {name: epochs(dataset, workers) for name, (dataset, workers) in batched.items()}
        plain = DataLoader(TensorDataset(torch.from_numpy(pixels), y), options.batch_size, shuffle=True)
        loaders["TensorDataset, item by item"] = lambda number: plain
        loaders["decoding alone"] = Bare(contents, max(options.workers, 1), options.crop)
        rates = measure(loaders, options.examples, options.rounds)
    reference = rates["tensor in memory"]
    for name, rate in rates.items():
        print(f"{name:30} {rate:12,.0f} examples/s {rate / reference:8.3f} of in-memory", file=sys.stderr)
    settings = vars(options) | {"torch": torch.__version__, "h5py": h5py.__version__}
    ratios = {name: rate / reference for name, rate in rates.items()}
    decoding = rates["shard of JPEGs"] / rates["decoding alone"]
    print(f"shard of JPEGs / decoding alone: {decoding:.3f}", file=sys.stderr)
    found = {"examples_per_second": rates, "ratio_to_memory": ratios, "ratio_to_decoding_alone": decoding}
    print(json.dumps({"settings": settings} | found, indent=1))


if __name__ == "__main__":
    main()
