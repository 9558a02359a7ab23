"""Names, class paths, and what is said when they are wrong."""

import pytest
import torch
from torch import nn

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models import registry
from colearn_hpc.models.registry import build_network, network_names, register


@pytest.fixture
def own_names(monkeypatch):
    """Registrations of a test that the next one does not see."""
    network_names()
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


def test_registered_names_are_listed():
    assert {"densenet40", "digits_cnn"} <= set(network_names())


def test_a_registered_builder_gets_classes_and_arguments(own_names):
    @register("mine")
    def mine(num_classes, width=1):
        return nn.Linear(width, num_classes)

    network = build_network("mine", 3, width=7)
    assert (network.in_features, network.out_features) == (7, 3)


def test_a_taken_name_is_refused(own_names):
    with pytest.raises(ConfigurationError, match=r"already taken by .*image"):
        register("densenet40")(lambda num_classes: nn.Linear(1, num_classes))


@pytest.mark.parametrize("name", ["", "a.b", "timm/mine"])
def test_an_unusable_name_is_refused(name):
    with pytest.raises(ConfigurationError, match="dots are for class paths"):
        register(name)


def test_unknown_name_tells_the_nearest():
    with pytest.raises(ConfigurationError, match="'densnet-40' is not known; nearest: densenet40"):
        build_network("densnet-40", 10)


def test_unlike_any_name_tells_all_of_them():
    with pytest.raises(ConfigurationError, match=r"densenet40.*digits_cnn"):
        build_network("@@@", 10)


def test_dotted_class_path():
    network = build_network("torch.nn.Flatten", 10, start_dim=2)
    assert isinstance(network, nn.Flatten) and network.start_dim == 2


def test_dotted_class_is_given_num_classes_if_it_takes_it():
    network = build_network("colearn_hpc.models.image.DenseNet", 7, depth=7)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package_.Net", "No module named"),
        ("torch.nn.NoSuchNet", "NoSuchNet"),
        (".Net", "spelling"),
        ("os.system", "not a subclass"),
        ("torch.nn.functional.relu", "not a subclass"),
        ("collections.OrderedDict", "not a subclass"),
    ],
)
def test_a_path_to_something_else_is_refused(path, message):
    with pytest.raises(ConfigurationError, match=message):
        build_network(path, 10)


def test_a_path_never_runs_a_function(tmp_path):
    """A checkpoint names its network; it must not be able to name a function to run instead."""
    victim = tmp_path / "file"
    victim.touch()
    with pytest.raises(ConfigurationError, match="not a subclass"):
        build_network("os.remove", 2, path=str(victim))
    assert victim.exists()


def test_wrong_arguments_tell_the_right_ones():
    with pytest.raises(ConfigurationError, match=r"unexpected keyword argument 'depht'.*dropout"):
        build_network("densenet40", 10, depht=3)


def test_a_builders_own_type_error_is_not_disguised(own_names):
    @register("broken")
    def broken(num_classes):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        build_network("broken", 2)


def test_no_classes():
    with pytest.raises(ConfigurationError, match="num_classes=0"):
        build_network("digits_cnn", 0)
