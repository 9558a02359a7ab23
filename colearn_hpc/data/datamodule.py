"""Shards as Lightning wants them: each data center opens only its own file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import colearn_hpc._lightning as pl
from colearn_hpc.data.images import CropDecoder
from colearn_hpc.data.paths import expanded, is_center_name
from colearn_hpc.data.pooled import PooledShards, pooled, pooled_info, require_alike
from colearn_hpc.data.samplers import EvalBatchSampler, TrainBatchSampler
from colearn_hpc.data.shard_file import open_shard
from colearn_hpc.data.shards import ShardDataset, ShardInfo, read_info
from colearn_hpc.errors import DataError

CENTER_VARIABLE = "COLEARN_CENTER"


class ShardDataModule(pl.LightningDataModule):
    """Training, validation and test batches from shards.

    A batch is ``(x, y)``: ``x`` (B, …) float32 and ``y`` (B,) int64. With token numbers ``x`` is (B, T) int64. With
    several labels ``y`` is (B, classes) float32, where −1 means "not scored".

    A batch is moved to the device as it is stored (images as uint8: a quarter of the bytes) and made ready there in
    four steps: ``x * scale + offset``; ``augment``, in training only; ``(x - mean) / std``; ``transform``. Scale,
    offset, mean and std come from the training shard and describe what is stored. So they do not touch what
    ``transform`` makes of it, such as the log-mel of a waveform.

    The order of training examples is a function of (seed, epoch) alone, so a resumed run continues with the batches
    of an uninterrupted one. In evaluation each example occurs exactly once over the ranks of the data center.

    Args:
        train: path of the training shard. Or several paths, which are then one data set (vanilla-learning: one data
            center holds all data). ``{center}`` becomes the data center's name, which the environment variable
            COLEARN_CENTER holds; ``~`` and ``$VARIABLES`` are expanded. All this is so in ``val`` and ``test`` too.
        val: path of the validation shard. None: that of ``test``.
        test: path of the test shard. None: there is none.
        batch_size: examples in a batch of one rank.
        eval_batch_size: the same in evaluation. None: ``batch_size``.
        num_workers: processes that fetch and decode. 0 is fastest for small examples.
        preload: whether shards are held in memory: ``true``, ``false``, or ``auto``, those of at most 1 GiB.
        seed: seed of the order of training examples.
        augment: a callable (B, …) → (B, …), applied in training.
        transform: a callable (B, …) → (B, …), always applied.
        drop_last: leave out the examples that fill no whole batch.
        normalize: apply mean and std where the shard has them.
        image_size: the size in pixels to which images of a JPEG shard are cropped, at random in training (see
            :class:`colearn_hpc.data.images.CropDecoder`).
        random_crop: ``false``: the centre crop in training too.

    Raises:
        DataError: there is no shard at a path, a shard is damaged, or shards do not belong together.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | None = None,
        test: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        preload: Literal["auto"] | bool = "auto",
        seed: int = 0,
        # Without [[Tensor], Tensor]: with it, jsonargparse wants a subclass of Tensor in the YAML file.
        augment: Callable | None = None,
        transform: Callable | None = None,
        drop_last: bool = False,
        normalize: bool = True,
        image_size: int | None = None,
        random_crop: bool = True,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = train, val if val is not None else test, test
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size if eval_batch_size is not None else batch_size
        self.num_workers = num_workers
        self.preload = preload
        self.seed = seed
        self.augment = augment
        self.transform = transform
        self.drop_last = drop_last
        self.normalize = normalize
        self.image_size = image_size
        self.random_crop = random_crop
        self._datasets: dict[str, ShardDataset | PooledShards] = {}
        self._info: ShardInfo | None = None
        self._mean_std: dict[torch.device, tuple[Tensor, ...]] = {}

    @property
    def info(self) -> ShardInfo:
        """The training shard's description; reads the file's head, works before :meth:`setup`."""
        if self._info is None:
            self._info = pooled_info([read_info(path) for path in self._train_paths()])
        return self._info

    @property
    def train_examples(self) -> int:
        """Examples in this data center's training shard."""
        return self.info.examples

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.info.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.info.classes)

    def fingerprint(self) -> dict[str, str]:
        """Which data the training shard holds, whatever its name. A resumed run must have the same data."""
        found = []
        for path in self._train_paths():
            info = read_info(path)
            with open_shard(path) as file:
                labels = zlib.crc32(file["y"][...].tobytes())
            found.append(f"{info.examples} examples of {info.source}, labels {labels:08x}")
        return {"training shard": "; ".join(found)}

    def meaning(self) -> dict[str, str]:
        """What the numbers in this data center's batches mean, by name (labels by number, vocabulary, scale, …).

        Data centers compare it before the first round, and refuse to train where it differs. Any data module can have
        this method. It returns a flat dictionary of texts that is equal in all data centers whose examples can train
        one model. Its order is that in which differences are looked for. Paths, sizes and dates do not belong in it.

        Raises:
            DataError: the evaluation shards mean something else than the training shards.
        """
        for split in ("val", "test"):
            if (template := getattr(self, split)) is not None:
                require_alike(self.info, read_info(shard_path(template, split)))
        meaning = dict(self.info.meaning)
        by_own = self.normalize and "mean" in self.info.metadata
        meaning["normalised"] = "by mean and std of the training shard" if by_own else "no"
        if self.image_size is not None:
            meaning["image_size"] = str(self.image_size)
        return meaning

    def _train_paths(self) -> list[Path]:
        return [shard_path(one, "train") for one in ([self.train] if isinstance(self.train, str) else self.train)]

    def setup(self, stage: str | None = None) -> None:
        """Open the shards that the stage needs.

        Args:
            stage: Lightning's ``fit``, ``validate``, ``test`` or ``predict``.
        """
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for split in wanted.get(stage or "", ("train", "val", "test")):
            template = getattr(self, split)
            if template is None or split in self._datasets:
                continue
            paths = self._train_paths() if split == "train" else [shard_path(template, split)]
            # val and test are often one file: hold it in memory once.
            evaluated = [
                self._datasets[name] for name in ("val", "test") if name in self._datasets and split != "train"
            ]
            same = next((dataset for dataset in evaluated if dataset.info.path == paths[0]), None)
            decode = None
            if self.image_size is not None:
                decode = CropDecoder(self.image_size, random=split == "train" and self.random_crop)
            opened = same or pooled([ShardDataset(p, self.preload, decode=decode, seed=self.seed) for p in paths])
            self._datasets[split] = opened
            require_alike(self.info, self._datasets[split].info)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of this rank."""
        dataset = self._dataset("train")
        ranks, rank = self._place()
        sampler = TrainBatchSampler(dataset, self.batch_size, ranks, rank, self.seed, self.drop_last)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """This rank's share of the validation examples; nothing where no path was given."""
        return self._evaluation("val") if self.val is not None else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """This rank's share of the test examples; nothing where no path was given."""
        return self._evaluation("test") if self.test is not None else []

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        """The test examples."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make a stored batch ready for the model, on the device; see the class."""
        x, y = batch
        training = self.trainer is not None and bool(self.trainer.training)
        return self.ready(x, training), y.float() if y.dtype == torch.int8 else y

    def ready(self, x: Tensor, training: bool = False) -> Tensor:
        """Stored examples to network input.

        Args:
            x: (B, …) as stored.
            training: apply ``augment``.

        Returns:
            (B, …) float32, or (B, T) int64 token numbers.
        """
        info = self.info
        if info.encoding == "tokens":
            x = x.long()
        else:
            x = x.float()
            scale, offset = info.metadata.get("scale", 1.0), info.metadata.get("offset", 0.0)
            if scale != 1.0:
                x = x * scale
            if offset != 0.0:
                x = x + offset
        if training and self.augment is not None:
            x = self.augment(x)
        if self.normalize and "mean" in info.metadata:
            mean, std = self._moments(x.device)
            shape = (-1,) + (1,) * (x.dim() - 2)
            x = (x - mean.view(shape)) / std.view(shape)
        return x if self.transform is None else self.transform(x)

    def _moments(self, device: torch.device) -> tuple[Tensor, ...]:
        # Kept per device: a transfer per batch would make the GPU wait for the host each time.
        if device not in self._mean_std:
            values = (self.info.metadata["mean"], self.info.metadata["std"])
            self._mean_std[device] = tuple(torch.tensor(v, dtype=torch.float32, device=device) for v in values)
        return self._mean_std[device]

    def _dataset(self, split: str) -> ShardDataset | PooledShards:
        if split not in self._datasets:
            self.setup()
        return self._datasets[split]

    def _evaluation(self, split: str) -> DataLoader:
        dataset = self._dataset(split)
        return self._loader(dataset, EvalBatchSampler(dataset, self.eval_batch_size, *self._place()))

    def _place(self) -> tuple[int, int]:
        """(ranks, rank) in this data center: its Trainer's world is the data center, not the whole job."""
        if self.trainer is None:
            return 1, 0
        # Lightning would replace the samplers, and single examples would arrive where batches are expected.
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            raise DataError(
                f"trainer.overfit_batches: {overfit} does not go with whole-batch fetching; use "
                "limit_train_batches and limit_val_batches."
            )
        return self.trainer.world_size, self.trainer.global_rank

    @property
    def _trains_on_gpu(self) -> bool:
        """On a machine with GPUs, training may be on the CPU: then pinned memory only costs time."""
        return torch.cuda.is_available() and (self.trainer is None or self.trainer.strategy.root_device.type == "cuda")

    def _loader(
        self, dataset: ShardDataset | PooledShards, sampler: TrainBatchSampler | EvalBatchSampler
    ) -> DataLoader:
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            pin_memory=self._trains_on_gpu,
            persistent_workers=self.num_workers > 0,
        )


