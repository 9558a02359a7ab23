"""Muon against torch's own, which takes matrices only, and against torch's AdamW."""

import pytest
import torch
from torch import nn

from colearn_hpc.models import Muon

SETTINGS = {"lr": 0.01, "weight_decay": 0.1}


def steps(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], shapes: list[tuple]) -> None:
    """Three steps along gradients that follow from a seed alone."""
    torch.manual_seed(1)
    for _ in range(3):
        for parameter, shape in zip(parameters, shapes, strict=True):
            parameter.grad = torch.randn(shape).reshape(parameter.shape)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_equals_torch_muon_on_matrices_and_adamw_on_the_rest() -> None:
    shapes = [(5, 3), (7,), (4, 2, 3, 3), (2, 9), ()]
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    matrix = [len(shape) >= 2 for shape in shapes]
    theirs = [nn.Parameter((p.flatten(1) if m else p).detach().clone()) for p, m in zip(ours, matrix, strict=True)]
    oracles = [
        torch.optim.Muon([p for p in theirs if p.ndim == 2], adjust_lr_fn="match_rms_adamw", **SETTINGS),
        torch.optim.AdamW([p for p in theirs if p.ndim < 2], betas=(0.9, 0.95), **SETTINGS),
    ]
    before = [p.detach().clone() for p in ours]
    steps([Muon(ours, **SETTINGS)], ours, shapes)
    steps(oracles, theirs, shapes)
    for mine, its, start in zip(ours, theirs, before, strict=True):
        assert not torch.equal(mine, start)
        torch.testing.assert_close(mine.detach().reshape(its.shape), its.detach(), rtol=1e-5, atol=1e-6)


def test_a_group_says_what_a_shape_does_not() -> None:
    body, head = nn.Linear(4, 3), nn.Linear(3, 2)
    optimizer = Muon([{"params": body.parameters()}, {"params": head.parameters(), "orthogonal": False, "lr": 0.5}])
    assert [(len(g["params"]), g["orthogonal"], g["lr"]) for g in optimizer.param_groups] == [
        (1, True, 1e-3),
        (1, False, 1e-3),
        (2, False, 0.5),
    ]


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"steps": 0}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Muon([nn.Parameter(torch.ones(2, 2))], **settings)


def test_a_vector_is_not_made_orthogonal() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) is no matrix"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "orthogonal": True}])
