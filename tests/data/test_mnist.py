import os

import numpy as np
import pytest
import torch

from ntkit.data import mnist as room
from ntkit.data.cache import FOLDER
from ntkit.data.mnist import fashion_mnist, mnist
from ntkit.errors import NtkitError

needs_data = pytest.mark.skipif(not os.environ.get(FOLDER), reason=f"{FOLDER} is not set")


@pytest.fixture
def small(monkeypatch):
    draw = np.random.default_rng(0)
    arrays = {
        "x_train": draw.integers(0, 256, (50, 28, 28)).astype(np.uint8),
        "y_train": draw.integers(0, 10, 50).astype(np.uint8),
        "x_test": draw.integers(0, 256, (20, 28, 28)).astype(np.uint8),
        "y_test": draw.integers(0, 10, 20).astype(np.uint8),
    }
    monkeypatch.setattr(room, "load", lambda dataset: arrays)
    return arrays


def test_samples_are_drawn_without_replacement_from_the_seed(small):
    data = mnist(30, held_out=5, seed=1)
    assert data.train_x.shape == (30, 784) and data.held_out_x.shape == (5, 784)
    assert len(set(data.train_index.tolist())) == 30
    expected = small["x_train"][data.train_index].reshape(30, -1) / 255
    assert np.allclose(data.train_x.numpy(), expected, atol=1e-15)
    assert np.array_equal(data.held_out_y.numpy(), small["y_test"][data.held_out_index])
    assert torch.equal(data.train_index, mnist(30, seed=1).train_index)
    assert not torch.equal(data.train_index, mnist(30, seed=2).train_index)


def test_all_of_them_come_in_their_order(small):
    assert torch.equal(mnist().train_index, torch.arange(50))
    assert len(fashion_mnist()[1]) == 20


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": 51}, {"held_out": 21}])
def test_numbers_that_do_not_fit_are_refused(small, wrong):
    with pytest.raises(NtkitError, match="expected 1 to"):
        mnist(**wrong)


@needs_data
def test_the_official_digits_are_there():
    data = mnist(dtype=torch.float32)
    assert data.train_x.shape == (60000, 784) and data.held_out_x.shape == (10000, 784)
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9] and data.held_out_y[:4].tolist() == [7, 2, 1, 0]
    assert data.train_x.min() == 0 and data.train_x.max() == 1
    assert fashion_mnist(3)[0].shape == (3, 784)
