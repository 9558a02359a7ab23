"""The flat vector in pieces: what is read without a copy, what is joined, and that nothing is lost."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from colearn_hpc.algorithm.shared_model import FlatModel, first_non_finite, infinite_buffers, relative_change, squares

SHAPES = st.lists(st.sampled_from([(), (1,), (0,), (3, 5), (40,), (7, 1, 2)]), max_size=12)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.complex64])


def flat(shapes, dtypes, split):
    tensors = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    named = [(f"t{i}", t) for i, t in enumerate(tensors)]
    return FlatModel(named[:split], named[split:]), tensors


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_piece_is_that_piece_of_the_whole(data):
    shapes = data.draw(SHAPES)
    dtypes = [data.draw(DTYPES) for _ in shapes]
    model, tensors = flat(shapes, dtypes, data.draw(st.integers(0, len(shapes))))
    whole = model.pack()
    assert len(whole) == model.size == sum(t.numel() * (2 if t.is_complex() else 1) for t in tensors)
    start = data.draw(st.integers(0, model.size))
    stop = data.draw(st.integers(start, model.size))
    piece = model.read(start, stop, torch.full((model.size + 1,), math.nan))
    model.wait()
    assert piece.shape == (stop - start,) and torch.equal(piece, whole[start:stop])


def test_a_piece_of_one_tensor_is_not_copied():
    tensors = [torch.randn(10), torch.randn(20)]
    model = FlatModel([("a", tensors[0]), ("b", tensors[1])])
    scratch = torch.zeros(30)
    assert model.read(12, 25, scratch).data_ptr() == tensors[1][2:].data_ptr()
    assert (scratch == 0).all()
    assert model.read(5, 15, scratch).data_ptr() == scratch.data_ptr()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_unpacking_puts_every_value_in_its_place(data):
    shapes = data.draw(SHAPES)
    dtypes = [data.draw(DTYPES) for _ in shapes]
    model, tensors = flat(shapes, dtypes, data.draw(st.integers(0, len(shapes))))
    vector = torch.randn(model.size)
    model.unpack(vector)
    pieces = vector.split([_real_numel(t) for t in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        there = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert torch.equal(there.reshape(-1), piece.to(there.dtype))


def _real_numel(tensor):
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def test_staged_buffers_are_offered_in_place_of_the_tensors():
    parameter, buffer = torch.zeros(3), torch.ones(2)
    model = FlatModel([("p", parameter)], [("b", buffer)])
    model.stage_others().fill_(7.0)
    assert model.pack().tolist() == [0, 0, 0, 7, 7] and buffer.tolist() == [1, 1]
    model.unpack(torch.arange(5.0))
    assert buffer.tolist() == [3, 4]


def test_the_name_of_what_is_not_finite_is_found_without_a_copy():
    model = FlatModel([("a", torch.full((5,), 3e38)), ("b", torch.tensor([1.0, math.inf]))])
    assert first_non_finite(None, model) == "b"  # the sum of the first overflows, and it is finite


def test_squares_of_slices_add_up():
    new, old = torch.randn(100_000), torch.randn(100_000)
    whole, parts = squares(new, old), squares(new[:7], old[:7]) + squares(new[7:], old[7:])
    assert parts.relative_change == pytest.approx(whole.relative_change, rel=1e-12)
    assert whole.after == pytest.approx(float(new.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_sparse_buffers_are_left_alone(layout):
    net = nn.BatchNorm1d(3)
    net.register_buffer("adjacency", getattr(torch.eye(3), layout)())
    assert [entry.name for entry in FlatModel.of(net).entries][2:] == ["running_mean", "running_var"]
    assert infinite_buffers(net) == {}


def test_buffers_that_are_infinite_by_design_are_left_out_while_they_stay_so():
    net = nn.BatchNorm1d(3)
    net.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    constant = infinite_buffers(net)
    assert list(constant) == ["mask"]
    assert "mask" not in [entry.name for entry in FlatModel.of(net, constant).entries]
    net.mask[0, 0] = 1.0
    assert "mask" in [entry.name for entry in FlatModel.of(net, constant).entries]
    net.running_var[0] = torch.nan
    assert list(infinite_buffers(net)) == ["mask"]  # NaN is never by design


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mean_is_rounded_to_what_the_module_holds(dtype):
    """Eq. 4 between shared models that exist: a step below the last digit has moved nothing."""
    module = nn.Linear(3, 2)
    module.weight.data = module.weight.data.to(dtype)
    model = FlatModel.of(module)
    assert model.is_narrow and not FlatModel.of(nn.Linear(3, 2)).is_narrow
    before = model.pack()
    mean = before * (1 + 1e-6)
    model.round_(mean)
    weights = slice(0, 6)
    assert torch.equal(mean[weights], before[weights])  # nothing but the bias, which is float32, has moved
    assert not torch.equal(mean[6:], before[6:])
    model.unpack(mean)
    assert torch.equal(model.pack(), mean)  # it is what the module holds
    assert relative_change(mean, before) < relative_change(before * (1 + 1e-6), before)
