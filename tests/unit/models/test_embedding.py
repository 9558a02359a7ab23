"""Word vectors from files, and that frozen ones can be told from what is exchanged."""

import h5py
import numpy as np
import pytest
import torch

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.embedding import build_embedding, lengths_of

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(params=["npy", "h5", "h5-other-name"])
def file(request, tmp_path):
    if request.param == "npy":
        np.save(tmp_path / "m.npy", MATRIX.astype(np.float16))
        return str(tmp_path / "m.npy")
    with h5py.File(tmp_path / "m.h5", "w") as out:
        out["embedding" if request.param == "h5" else "matrix"] = MATRIX
        out["words"] = [b"a", b"b"]
    return str(tmp_path / "m.h5")


def test_vectors_of_a_file_are_frozen_and_in_the_checkpoint(file):
    layer = build_embedding(file, None, 300, None)
    assert np.array_equal(layer.weight.detach(), MATRIX)
    assert not layer.weight.requires_grad
    assert list(layer.state_dict()) == ["weight"] and list(layer.buffers()) == []


def test_vectors_of_a_file_may_be_trained(file):
    assert build_embedding(file, 4, 300, True).weight.requires_grad


def test_new_vectors_are_trained_unless_told_otherwise():
    layer = build_embedding(None, 7, 5, None)
    assert layer.weight.shape == (7, 5) and layer.weight.requires_grad
    assert torch.equal(layer.weight[0], torch.zeros(5))
    assert not build_embedding(None, 7, 5, False).weight.requires_grad


def test_size_that_contradicts_the_file(file):
    with pytest.raises(ConfigurationError, match=r"vocabulary_size=5, but .* has 4 rows"):
        build_embedding(file, 5, 300, None)


@pytest.mark.parametrize("size", [None, 1])
def test_neither_file_nor_size(size):
    with pytest.raises(ConfigurationError, match=r"network_args\.embedding"):
        build_embedding(None, size, 300, None)


def test_missing_file_tells_how_to_do_without(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no such file here.*vocabulary_size"):
        build_embedding(str(tmp_path / "gone.npy"), None, 300, None)


@pytest.mark.parametrize("matrix", [np.zeros(3), np.zeros((2, 3), int), np.zeros((0, 3)), np.zeros((2, 2, 2))])
def test_a_file_of_another_form(tmp_path, matrix):
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(ConfigurationError, match="wanted a float matrix"):
        build_embedding(str(tmp_path / "m.npy"), None, 300, None)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00v\x00"])
@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_a_damaged_file(tmp_path, suffix, content):
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        build_embedding(str(path), None, 300, None)


def test_a_pickle_is_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        build_embedding(str(tmp_path / "m.npy"), None, 300, None)


def test_two_matrices_without_a_name_are_ambiguous(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as out:
        out["a"], out["b"] = MATRIX, MATRIX
    with pytest.raises(ConfigurationError, match="not exactly one"):
        build_embedding(str(tmp_path / "m.h5"), None, 300, None)


def test_lengths_end_at_the_last_word():
    tokens = torch.tensor([[3, 4, 0, 0], [3, 0, 5, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert lengths_of(tokens).tolist() == [2, 3, 1, 4]
