"""What every registered network owes, whatever it is; a new one that is missing in the table fails the first test."""

import copy

import pytest
import torch

from colearn_hpc.models import Classifier, MultilabelTask, network_names

RANDOM = torch.Generator().manual_seed(0)
TEXT = {"vocabulary_size": 20, "embedding_dim": 12}
CASES = {
    "audioset_crnn": ({"bands": 16}, torch.randn(8, 16, 16, generator=RANDOM)),
    "audioset_fc": ({"hidden": 32, "dropout": 0.0}, torch.randn(8, 10, 128, generator=RANDOM)),
    "bigru": ({"hidden": 8, **TEXT}, torch.arange(8 * 15).reshape(8, 15) % 19 + 1),
    "densenet40": ({}, torch.randn(8, 3, 8, 8, generator=RANDOM)),
    "digits_cnn": ({}, torch.randn(8, 1, 8, 8, generator=RANDOM)),
    "resnet8": ({}, torch.randn(8, 3, 8, 8, generator=RANDOM)),
    "speech_cnn": ({"frames": 30, "bands": 20, "dropout": 0.0}, torch.randn(8, 30, 20, generator=RANDOM)),
    "text_capsule": ({"length": 15, "capsules": 4, **TEXT}, torch.arange(8 * 15).reshape(8, 15) % 19 + 1),
    "vgg19_cifar": ({}, torch.randn(8, 3, 32, 32, generator=RANDOM)),
}
MULTILABEL = {"audioset_crnn", "audioset_fc", "bigru", "text_capsule"}
RATES = {"vgg19_cifar": 0.02, "audioset_fc": 0.5, "bigru": 0.5, "text_capsule": 0.5}


def task(name):
    torch.manual_seed(0)
    args, x = CASES[name]
    settings = {"network_args": args, "num_classes": 4, "learning_rate": RATES.get(name, 0.05)}
    if name in MULTILABEL:
        return MultilabelTask(name, **settings), x, torch.eye(4).repeat(2, 1)
    return Classifier(name, **settings), x, torch.arange(8) % 4


def loss_of(model, x, y):
    if isinstance(model, MultilabelTask):
        return model._loss(model(x), y)[0]
    return torch.nn.functional.cross_entropy(model(x), y)


def test_digits_cnn_takes_spectrograms_without_a_channel():
    network, x = Classifier("digits_cnn", num_classes=4), torch.randn(2, 8, 8)
    assert torch.equal(network.eval()(x), network(x[:, None]))


def test_every_network_is_in_the_table():
    assert set(CASES) == set(network_names())


@pytest.mark.parametrize("name", CASES)
def test_plain_sgd_reduces_the_loss_of_one_batch(name):
    model, x, y = task(name)
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(8):
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert min(losses) < 0.9 * losses[0]


@pytest.mark.parametrize("name", CASES)
def test_an_example_does_not_depend_on_its_batch_in_evaluation(name):
    model, x, _ = task(name)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(x)[2:4], model(x[2:4]), atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_weights_and_state_dict_is_all_of_it(name):
    first, x, _ = task(name)
    second = task(name)[0]
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    with torch.no_grad():
        first.train()(x)  # moves BatchNorm's statistics
        for parameter in first.parameters():
            parameter.add_(0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        assert torch.equal(first.eval()(x), second.eval()(x))
