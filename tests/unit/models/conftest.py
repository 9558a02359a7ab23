"""For every test of the models."""

import pytest

from colearn_hpc._torchvision import make_torchvision_importable

# Before any test module imports Lightning: a torchvision built for another torch must not end the collection.
make_torchvision_importable()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors are no faster on several threads, and many times slower where the cores are busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
