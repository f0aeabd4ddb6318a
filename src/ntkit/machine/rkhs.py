"""A fitted function as an element of the space of its kernel: norm, inner product, distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.errors import BadTypeError, BadValueError
from ntkit.inputs import batch_size
from ntkit.kernel import Kernel
from ntkit.machine.solving.newton import Blocks
from ntkit.machine.unfitted import check_fitted

if TYPE_CHECKING:
    from ntkit.machine.inputs.frames import Columns
    from ntkit.machine.inputs.scaling import Scaling
    from ntkit.network import Floats, Values

ROWS = 2**25  # entries of a block that is made at once


class RKHSFunction:
    """f = sum_n k(., x_n) c_n in the space H of the kernel (without the mean that is added to it).

        <f, g> = sum_nm c_n^T k(x_n, x'_m) c'_m,    |f|^2 = <f, f>

    summed over outputs. Two functions are of one space where their kernels, and the scalings of the inputs
    before them, are the same.
    """

    kernel_: Kernel | None
    X_fit_: Values
    dual_coef_: Floats
    scaling_: Scaling
    columns_: Columns | None
    _block: Callable[..., Tensor]

    @property
    def norm_(self) -> float:
        """The norm of f in the space of the kernel, in units of y over the root of those of the kernel."""
        return max(self.inner(self), 0.0) ** 0.5

    def inner(self, other: RKHSFunction) -> float:
        """Return the inner product of two fitted functions in the space of their kernel.

        >>> import numpy as np, ntkit
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> kernel = ntkit.machine.kernels.ReLUKernel()
        >>> f, g = (ntkit.KernelRidge(kernel, 0.1).fit(x, t(3 * x[:, 0])) for t in (np.sin, np.cos))
        >>> bool(abs(f.inner(g)) <= f.norm_ * g.norm_), round(f.distance(f), 6)
        (True, 0.0)
        """
        a, b = _coefficients(self), _coefficients(other)
        if a.shape[1] != b.shape[1]:
            raise BadValueError(
                f"The functions have {a.shape[1]} and {b.shape[1]} outputs; expected as many."
            )
        _same_space(self, other)
        total = 0.0
        for s in chunks(len(a), max(1, ROWS // (batch_size(other.X_fit_) * a.shape[1] ** 2))):
            if self.kernel_ is None:
                block = torch.as_tensor(np.array(self.X_fit_[s]), dtype=torch.float64)
            else:
                block = self._block(self.X_fit_[s], other.X_fit_, False)
            total += float((a[s].to(block) * (Blocks(block) @ b.to(block))).sum())
        return total

    def distance(self, other: RKHSFunction) -> float:
        """Return |f - g| in the space of their kernel."""
        square = self.inner(self) - 2 * self.inner(other) + other.inner(other)
        return max(square, 0.0) ** 0.5


def _coefficients(function: object) -> Tensor:
    if not isinstance(function, RKHSFunction):
        raise BadTypeError(
            f"{type(function).__name__} is no fitted estimator of ntkit with a kernel; give one."
        )
    check_fitted(function)
    c = function.dual_coef_
    if np.ndim(getattr(function, "t_", 0.0)):
        raise BadValueError(
            "The flow was fitted at several times, which are several functions; give one time."
        )
    return torch.as_tensor(c.reshape(len(c), -1))


def _same_space(one: RKHSFunction, two: RKHSFunction) -> None:
    """Refuse functions of two kernels."""
    if one is two:
        return
    if one.kernel_ is None or two.kernel_ is None:
        same = one.kernel_ is two.kernel_ and np.array_equal(one.X_fit_, two.X_fit_)
    else:
        same = one.kernel_ is two.kernel_ or _settings(one.kernel_) == _settings(two.kernel_)
    if not same or one.scaling_ != two.scaling_ or one.columns_ != two.columns_:
        raise BadValueError(
            "The functions are of two spaces: their kernels, or the scalings of the inputs, differ. "
            "Fit both with the same kernel object and scale=None."
        )


def _settings(kernel: Kernel) -> object:
    """Return what makes a kernel: its class and arguments, networks and data by identity."""
    params = kernel.get_params(deep=False)
    plain = {k: v if isinstance(v, (int, float, str, type(None))) else id(v) for k, v in params.items()}
    nested = {k: _settings(v) for k, v in params.items() if isinstance(v, Kernel)}
    return type(kernel), plain | nested
