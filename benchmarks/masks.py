"""CPU time of one site's masks for one vector, chunk by chunk, and of its keys; one process, no network.

python benchmarks/masks.py --sites 3 5 16
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import median, parser, report
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from colearn_hpc.privacy.keys import AttemptKeys, Transcript
from colearn_hpc.privacy.masks import Masks

_CHUNK = 1 << 20  # bytes


def measure(sites: int, bits: int, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of CPU of the first site; each round has keys of its own."""
    roster = tuple(f"site{k}" for k in range(sites))
    signing = {site: Ed25519PrivateKey.generate() for site in roster}
    certified = {site: key.public_key() for site, key in signing.items()}
    vector = np.zeros(size, f"<u{bits // 8}")
    step = _CHUNK // vector.itemsize
    keys_seconds, masks_seconds = [], []
    for attempt in range(rounds + 1):
        plan = Transcript("benchmark", 0, attempt, roster, size, bits, (20,), (1.0,) * sites)
        others = [AttemptKeys(site, signing[site], plan).signed for site in roster[1:]]
        start = time.process_time()
        own = AttemptKeys(roster[0], signing[roster[0]], plan)
        masks = Masks(own.seeds([own.signed, *others], certified), plan)
        keys_seconds.append(time.process_time() - start)
        start = time.process_time()
        for offset in range(0, size, step):
            masks.add(vector[offset : offset + step], offset)
        masks_seconds.append(time.process_time() - start)
    # The first round touches the vector's pages for the first time.
    keys, seconds = median(keys_seconds[1:]), median(masks_seconds[1:])
    return {
        "sites": sites,
        "bits": bits,
        "values": size,
        "keys (ms)": keys * 1e3,
        "masks (CPU s)": seconds,
        "keystream (GB/s)": (sites - 1) * vector.nbytes / seconds / 1e9,
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument(
        "--sites", type=int, nargs="+", default=[3, 5, 16], help="in the roster (default: %(default)s)"
    )
    options.add_argument("--bits", type=int, nargs="+", default=[32, 64], help="(default: %(default)s)")
    options.add_argument("--parameters", type=int, default=58_000_000, help="(default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    chosen = options.parse_args()
    report([measure(k, b, chosen.parameters, chosen.rounds) for b in chosen.bits for k in chosen.sites], chosen)


if __name__ == "__main__":
    main()
