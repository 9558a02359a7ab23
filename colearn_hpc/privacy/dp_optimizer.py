"""Opacus' optimizers, with noise of the site's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DistributedDPOptimizer, DPOptimizer
from torch.optim import Optimizer

from colearn_hpc.privacy.site_random import Noise


class SiteDPOptimizer(DPOptimizer):
    """Clips each record's gradient and adds noise before the step of the optimizer inside (Abadi et al. 2016).

    Args:
        optimizer: the one inside; its state, groups and rates are this one's too.
        noise_of_step: asked once a step for its noise, in units of σ · clip.
        settings: Opacus' ``noise_multiplier``, ``max_grad_norm`` and ``expected_batch_size`` (of this rank).
    """

    def __init__(self, optimizer: Optimizer, noise_of_step: Callable[[], Noise], **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self._noise_of_step = noise_of_step

    def add_noise(self) -> None:
        noise, scale = self._noise_of_step(), self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            drawn = torch.from_numpy(noise.normal(parameter.numel())).view_as(parameter)
            total = parameter.summed_grad.view_as(parameter)
            parameter.grad = total + drawn.to(total.device, total.dtype) * scale


class SiteDistributedDPOptimizer(DistributedDPOptimizer, SiteDPOptimizer):
    """The same for one of several ranks: rank 0 adds the noise, and the ranks' sums are added up."""

    def __init__(self, optimizer: Optimizer, noise_of_step: Callable[[], Noise], **settings: Any) -> None:
        DistributedDPOptimizer.__init__(self, optimizer, noise_of_step=noise_of_step, **settings)
