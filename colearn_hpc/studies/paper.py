"""The paper's own figures, to be shown beside ours where a study names a row.

Source: Mi et al. 2020, Table 1 (per round: minutes, MB of one model) and Table 2 (CIFAR-10 accuracy, %).
"""

from __future__ import annotations

TABLE_2: dict[str, dict[str, float]] = {
    "VGG-19": {"vanilla": 89.44, "ensemble": 80.39, "clr+ile": 89.64},
    "ResNet-152": {"vanilla": 92.64, "ensemble": 85.4, "clr+ile": 93.51},
    "Inception-V4": {"vanilla": 91.34, "ensemble": 83.83, "clr+ile": 92.07},
    "Inception-ResNet-V2": {"vanilla": 92.86, "ensemble": 84.7, "clr+ile": 92.83},
    "DenseNet-40": {"vanilla": 91.35, "ensemble": 81.24, "clr+ile": 91.43},
}

TABLE_1: dict[str, str] = {
    "DenseNet-40": "4.5 min per 5 epochs, 13 MB",
    "ResNet-152": "30 min per 5 epochs, 223 MB",
    "Inception-V4": "60 min per 20 epochs, 168 MB",
    "Inception-ResNet-V2": "27.5 min per 5 epochs, 218 MB",
}
