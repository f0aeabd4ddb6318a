"""The pictures of the studies that are about MNIST."""

from __future__ import annotations

from typing import Literal

from ntkit.data.digits import Digits, digits
from ntkit.data.mnist import mnist
from ntkit.errors import NtkitError


def pictures(data: Literal["mnist", "digits"], samples: int, held_out: int, seed: int) -> Digits:
    """Return pictures in [0, 1]: MNIST's, or scikit-learn's digits, about which the papers say nothing.

    Raises
    ------
    NtkitError
        When MNIST is neither cached nor available; it offers the digits.
    """
    if data == "digits":
        return digits(samples, held_out=held_out, seed=seed)
    try:
        return mnist(samples, held_out=held_out, seed=seed)
    except NtkitError as error:
        raise NtkitError(f"{error} Or run the study on other pictures: --data digits.") from error