def shard_path(template: str, setting: str) -> Path:
    """A path from the configuration, for this data center.

    Args:
        template: may hold ``{center}``, ``~`` and ``$VARIABLES``.
        setting: its name, for messages.

    Raises:
        DataError: ``{center}`` without COLEARN_CENTER, an unset variable, or no file there.
    """
    name = template
    center = os.environ.get(CENTER_VARIABLE)
    if "{center}" in template:
        if not center:
            raise DataError(
                f"data.{setting}: {template!r} needs the name of the data center, but {CENTER_VARIABLE} is not set in "
                "the environment; set it, start with `colearn-hpc`, or name the file itself."
            )
        if not is_center_name(center):
            raise DataError(
                f"data.{setting}: {CENTER_VARIABLE}={center[:40]!r} in the environment cannot name a file; use "
                "letters, digits, '.', '_' and '-', at most 64."
            )
        name = template.replace("{center}", center)
    name = os.path.expandvars(name)
    if "$" in name:
        raise DataError(f"data.{setting}: {template!r} uses a variable that is not set in the environment; set it.")
    path = expanded(name, f"data.{setting}")
    if not path.exists():
        try:
            present = sorted(entry.name for entry in path.parent.glob("*.h5"))
        except OSError:
            present = []
        found = f"that folder holds {', '.join(present[:8])}" if present else "that folder holds no shards"
        whose = f" of data center {center}" if center else ""
        raise DataError(
            f"data.{setting}: there is no shard {path}{whose} ({found}). Make shards with `colearn-hpc data`, or "
            "correct the path or the data center's name."
        )
    return path
