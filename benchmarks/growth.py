"""What happens as data centers are added and models grow: up to 64 leaders, up to 10⁹ parameters, and a model of links.

runs        K leaders on this machine, more than it has cores: bits, messages and memory, and no speed
miniature   10⁹ parameters whose pages repeat, so that they fit: the same
links       K ≤ 16 leaders over links of a given bandwidth (`tc tbf`; root), beside what pipeline_model.py predicts
long        the same over links with a round trip of many milliseconds; and with as few chunks under way as on one host
predicted   up to which K and link an exchange stays within 1.2 of the bound; arithmetic of that model

python benchmarks/growth.py                   # all parts; links and long need root, ip and tc
python benchmarks/growth.py --parts predicted
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from _namespaces import Namespaces
from common import parser, ranks, table
from pipeline_model import Host, Link, predict

from colearn_hpc.mpi.pipeline import LONG_LINK

LIGHT = str(Path(__file__).with_name("light_rank.py"))
NETWORK = "10.93.0"
MODELS = (58_319_946, 1_000_000_000)
# Mbit/s and a round trip in ms: from what joins hospitals to what joins racks.
LINKS = ((50, 50), (200, 30), (1_000, 1), (1_000, 10), (1_000, 50), (1_000, 150), (10_000, 1), (10_000, 10))
CENTERS = (2, 3, 5, 8, 16, 32, 64)
LONG = ((2, 1_000, 50), (3, 1_000, 50), (2, 200, 150), (2, 50, 150), (5, 200, 150))  # K, Mbit/s, ms
PERIOD = 1 << 24  # floats of the miniature


def over_links(centers: int, megabits: int, floats: int, rounds: int, milliseconds: float = 0.0) -> dict[str, Any]:
    """Measured beside predicted: the pipeline alone, of leaders that share this machine's cores."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Namespaces(
            "colgro", NETWORK, centers, megabits, Path(folder), congestion="cubic", round_trip=milliseconds
        ) as links,
    ):
        arguments, options = ["--floats", floats, "--rounds", rounds, "--ahead"], links.mpirun_options()
        found = ranks(centers, LIGHT, *arguments, LONG_LINK, mpirun=options)
        few = ranks(centers, LIGHT, *arguments, 0, mpirun=options)["seconds"] if milliseconds else 0.0
    model = predict(
        floats, centers, Link(megabits, milliseconds / 1e3), Host(cores=min(1.0, (os.cpu_count() or 1) / centers))
    )
    return {
        "centers": centers,
        "Mbit/s": megabits,
        "round trip (ms)": milliseconds,
        "floats": floats,
        "measured (s)": found["seconds"],
        "predicted (s)": model.seconds,
        "measured / predicted": found["seconds"] / model.seconds,
        "measured / bound": found["seconds"] / model.bound,
        "predicted / bound": model.seconds / model.bound,
        "bits": found["bits"],
    } | ({"with four chunks / bound": few / model.bound} if few else {})


def predicted() -> list[dict[str, Any]]:
    """Exchange / bound by link and K, for each model."""
    rows = []
    for floats in MODELS:
        for megabits, milliseconds in LINKS:
            link = Link(megabits, milliseconds / 1e3)
            row: dict[str, Any] = {"floats": floats, "Mbit/s": megabits, "round trip (ms)": milliseconds}
            for k in CENTERS:
                found = predict(floats, k, link)
                row[f"K = {k}"] = found.exchange / found.bound
            rows.append(row | {"exchange at K = 64 (s)": found.exchange, "messages at K = 64": found.messages})
    return rows


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    parts = ["runs", "miniature", "links", "long", "predicted"]
    options.add_argument("--parts", nargs="+", choices=parts, default=parts, help="(default: all)")
    options.add_argument("--centers", type=int, nargs="+", default=[2, 8, 16, 32, 64], help="of runs (%(default)s)")
    options.add_argument("--floats", type=int, default=2_000_000, help="of runs (default: %(default)s)")
    options.add_argument("--large", type=int, default=10**9, help="of the miniature (default: %(default)s)")
    options.add_argument("--linked", type=int, nargs="+", default=[2, 4, 8, 16], help="K of links (%(default)s)")
    options.add_argument("--rates", type=int, nargs="+", default=[50, 200], help="Mbit/s (default: %(default)s)")
    options.add_argument("--linked-floats", type=int, default=4_000_000, help="of links (default: %(default)s)")
    options.add_argument("--long-floats", type=int, default=16_000_000, help="of long (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=3, help="of links and long (default: %(default)s)")
    chosen = options.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    if "predicted" in chosen.parts:
        found["predicted"] = predicted()
    if "runs" in chosen.parts:
        found["runs"] = [ranks(k, LIGHT, "--floats", chosen.floats) for k in chosen.centers]
    if "miniature" in chosen.parts:
        found["miniature"] = [ranks(2, LIGHT, "--floats", chosen.large, "--period", PERIOD)]
    if "links" in chosen.parts:
        places = [(k, rate) for rate in chosen.rates for k in chosen.linked]
        found["links"] = [over_links(k, rate, chosen.linked_floats, chosen.rounds) for k, rate in places]
    if "long" in chosen.parts:
        found["long"] = [over_links(k, rate, chosen.long_floats, chosen.rounds, ms) for k, rate, ms in LONG]
    for name, rows in found.items():
        print(f"{name}:\n{table(rows)}\n")
    if chosen.json:
        known = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}  # of other parts
        settings = {key: value for key, value in vars(chosen).items() if key not in ("worker", "json", "parts")}
        chosen.json.write_text(json.dumps(known | {"settings": settings} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
