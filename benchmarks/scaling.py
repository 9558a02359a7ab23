"""Exchange time and memory as data centers are added and as the model grows, all ranks on this machine.

What one machine can show is the shape: bytes per leader approach twice the model, memory stays at twice the model, and
time follows K through the one memory that all share. What K machines do is arithmetic: see docs/performance.md.

    python benchmarks/scaling.py --centers 2 4 8 16 --parameters 1000000 8000000 58164298
"""

from __future__ import annotations

from typing import Any

import exchange
import memory
import torch
from common import answer, parser, ranks, report


def measure(parameters: int, rounds: int) -> dict[str, Any]:
    """On every rank; the figures of the first."""
    used = memory.measure(parameters, "fp32")
    took = exchange.measure(parameters, "resnet", rounds, "fp32", False)
    k, size = took["centers"], took["floats"]
    return {
        "centers": k,
        "floats": size,
        "ours (s)": took["ours (s)"],
        "raw (s)": took["raw (s)"],
        "ours / raw": took["ours / raw"],
        "ns per float and center": took["ours (s)"] / size / k * 1e9,
        "sent by a leader / model": 2 * (k - 1) / k,
        "peak memory / model": used["peak / model"],
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--centers", type=int, nargs="+", default=[2, 4, 8, 16], help="K (default: %(default)s)")
    options.add_argument("--fixed", type=int, default=8_000_000, help="parameters as K grows (default: %(default)s)")
    sizes = [1_000_000, 8_000_000, 58_164_298]
    options.add_argument("--parameters", type=int, nargs="+", default=sizes, help="at --at (default: %(default)s)")
    options.add_argument("--at", type=int, default=4, help="K as the model grows (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    chosen = options.parse_args()
    if chosen.worker:
        torch.set_num_threads(1)
        answer(measure(chosen.fixed, chosen.rounds))
        return
    places = [(count, chosen.fixed) for count in chosen.centers]
    places += [(chosen.at, parameters) for parameters in chosen.parameters if (chosen.at, parameters) not in places]
    rows = [ranks(k, __file__, "--fixed", size, "--rounds", chosen.rounds) for k, size in places]
    report(rows, chosen)


if __name__ == "__main__":
    main()
