"""What is compared: kernels of vectors by name, with their scales, behind a scaling of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from ntkit.errors import BadValueError, whole
from ntkit.kernel import Kernel
from ntkit.machine.distances import DistanceKernel, median_distance
from ntkit.machine.kernels import ReLUKernel

SIGMA_B = (0.1, 0.5, 1.0)
# depth and sigma_b: the shapes between which tables differ, each far from the others
NETWORKS = {
    "standardize": ((1, 1.0), (1, 0.5), (2, 0.1), (3, 0.5), (5, 1.0), (5, 0.1)),
    "unit": ((1, 1.0), (3, 0.5), (5, 0.1)),
    "rank": ((1, 1.0), (2, 0.1), (3, 0.5)),
    None: ((1, 1.0), (1, 0.5), (2, 0.1), (3, 0.5), (5, 1.0), (5, 0.1)),
}
LENGTHS = {"rbf": (0.25, 0.5, 1.0, 2.0), "laplace": (0.5, 1.0, 2.0, 4.0)}  # over the median distance


@dataclass(frozen=True)
class Candidate:
    """A kernel by its name and scales, and the scaling of the inputs before it.

    ``length`` is the length scale over the median distance of the training samples.
    """

    scale: str | None
    kernel: str
    depth: int | None = None
    sigma_b: float | None = None
    length: float | None = None

    def made(self, x: np.ndarray) -> Kernel:
        """Return the kernel for training samples that are scaled."""
        if self.length is not None:
            kind = cast(Literal["rbf", "laplace"], self.kernel)
            return DistanceKernel(kind, self.length * median_distance(x))
        assert self.depth is not None and self.sigma_b is not None
        return ReLUKernel(self.depth, sigma_b=self.sigma_b, kind="nngp" if self.kernel == "nngp" else "ntk")

    @property
    def value(self) -> float:
        """The scale that can be moved: sigma_b, or the length."""
        value = self.sigma_b if self.length is None else self.length
        assert value is not None
        return value

    def at(self, value: float) -> Candidate:
        """Return the candidate with another scale."""
        return replace(self, sigma_b=value) if self.length is None else replace(self, length=value)

    def __str__(self) -> str:
        if self.length is not None:
            return f"{self.kernel} of length scale {self.length:.3g} median distances"
        return f"{self.kernel} of depth {self.depth}, sigma_b {self.sigma_b:.3g}"


def candidates(kernel: str, depth: int | None, scales: Sequence[str | None]) -> list[Candidate]:
    """Return what is compared for a kernel's name, one depth or all, and scalings of the inputs."""
    if kernel in LENGTHS:
        if depth is not None:
            raise BadValueError(f"depth={depth} with kernel={kernel!r}; only 'ntk' and 'nngp' have a depth.")
        return [Candidate(scale, kernel, length=v) for scale in scales for v in LENGTHS[kernel]]
    name = "ntk" if kernel == "auto" else kernel
    if depth is not None:
        whole("depth", depth)
        return [Candidate(scale, name, depth, b) for scale in scales for b in SIGMA_B]
    return [Candidate(scale, name, d, b) for scale in scales for d, b in NETWORKS[scale]]


def starts(kernel: str, depth: int | None, scales: Sequence[str | None]) -> list[Candidate]:
    """Return where a process starts to look for the largest evidence; ``"auto"``: smooth kernels, too."""
    compared = candidates(kernel, depth, scales)
    if kernel == "auto" and depth is None:
        smooth = [scale for scale in scales if scale != "unit"]
        compared += [Candidate(scale, "rbf", length=v) for scale in smooth for v in LENGTHS["rbf"]]
    return compared
