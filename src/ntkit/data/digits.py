"""Scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 pixels, no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ntkit.errors import BadValueError

SIDE = 8
CLASSES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Digits:
    """Digits split into training and held-out ones: pictures ``[n, pixels]`` in [0, 1], labels ``[n]``.

    ``train_index`` and ``held_out_index`` are the numbers that the pictures have in the set they are from.
    """

    train_x: Tensor
    train_y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    train_index: Tensor
    held_out_index: Tensor


def digits(
    samples: int | None = None, *, held_out: int = 450, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Digits:
    """Return real handwritten digits, split with every class in its proportion.

    Parameters
    ----------
    samples
        How many to train on; if left out, all that are not held out.
    held_out
        How many to hold out. The held-out digits depend on this number and the seed only.
    seed
        The seed of the split.
    dtype
        The dtype of the pictures, whose pixels are scaled from 0..16 to 0..1.

    Raises
    ------
    NtkitError
        When the numbers do not fit into the 1,797 digits, or leave a class out.

    Examples
    --------
    >>> data = digits(1000)
    >>> data.train_x.shape, data.held_out_x.shape
    (torch.Size([1000, 64]), torch.Size([450, 64]))
    """
    pixels, labels = load_digits(return_X_y=True)
    least, total = len(CLASSES), len(labels)
    if not least <= held_out <= total - least:
        raise BadValueError(f"held_out is {held_out}; expected {least} to {total - least} of {total} digits.")
    most = total - held_out
    if samples is not None and not least <= samples <= most:
        raise BadValueError(
            f"samples is {samples}; expected {least} to {most}, which is what {held_out} held-out digits "
            f"leave of the {total}."
        )
    train, test = train_test_split(np.arange(total), test_size=held_out, random_state=seed, stratify=labels)
    if samples is not None and samples < most:
        rest = most - samples
        if rest < least:  # too few to leave out by class
            train = train[:samples]
        else:
            train, _ = train_test_split(train, train_size=samples, random_state=seed, stratify=labels[train])
    x = torch.tensor(pixels / 16, dtype=dtype)
    y = torch.tensor(labels, dtype=torch.int64)
    train, test = torch.tensor(train), torch.tensor(test)
    return Digits(x[train], y[train], x[test], y[test], train, test)
