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


def _trained(net) -> list:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def _flat(net) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in _trained(net)]).numpy().copy()


def _set(net, vector: np.ndarray) -> None:
    torch.nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), _trained(net))


def overlapped(nets, data, *, rounds, local_epochs, epsilon, decay, rate, momentum, batch):
    """Algorithm 1 with overlap: the mean of a round comes at the end of the next one's first local epoch.

    Args:
        nets: K networks of one shape; participant 0's weights are w⁰.
        data: K TensorDatasets.

    Returns:
        (models, history, starts): as :func:`co_learning`, and the participants' models at the start of every local
        epoch, shape (epochs, K, n).
    """
    shared = _flat(nets[0])
    optimizers = [torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum) for net in nets]
    models, history, starts, sent = [], [], [], None
    for net in nets:
        _set(net, shared)
    for _round in range(rounds):
        epochs, j = local_epochs, 0  # T of the round before, until its mean is there
        while j < epochs:
            j += 1
            starts.append([_flat(net) for net in nets])
            for net, dataset, optimizer in zip(nets, data, optimizers, strict=True):
                x, y = dataset.tensors
                for group in optimizer.param_groups:
                    group["lr"] = rate * decay ** (j / epochs)  # eq. 3
                for start in range(0, len(x), batch):
                    optimizer.zero_grad()
                    cross_entropy(net(x[start : start + batch]), y[start : start + batch]).backward()
                    optimizer.step()
            if sent is not None:
                mean, change = _mean(sent, shared)
                for k, net in enumerate(nets):
                    _set(net, _flat(net) + (mean - sent[k]))
                    optimizers[k] = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
                models.append(mean)
                history.append((local_epochs, change))
                shared, sent = mean, None
                epochs = local_epochs = 2 * local_epochs if change <= epsilon else local_epochs  # eq. 4
        sent = [_flat(net) for net in nets]
    mean, change = _mean(sent, shared)  # of the last round, for which all wait
    return np.array([*models, mean]), [*history, (local_epochs, change)], np.array(starts)


def _mean(vectors, before):
    """Equation 2, and the relative change of eq. 4."""
    mean = np.mean([w.astype(np.float64) for w in vectors], axis=0).astype(np.float32)
    difference = mean.astype(np.float64) - before
    return mean, float(np.linalg.norm(difference) / np.linalg.norm(before.astype(np.float64)))


def in_steps(nets, streams, *, rounds, local_steps, epsilon, decay, rate, momentum, overlap=False):
    """Algorithm 1 with T in steps: eq. 3's j counts them, and eq. 4 doubles them.

    Args:
        nets: K networks of one shape; participant 0's weights are w⁰.
        streams: K iterators of batches, each without an end.
        overlap: the mean of a round comes after the next one's first T_0 steps.

    Returns:
        (models, history): as :func:`co_learning`.
    """
    shared, first = _flat(nets[0]), local_steps
    optimizers = [torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum) for net in nets]
    models, history, sent = [], [], None
    for net in nets:
        _set(net, shared)

    def take(vectors, bases):
        nonlocal shared, local_steps
        mean, change = _mean(vectors, shared)
        for k, net in enumerate(nets):
            _set(net, _flat(net) + (mean - bases[k]))
            optimizers[k] = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
        models.append(mean)
        history.append((local_steps, change))
        shared, local_steps = mean, 2 * local_steps if change <= epsilon else local_steps  # eq. 4

    for _round in range(rounds):
        steps, j = local_steps, 0
        while j < steps:
            j += 1
            for net, stream, optimizer in zip(nets, streams, optimizers, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * decay ** (j / steps)  # eq. 3
                x, y = next(stream)
                optimizer.zero_grad()
                cross_entropy(net(x), y).backward()
                optimizer.step()
            if sent is not None and j == first:
                take(sent, sent)
                sent, steps = None, local_steps
        local = [_flat(net) for net in nets]
        if overlap:
            sent = local
        else:
            take(local, local)
            for net in nets:
                _set(net, shared)
    if overlap:
        take(sent, sent)
    return np.array(models), history
