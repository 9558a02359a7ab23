"""How many times as fast batched augmentation is as the same done example by example.

Both ways run the same code on the same examples, once on the whole batch and once on batches of one, in turns, so
that whatever else the machine does hits both alike. The ratio is per pair of turns; its median is reported.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from colearn_hpc.data.audio_features import SpeechLogMel
from colearn_hpc.data.transforms import BackgroundNoise, RandomCropFlip, TimeShift

Transform = Callable[[Tensor], Tensor]


def cases(batch: int) -> dict[str, tuple[Transform, Tensor]]:
    """Name -> (transform, a batch of it)."""
    images, clips = torch.rand(batch, 3, 32, 32), torch.rand(batch, 16_000) * 2 - 1
    noise = BackgroundNoise(torch.rand(16_000 * 60))
    return {
        "crop_flip": (RandomCropFlip(), images),
        "time_shift": (TimeShift(), clips),
        "background_noise": (noise, clips),
        "speech_log_mel": (SpeechLogMel(), clips),
    }


def compare(transform: Transform, x: Tensor, turns: int) -> dict[str, float]:
    """Examples per second both ways, and the ratio."""

    def batched() -> None:
        transform(x)

    def one_by_one() -> None:
        torch.cat([transform(example) for example in x.split(1)])

    batched()
    one_by_one()  # first calls build tables
    whole, single = [], []
    for _ in range(turns):
        whole.append(_seconds(batched))
        single.append(_seconds(one_by_one))
    ratio = statistics.median(b / a for a, b in zip(whole, single, strict=True))
    return {
        "batched_per_second": round(len(x) / statistics.median(whole)),
        "single_per_second": round(len(x) / statistics.median(single)),
        "ratio": round(ratio, 2),
    }


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Prints JSON.", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=32, help="examples of a batch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=30, help="turns of each way (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    arguments = parser.parse_args()
    if min(arguments.batch_size, arguments.turns, arguments.threads) < 1:
        parser.error("--batch-size, --turns and --threads must be 1 or more")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    results = {name: compare(*case, arguments.turns) for name, case in cases(arguments.batch_size).items()}
    print(json.dumps({"settings": vars(arguments), "torch": torch.__version__, "results": results}, indent=2))


if __name__ == "__main__":
    main()
