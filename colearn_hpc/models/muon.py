"""Muon as a data center's own optimizer: matrices take orthogonalised steps, all other parameters those of AdamW.

``torch.optim.Muon`` takes matrices only. A network with biases would need a second optimizer beside it, and Lightning's
automatic optimization takes one. This class is both in one, with one rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of X ← aX + (b XXᵀ + c (XXᵀ)²) X: the steepest at 0 that still end near 1 (Jordan et al.)."""


class Muon(Optimizer):
    """Muon for parameters with two or more dimensions, AdamW for the others.

    Muon takes a matrix's momentum, and makes the step from it orthogonal. A convolution's kernel (out, in, height,
    width) is the matrix (out, in · height · width). If USVᵀ is the matrix's Nesterov momentum, its step is
    0.2 √max(rows, columns) · η · UVᵀ. Such a step is as large as one of AdamW. So one η fits both, and a schedule
    multiplies one rate (Liu et al. 2025, arXiv 2502.16982).

    The authors of Muon leave embeddings and the last layer to AdamW. They cannot be told by their shape, so from a
    configuration they are treated like every matrix. In code, give them a group of their own::

        Muon([{"params": body}, {"params": head, "orthogonal": False}], lr=0.001)

    Sources: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; inside DiLoCo: Thérien et al. 2025
    ("MuLoCo"), arXiv 2505.23725.

    Args:
        params: parameters, or groups of them. A group without the key ``orthogonal`` becomes two groups: one of its
            matrices, and one of the rest.
        lr: η, for all parameters.
        momentum: of the matrices.
        betas: β₁ and β₂ of AdamW.
        eps: ε of AdamW.
        weight_decay: decoupled weight decay of all parameters.
        steps: number of Newton–Schulz iterations.

    Raises:
        ValueError: a setting is out of its range, or a group with ``orthogonal: True`` has a parameter of fewer than
            two dimensions.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        in_range = {"lr": lr > 0, "momentum": 0 <= momentum < 1, "betas": all(0 <= beta < 1 for beta in betas)}
        in_range |= {"eps": eps > 0, "weight_decay": weight_decay >= 0, "steps": steps >= 1}
        if wrong := [name for name, right in in_range.items() if not right]:
            raise ValueError(f"Muon: {wrong[0]}={locals()[wrong[0]]} is out of its range")
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        super().__init__(_by_shape(params), defaults | {"weight_decay": weight_decay, "steps": steps})
        for group in self.param_groups:
            if group["orthogonal"] and (bad := [tuple(p.shape) for p in group["params"] if p.ndim < 2]):
                raise ValueError(f"Muon: a parameter of shape {bad[0]} is no matrix: set orthogonal to False for it")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; returns what ``closure`` did."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            direction = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step, size = direction(parameter, group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"] * size)
        return loss

    def _orthogonal(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(average, group["momentum"]).flatten(1)
        return orthogonalised(matrix, group["steps"]).reshape(parameter.shape), 0.2 * math.sqrt(max(matrix.shape))

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, group["betas"]
        assert gradient is not None
        if "step" not in state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
        state["step"] += 1
        first = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
        second = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
        return first / (second.sqrt() + group["eps"]), 1.0


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately UVᵀ of a matrix USVᵀ.

    The singular values of the result are not exactly 1: they lie between about 0.5 and 1.5.

    Args:
        matrix: shape (rows, columns), any float type.
        steps: number of Newton–Schulz iterations.

    Returns:
        bfloat16 of the same shape.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def _by_shape(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameters or groups as groups that say whether they are ``orthogonal``; none of them is empty."""
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    found = []
    for group in groups:
        of_group = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if "orthogonal" in group:
            found.append(group | {"params": of_group})
            continue
        for orthogonal in (True, False):
            if these := [p for p in of_group if (p.ndim >= 2) is orthogonal]:
                found.append(group | {"params": these, "orthogonal": orthogonal})
    return found
