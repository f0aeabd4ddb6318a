"""The laws that every kernel obeys, checked on two batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ntkit.errors import NtkitError, positive
from ntkit.inputs import Batch, batch_size, take
from ntkit.kernel import Kernel, a_kernel

Comparison = tuple[str, Tensor, Tensor]  # its name, what the kernel gave, and what it had to give


class KernelLawError(NtkitError, AssertionError):
    """A kernel breaks a law of kernels; it says which, and by how much.

    .. versionadded:: 0.1.0

    Examples
    --------
    >>> import torch, ntkit
    >>> from ntkit.testing import KernelLawError, check_kernel
    >>> class Shifted(ntkit.EmpiricalNTK):
    ...     def __call__(self, x1, x2=None):
    ...         return super().__call__(x1, x2) - 10  # no kernel any more
    >>> x = torch.eye(2).double()
    >>> try:
    ...     check_kernel(Shifted(torch.nn.Linear(2, 1).double()), x, x)
    ... except KernelLawError as error:
    ...     print(type(error).__name__)
    KernelLawError
    """


def check_kernel(kernel: Kernel, x1: Batch, x2: Batch, *, rtol: float | None = None) -> None:
    """Check that a kernel obeys the laws of kernels on two batches.

    - *shape*: ``k(x1, x2)`` is ``[n1, n2, *v]``, ``k.diag(x1)`` is ``[n1, *v]``, floating, finite, of one
      dtype and device, with v nothing, the outputs ``o``, or their pairs ``o, o``.
    - *itself*: ``k(x1)`` is ``k(x1, x1)``.
    - *symmetry*: ``k(x2, x1)`` is ``k(x1, x2)`` with samples and outputs exchanged.
    - *positive semi-definite*: no eigenvalue of ``k(x1)`` (for each output, or over pairs of samples and
      outputs) is below zero by more than rounding.
    - *diagonal*: ``k.diag(x1)`` is the diagonal of ``k(x1)``.
    - *blocks*: the kernel of some samples is that part of the whole.
    - *permutation*: samples in another order give the same numbers in that order.
    - *sum, product, factor*: ``(k + k)(x1)``, ``(k * k)(x1)``, ``(2.0 * k)(x1)``, and their diagonals.
    - *composition*: ``k.compose(g)`` is ``k`` of ``g(x)``.
    - *cosine*: ``k.normalized()`` is one on the diagonal, where that is positive.
    - *clone*: a copy of its constructor's arguments (`sklearn.base.clone`) is the same kernel.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    kernel
        A kernel, of ntkit or one's own.
    x1, x2
        Batches of ``n1`` and ``n2`` samples, as the kernel takes them; small ones will do.
    rtol
        What is rounding, relative to the largest entry; 1e4 units in the last place of the kernel's dtype if
        left out.

    Raises
    ------
    KernelLawError
        Names every law that is broken; it is an `AssertionError` too.

    Examples
    --------
    >>> import torch, ntkit.testing
    >>> from ntkit.kernel import Kernel
    >>> class Polynomial(Kernel):
    ...     def __call__(self, x1, x2=None):
    ...         return (x1 @ (x1 if x2 is None else x2).T + 1) ** 2
    ...     def diag(self, x):
    ...         return x.square().sum(1) ** 2  # forgot the 1
    >>> x = torch.randn(5, 3).double()
    >>> try:
    ...     ntkit.testing.check_kernel(Polynomial(), x[:3], x[3:])
    ... except ntkit.testing.KernelLawError as error:
    ...     print(str(error).splitlines()[1].split(":")[0])
    - diagonal
    """
    whole, diagonal = a_kernel(kernel)(x1), kernel.diag(x1)
    _check_shapes(kernel, x1, x2, whole, diagonal)
    rtol = 1e4 * torch.finfo(whole.dtype).eps if rtol is None else positive("rtol", rtol)
    broken = []
    for name, got, wanted in _laws(kernel, x1, x2, whole, diagonal):
        if got.shape != wanted.shape:
            broken.append(f"- {name}: shape {tuple(got.shape)} where {tuple(wanted.shape)} was expected")
            continue
        scale = float(wanted.abs().max()) if wanted.numel() else 0.0
        error = float((got - wanted).abs().max()) if got.numel() else 0.0
        if not error <= rtol * scale:
            broken.append(f"- {name}: off by {error:.3g}, where entries are up to {scale:.3g}")
    if (lowest := _lowest_eigenvalue(whole)) < -rtol * len(whole) * float(whole.abs().max()):
        broken.append(f"- positive semi-definite: an eigenvalue of k(x1) is {lowest:.3g}")
    if broken:
        laws = "\n".join(broken)
        raise KernelLawError(
            f"{type(kernel).__name__} breaks {len(broken)} law(s) of kernels, beyond rtol={rtol:.3g}:\n"
            f"{laws}\n"
            f"See ntkit.testing.check_kernel for what each of them says."
        )


def _check_shapes(kernel: Kernel, x1: Batch, x2: Batch, whole: Tensor, diagonal: Tensor) -> None:
    n, m, values = batch_size(x1), batch_size(x2), whole.shape[2:]
    block = kernel(x1, x2)
    expected = {"k(x1)": (whole, (n, n)), "k(x1, x2)": (block, (n, m)), "k.diag(x1)": (diagonal, (n,))}
    for what, (value, shape) in expected.items():
        alike = (value.dtype, value.device) == (whole.dtype, whole.device) and value.is_floating_point()
        if value.shape != torch.Size((*shape, *values)) or not alike or not value.isfinite().all():
            raise KernelLawError(
                f"{type(kernel).__name__}: {what} has shape {tuple(value.shape)}, {value.dtype} on "
                f"{value.device}; expected {(*shape, *values)}, finite and of one floating dtype and device "
                f"with the rest."
            )


def _laws(kernel: Kernel, x1: Batch, x2: Batch, whole: Tensor, diagonal: Tensor) -> Iterator[Comparison]:
    n = batch_size(x1)
    block = kernel(x1, x2)
    yield "itself", kernel(x1, x1), whole
    yield "symmetry", _turned(kernel(x2, x1)), block
    yield "symmetry of k(x1)", _turned(whole), whole
    yield "diagonal", diagonal, whole[torch.arange(n), torch.arange(n)]
    some = list(range(0, n, 2))
    yield "blocks", kernel(take(x1, some), x2), block[some]
    yield "blocks of k(x1)", kernel(take(x1, some)), whole[some][:, some]
    order = list(range(n - 1, -1, -1))
    yield "permutation", kernel(take(x1, order)), whole[order][:, order]
    algebra: dict[str, tuple[Kernel, Callable[[Tensor], Tensor]]] = {
        "sum": (kernel + kernel, lambda k: k + k),
        "product": (kernel * kernel, lambda k: k * k),
        "factor": (2.0 * kernel, lambda k: 2 * k),
        "composition": (kernel.compose(lambda x: x), lambda k: k),
        "clone": (kernel.__sklearn_clone__(), lambda k: k),
    }
    for name, (made, of) in algebra.items():
        yield name, made(x1, x2), of(block)
        yield f"{name}, diagonal", made.diag(x1), of(diagonal)
    own = torch.diagonal(diagonal, dim1=-2, dim2=-1) if diagonal.ndim == 3 else diagonal
    if bool((own > 0).all()):
        cosine = kernel.normalized()
        ones = cosine(x1)[torch.arange(n), torch.arange(n)]
        ones = torch.diagonal(ones, dim1=-2, dim2=-1) if ones.ndim == 3 else ones
        yield "cosine", ones, torch.ones_like(ones)


def _turned(block: Tensor) -> Tensor:
    """Return a block with the samples exchanged, and the outputs where there are pairs of them."""
    return block.permute(1, 0, 3, 2) if block.ndim == 4 else block.transpose(0, 1)


def _lowest_eigenvalue(whole: Tensor) -> float:
    if whole.ndim == 4:
        n, _, o, _ = whole.shape
        whole = whole.permute(0, 2, 1, 3).reshape(n * o, n * o)
    elif whole.ndim == 3:
        whole = whole.permute(2, 0, 1)
    return float(torch.linalg.eigvalsh(whole.double()).min())
