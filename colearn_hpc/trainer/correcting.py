"""Local corrections (FedProx, SCAFFOLD) inside Lightning: gradients at each step, variates at a round's end.

    each step            gradients are corrected when DDP has averaged them and a GradScaler's factor is taken out,
                         before they are clipped
    a round's last batch each data center gives its new variate beside its model, in the same vector
    the mean is there    its own variate is the new one, and the common one is their mean

With one data center there is nothing to correct towards: training stays plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Callback
from colearn_hpc.algorithm.local_correction import LocalCorrection, Variates
from colearn_hpc.algorithm.shared_model import trainable_parameters
from colearn_hpc.errors import ConfigurationError, ParticipantError
from colearn_hpc.trainer.lightning_gaps import pass_over_empty_hooks
from colearn_hpc.trainer.optimizers import skips_step


class Corrector:
    """What a correction needs besides gradients, by the parameters' names; the same on all ranks of a data center.

    Args:
        correction: the rule.
    """

    def __init__(self, correction: LocalCorrection) -> None:
        self._correction = correction
        self._renews = callable(getattr(correction, "renewed", None))
        self._shared: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self._common: dict[str, Tensor] = {}
        self._distances: dict[str, float] = {}
        # The new variate, and the tensors in which the mean of all comes.
        self._renewed: dict[str, Tensor] = {}
        self._offered: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def begin_epoch(self, module: pl.LightningModule) -> None:
        """A local epoch begins. What is not known is now as it is in the last shared model: the round begins with this
        epoch, or the parameter was frozen until now."""
        self._names = {}
        for name, parameter in trainable_parameters(module):
            self._names[id(parameter)] = name
            if name not in self._shared:
                self._shared[name] = parameter.detach().clone()

    def correct(self, module: pl.LightningModule, optimizer: Optimizer, skipped: bool = False) -> None:
        """Correct the gradients that the optimizer is about to use.

        Args:
            module: whose parameters.
            optimizer: that is about to step.
            skipped: it will not step after all: what it would have moved is not counted.

        Raises:
            ConfigurationError: one of them is sparse.
        """
        if not self._names:  # an epoch that is resumed in its middle has no beginning here
            self.begin_epoch(module)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is None or parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    raise ConfigurationError(
                        f"local_correction={self._correction} changes every element of a gradient, and that of {name} "
                        "is sparse; use sparse=False there, or drop local_correction"
                    )
                shared = self._on(self._shared, name, parameter)
                self._correction.correct(parameter.grad, parameter.detach(), shared, self._variates(name, parameter))
                if not skipped:
                    self._distances[name] = self._distances.get(name, 0.0) + float(group["lr"])

    def offer(self, parameters: list[tuple[str, Tensor]], absent: bool) -> list[tuple[str, Tensor]]:
        """(name, tensor) of this data center's new variate; what is written into the tensors becomes the common one.

        Args:
            parameters: those in the mean, by name, after the round's last step.
            absent: this data center gives nothing to the mean.

        Raises:
            ParticipantError: the correction cannot renew a variate.
        """
        if not self._renews:
            return []
        self._renewed = {}
        for name, parameter in parameters:
            variates = self._variates(name, parameter)
            assert variates is not None, "it renews them"
            self._renewed[name] = variates.own if absent else self._renewal(name, parameter.detach(), variates)
        self._offered = {name: tensor.clone() for name, tensor in self._renewed.items()}
        return [(f"variate of {name}", tensor) for name, tensor in self._offered.items()]

    def commit(self) -> None:
        """The mean is there, and the module is the shared model."""
        self._own |= self._renewed
        self._common |= self._offered
        self._renewed, self._offered = {}, {}
        self._shared, self._distances = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """For a resume point; where the round began is the last shared model, which is in it already."""
        own, common = ({name: t.detach().cpu() for name, t in part.items()} for part in (self._own, self._common))
        return {"own": own, "common": common, "distances": dict(self._distances)}

    def handed_on(self) -> dict[str, Any]:
        """For a data center that joins: the common variate. Its own begins at zero."""
        return {"own": {}, "common": {name: t.detach().cpu() for name, t in self._common.items()}, "distances": {}}

    def load_state_dict(self, state: Mapping[str, Any], averaging: Mapping[str, Any]) -> None:
        """Go on from a resume point.

        Args:
            state: what :meth:`state_dict` returned.
            averaging: of the averager: the last shared model, of which parameters it is, and what has joined since.
        """
        self._own, self._common = dict(state["own"]), dict(state["common"])
        self._distances = dict(state["distances"])
        self._shared = {}
        if self._distances:  # some of the round is trained
            start = 0
            for name, length in averaging["layout"]:
                self._shared[name] = averaging["previous"][start : start + length]
                start += length
            self._shared |= averaging["joined"]

    def _renewal(self, name: str, parameter: Tensor, variates: Variates) -> Tensor:
        shared = self._on(self._shared, name, parameter)
        try:
            return self._correction.renewed(  # type: ignore[attr-defined]
                parameter, shared, variates, self._distances.get(name, 0.0)
            )
        except ValueError as error:
            raise ParticipantError(f"parameter {name}: {error}") from error

    def _variates(self, name: str, parameter: Tensor) -> Variates | None:
        if not self._renews:
            return None
        for part in (self._own, self._common):
            if name not in part:
                part[name] = torch.zeros_like(parameter, requires_grad=False)
        return Variates(self._on(self._own, name, parameter), self._on(self._common, name, parameter))

    def _on(self, part: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
        """What ``part`` holds of a parameter, in its shape, dtype and place; a checkpoint's comes from the CPU."""
        found = part[name]
        if found.device != parameter.device or found.dtype != parameter.dtype or found.shape != parameter.shape:
            found = part[name] = found.to(parameter.device, parameter.dtype).reshape(parameter.shape)
        return found


class CorrectsGradients(Callback):
    """Has gradients corrected before each optimizer step; added by :class:`CoLearning`, behind all others.

    Args:
        corrector: that does it.
    """

    def __init__(self, corrector: Corrector) -> None:
        self.corrector = corrector
        pass_over_empty_hooks(self)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and any(getattr(one, "_step_supports_amp_scaling", False) for one in trainer.optimizers):
            raise ConfigurationError(
                "local_correction needs gradients in their own scale, and this optimizer takes the GradScaler's factor "
                'out itself, after them; use fused=False, or precision="bf16-mixed"'
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.corrector.correct(pl_module, optimizer, skips_step(trainer, optimizer))
