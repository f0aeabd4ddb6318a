"""MNIST and Fashion-MNIST: pictures of 28 x 28 pixels, fetched once and checked."""

from __future__ import annotations

import numpy as np
import torch

from ntkit.data.cache import DataSet, load
from ntkit.data.digits import Digits
from ntkit.errors import BadValueError

SIDE = 28

_IDX = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

MNIST = DataSet(
    file="mnist.npz",
    sha256={
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        {
            "x_train": f"{_IDX}/train-images-idx3-ubyte.gz",
            "y_train": f"{_IDX}/train-labels-idx1-ubyte.gz",
            "x_test": f"{_IDX}/t10k-images-idx3-ubyte.gz",
            "y_test": f"{_IDX}/t10k-labels-idx1-ubyte.gz",
        },
    ),
)

FASHION_TEST = DataSet(
    file="fashion_mnist_test.npz",
    sha256={
        "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
    mirrors=(
        {
            "x_test": f"{_FASHION}/t10k-images-idx3-ubyte.gz",
            "y_test": f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
        },
    ),
)


def mnist(
    samples: int | None = None,
    *,
    held_out: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Digits:
    """Return MNIST: training digits of the official training set, held-out ones of the official test set.

    Parameters
    ----------
    samples, held_out
        How many of the 60,000 and of the 10,000, drawn without replacement; all of them, in their order,
        if left out.
    seed
        The seed of both draws.
    dtype
        The dtype of the pictures ``[n, 784]``, whose pixels are scaled from 0..255 to 0..1.

    Raises
    ------
    NtkitError
        When the numbers do not fit, or the data is neither in the cache folder (``NTKIT_DATA_DIR``) nor
        available from a mirror.
    """
    return _drawn(load(MNIST), samples, held_out, seed, dtype)


def fashion_mnist(
    count: int | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures ``[n, 784]`` in [0, 1] and labels ``[n]`` of Fashion-MNIST's official test set.

    They are what `mnist`'s networks have never seen. Drawn without replacement from the 10,000; all of them,
    in their order, if ``count`` is left out.
    """
    arrays = load(FASHION_TEST)
    index = _draw(len(arrays["y_test"]), count, seed, "count")
    return _pictures(arrays["x_test"], index, dtype), _labels(arrays["y_test"], index)


def _drawn(arrays: dict, samples: int | None, held_out: int | None, seed: int, dtype: torch.dtype) -> Digits:
    train = _draw(len(arrays["y_train"]), samples, seed, "samples")
    test = _draw(len(arrays["y_test"]), held_out, seed, "held_out")
    train_x, test_x = (_pictures(arrays[f"x_{k}"], i, dtype) for k, i in (("train", train), ("test", test)))
    train_y, test_y = (_labels(arrays[f"y_{k}"], i) for k, i in (("train", train), ("test", test)))
    return Digits(train_x, train_y, test_x, test_y, torch.tensor(train), torch.tensor(test))


def _draw(total: int, count: int | None, seed: int, name: str) -> np.ndarray:
    if count is None:
        return np.arange(total)
    if not 1 <= count <= total:
        raise BadValueError(f"{name} is {count}; expected 1 to {total}, which is what the data set has.")
    return np.random.default_rng(seed).permutation(total)[:count]


def _pictures(x: np.ndarray, index: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(x[index].reshape(len(index), -1)).to(dtype) / 255


def _labels(y: np.ndarray, index: np.ndarray) -> torch.Tensor:
    return torch.tensor(y[index].astype(np.int64))
