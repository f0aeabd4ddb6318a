"""How the parts of the targets along the eigenvectors of a kernel are learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LearningCurve:
    """How the parts of the targets along the kernel's eigenvectors are learned.

    ``rates`` ``[n]`` are the eigenvalues of K / n, largest first: along the i-th a part exp(-rate t) is left
    of ``parts`` ``[n]`` or ``[n, o]``, that of y - f_0; ``left`` ``[T, n]`` holds these factors, ``loss``
    ``[T]`` is (1/2n) sum (f - y)^2 at each of ``times``.
    """

    times: np.ndarray
    rates: np.ndarray
    parts: np.ndarray
    left: np.ndarray
    loss: np.ndarray
