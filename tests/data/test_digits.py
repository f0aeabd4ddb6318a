import pytest
import torch

from ntkit.data.digits import digits
from ntkit.errors import NtkitError


def test_digits_are_split_once_and_whole():
    data = digits()
    assert len(data.train_x) + len(data.held_out_x) == 1797
    together = torch.cat([data.train_index, data.held_out_index])
    assert torch.equal(together.sort().values, torch.arange(1797))


def test_every_class_has_its_proportion():
    data = digits(1000)
    for y in (data.train_y, data.held_out_y):
        shares = torch.bincount(y, minlength=10) / len(y)
        assert (shares - 0.1).abs().max() < 0.01


def test_pixels_lie_between_0_and_1_in_the_dtype_asked_for():
    x = digits(100, dtype=torch.float32).train_x
    assert x.dtype == torch.float32
    assert x.min() == 0 and x.max() == 1


def test_the_seed_decides():
    assert torch.equal(digits(50, seed=3).train_x, digits(50, seed=3).train_x)
    assert not torch.equal(digits(50, seed=3).train_x, digits(50, seed=4).train_x)


def test_the_held_out_digits_do_not_depend_on_the_samples():
    assert torch.equal(digits(50).held_out_index, digits(1345).held_out_index)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": 1348}, {"held_out": 0}, {"held_out": 1797}])
def test_numbers_that_do_not_fit_are_refused(wrong):
    with pytest.raises(NtkitError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}; expected"):
        digits(**wrong)
