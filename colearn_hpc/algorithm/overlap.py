"""A mean that comes late: a local model keeps what it has learned since it was sent.

This is not in the paper, whose participants wait for the mean. Here participant k has sent s_k, and has trained on to
w_k when the mean w̄ of the s_k arrives. It goes on from w_k + (w̄ - s_k), or with a mixing factor α from
α w_k + (1 - α) w̄.

Source: the first is akin to the delayed averaging of DaSGD (Zhou et al. 2020, arXiv 2006.00441); the second is that of
Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512, Algorithm 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from colearn_hpc.algorithm.shared_model import FlatModel

_BLOCK = 1 << 18  # elements worked on at a time


@torch.no_grad()
def correct(model: FlatModel, sent: Tensor, mean: Tensor, mixing: float | None = None) -> None:
    """Put the model from which training goes on in the place of what was sent.

    Args:
        model: the local model w_k, as it is now.
        sent: s_k, shape ``(size,)``; becomes w_k + (w̄ - s_k) in the parameters, or α w_k + (1 - α) w̄, and the model's
            own in the rest.
        mean: w̄, shape ``(size,)``.
        mixing: α, at least 0 and below 1; None: the first of the two.

    Raises:
        ValueError: the model has another size than it had when it was sent.
    """
    if not sent.shape == mean.shape == (model.size,):
        raise ValueError(
            f"the model has {model.size} elements now, and {len(sent)} were sent: it changed while its mean was under "
            "way; with exchange: {overlap: true} do not freeze or unfreeze parameters in a round's first local epoch"
        )
    end = model.parameter_size
    scratch = model.staging(min(_BLOCK, end))
    for start in range(0, end, _BLOCK):
        place = slice(start, min(start + _BLOCK, end))
        local = model.read(place.start, place.stop, scratch)
        onward = sent[place]
        if mixing is None:
            torch.sub(mean[place], onward, out=onward)
        else:
            torch.mul(mean[place], 1 - mixing, out=onward)
        model.wait()
        onward.add_(local, alpha=1 if mixing is None else mixing)
    rest = sent[end:]
    local = model.read(end, model.size, rest)
    model.wait()
    rest.copy_(local)
