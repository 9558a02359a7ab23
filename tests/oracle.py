"""Algorithm 1 as a plain loop, without Lightning, MPI or anything of the package: what the package must equal."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy


def co_learning(nets, data, *, rounds, local_epochs, epsilon, decay, rate, momentum, batch):
    """Train K participants in turn, in one process.

    Args:
        nets: K networks of one shape; participant 0's weights are w⁰.
        data: K TensorDatasets.

    Returns:
        (models, history): the shared model after every round, shape (rounds, n), and [(T_i, relative change)].
    """
    shared = _flat(nets[0])
    models, history = [], []
    kept = torch.optim.SGD(nets[0].parameters(), lr=rate, momentum=momentum) if len(nets) == 1 else None
    for _ in range(rounds):
        local = []
        for net, (x, y) in zip(nets, (d.tensors for d in data), strict=True):
            _set(net, shared)
            # Momenta are reset at a round's end; with one participant there is no averaging, and nothing is reset.
            optimizer = kept or torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
            for j in range(1, local_epochs + 1):
                for group in optimizer.param_groups:
                    group["lr"] = rate * decay ** (j / local_epochs)  # eq. 3
                for start in range(0, len(x), batch):
                    optimizer.zero_grad()
                    cross_entropy(net(x[start : start + batch]), y[start : start + batch]).backward()
                    optimizer.step()
            local.append(_flat(net))
        mean = np.mean([w.astype(np.float64) for w in local], axis=0).astype(np.float32)  # eq. 2
        difference, before = mean.astype(np.float64) - shared, shared.astype(np.float64)
        change = float(np.linalg.norm(difference) / np.linalg.norm(before))
        models.append(mean)
        history.append((local_epochs, change))
        shared = mean
        local_epochs = 2 * local_epochs if change <= epsilon else local_epochs  # eq. 4
    return np.array(models), history


def _flat(net) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy().copy()


def _set(net, vector: np.ndarray) -> None:
    torch.nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), net.parameters())
