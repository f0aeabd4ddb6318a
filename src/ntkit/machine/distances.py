"""Kernels of the distance between two vectors: the Gaussian and the Laplace kernel."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ntkit.errors import BadValueError, one_of, positive
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel


class DistanceKernel(Kernel):
    """A kernel of the Euclidean distance r = |x - x'| over a length scale l.

        rbf        exp(-r^2 / (2 l^2))
        laplace    exp(-r / l)

    The Laplace kernel is the nearest relative of the NTK of a deep network: on the sphere they span the same
    functions (Chen, Xu, "Deep neural tangent kernel and Laplace kernel have the same RKHS", 2021).

    >>> import numpy as np
    >>> DistanceKernel("laplace", 2.0)(np.array([[0.0], [2.0]])).numpy().round(4)
    array([[1.    , 0.3679],
           [0.3679, 1.    ]])
    """

    def __init__(self, kind: Literal["rbf", "laplace"] = "rbf", lengthscale: float = 1.0) -> None:
        one_of("kind", kind, ("rbf", "laplace"))
        self.kind, self.lengthscale = kind, positive("lengthscale", lengthscale)

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block ``[n1, n2]``."""
        a = as_vectors(x1)
        r = distances(a, None if x2 is None else as_vectors(x2)) / self.lengthscale
        return torch.exp(-r.square() / 2 if self.kind == "rbf" else -r)

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return ones, ``[n]``."""
        return torch.ones(len(as_vectors(x)), dtype=torch.float64)


def distances(x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """Return the distances between vectors ``[n1, n2]``, zero exactly between a vector and itself."""
    other = x1 if x2 is None else x2
    r = torch.cdist(x1, other, compute_mode="use_mm_for_euclid_dist_if_necessary")
    return r.fill_diagonal_(0) if x2 is None else r


def median_distance(x: np.ndarray, most: int = 1000) -> float:
    """Return the median distance between samples (of the first so many), 1 where that is zero."""
    r = distances(torch.as_tensor(np.array(x[:most])))
    off = r[torch.triu(torch.ones_like(r, dtype=torch.bool), 1)]
    return float(off.median()) or 1.0 if len(off) else 1.0


def as_vectors(x: Inputs) -> Tensor:
    """Return a batch of vectors ``[n, d]`` in float64; refuse another shape."""
    tensor = x.double() if isinstance(x, Tensor) else torch.as_tensor(np.array(x, dtype=float))
    if tensor.ndim != 2:
        raise BadValueError(
            f"The kernel is one of vectors [n, d], got inputs {tuple(tensor.shape)}; flatten them, or give "
            "the kernel of a network of your own, infinite_width(model, x[:1]).ntk."
        )
    if tensor.requires_grad:
        raise BadValueError(
            "The inputs require a gradient, which kernels do not carry; give inputs.detach()."
        )
    return tensor
