"""Rivals of equation 2: outer optimizers and kept models against loops written from their papers."""

import math

import pytest
import torch

from colearn_hpc.algorithm.kept_model import LatestMean
from colearn_hpc.algorithm.outer import DelayedNesterov, FedAdam, FedYogi, OuterSGD


def run(outer, rounds=7, size=50, drift=0.1):
    """Shared models of some rounds, whose means lie at random around them; and the pseudo-gradients."""
    generator = torch.Generator().manual_seed(1)
    shared, state = torch.randn(size, generator=generator, dtype=torch.float64), None
    models, gradients = [shared], []
    for _ in range(rounds):
        mean = shared + drift * torch.randn(size, generator=generator, dtype=torch.float64)
        gradients.append((shared - mean).tolist())
        shared, state = outer.step(shared, mean, state)
        models.append(shared)
    return models, gradients


def check(models, gradients, scalar_loop):
    """``scalar_loop`` yields a parameter's values from its pseudo-gradients, one at a time, in plain floats."""
    for place in range(0, models[0].numel(), 7):
        found = [float(model[place]) for model in models]
        expected = list(scalar_loop(found[0], [gradient[place] for gradient in gradients]))
        assert found[1:] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_fedavgm_is_outer_sgd():
    """Hsu et al.: v ← β·v + Δw; w ← w - v."""

    def loop(w, deltas):
        v = 0.0
        for delta in deltas:
            v = 0.9 * v + delta
            w = w - v
            yield w

    check(*run(OuterSGD(1.0, 0.9, nesterov=False)), loop)


def test_fedswas_moving_average_is_outer_sgd():
    """w ← w + α·(w̄ - w), which the next round starts from."""

    def loop(w, deltas):
        for delta in deltas:
            mean = w - delta
            w = w + 0.4 * (mean - w)
            yield w

    check(*run(OuterSGD(0.4, 0.0, nesterov=False)), loop)


@pytest.mark.parametrize("kind", [FedAdam, FedYogi])
def test_fedadam_and_fedyogi_against_algorithm_2(kind):
    def loop(x, deltas):
        m, v = 0.0, 0.05**2
        for gradient in deltas:
            delta = -gradient  # the paper's Δ points downhill
            m = 0.8 * m + 0.2 * delta
            if kind is FedAdam:
                v = 0.95 * v + 0.05 * delta**2
            else:
                v = v - 0.05 * delta**2 * math.copysign(1, v - delta**2)
            x = x + 0.03 * m / (math.sqrt(v) + 0.05)
            yield x

    check(*run(kind(0.03, 0.8, 0.95, 0.05)), loop)


@pytest.mark.parametrize(("every", "activation"), [(1, 0.0), (3, 0.0), (2, 0.5), (4, 0.1)])
def test_delayed_nesterov_against_algorithm_3(every, activation):
    def loop(theta, gradients):
        m, total = 0.0, 0.0
        for t, g in enumerate(gradients):
            total += g
            if (t + 1) % every == 0:
                m = 0.9 * m + total / every
                theta -= 0.7 * ((1 - activation * every + activation) * 0.9 * m + g / every)
                total = 0.0
            else:
                theta -= 0.7 * (activation * 0.9 * m + g / every)
            yield theta

    check(*run(DelayedNesterov(0.7, 0.9, every, activation), rounds=9), loop)


def test_delayed_nesterov_of_one_round_is_nesterov():
    ours, _ = run(DelayedNesterov(0.7, 0.9, every=1))
    nesterov, _ = run(OuterSGD(0.7, 0.9))
    for found, expected in zip(ours, nesterov, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outer", [FedAdam(), FedYogi(), DelayedNesterov()])
def test_a_state_that_went_through_a_file_gives_the_same_bits(outer, tmp_path):
    """Float32, more than a block, and the arguments stay as they are."""
    size = (1 << 20) + 3
    previous, means = torch.randn(size), [torch.randn(size) for _ in range(3)]
    shared, state = outer.step(previous, means[0], None)
    torch.save(state, tmp_path / "state")
    held = state.clone()
    expected = outer.step(shared, means[1], state)
    assert torch.equal(state, held) and state.dtype == torch.float32
    found = outer.step(shared, means[1], torch.load(tmp_path / "state", weights_only=True))
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[0], shared)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAdam(0.0), "learning_rate must be above 0, found 0.0"),
        (lambda: FedAdam(beta1=1.0), "beta1"),
        (lambda: FedYogi(beta2=-0.1), "beta2"),
        (lambda: FedYogi(tau=0), "tau"),
        (lambda: DelayedNesterov(every=0), "every"),
        (lambda: DelayedNesterov(momentum=1), "momentum"),
        (lambda: DelayedNesterov(every=4, activation=0.3), "activation must be in .*0.25.* found 0.3"),
        (lambda: LatestMean(0), "last"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_latest_mean_keeps_a_window():
    models = [torch.randn(10, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    state = None
    for i, model in enumerate(models):
        kept, state = LatestMean(3).keep(model, state)
        window = models[max(i - 2, 0) : i + 1]
        torch.testing.assert_close(kept, torch.stack(window).double().mean(0).float(), rtol=1e-6, atol=1e-7)
        assert torch.equal(state, torch.stack(window))


def test_latest_mean_of_one_is_the_model_and_no_view_of_it():
    model = torch.randn(10)
    kept, state = LatestMean(1).keep(model, torch.zeros(1, 10))
    assert torch.equal(kept, model)
    model.zero_()
    assert kept.any() and state.any()
