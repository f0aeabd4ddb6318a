"""What a kernel is: a function of two batches that gives a dense block or a diagonal; their algebra."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.errors import BadTypeError, BadValueError, nearest
from ntkit.inputs import Inputs


class Kernel(ABC):
    """A symmetric positive semi-definite function of two inputs, evaluated on batches.

    ``k(x1, x2)`` is the block with shape ``[n1, n2]`` (or ``[n1, n2, o]``, ``[n1, n2, o, o]`` where a
    kernel has one value per output or per pair of outputs); ``k(x)`` is ``k(x, x)``. ``k.diag(x)`` is
    the diagonal over samples, ``[n]`` (or ``[n, o]``, ``[n, o, o]``), made without the block.

    Kernels add up, multiply element by element and take non-negative factors: ``k1 + k2``,
    ``k1 * k2``, ``2.0 * k``; ``k.normalized()`` is the cosine, ``k.compose(g)`` is k(g(x), g(x')).

    >>> import torch, ntkit
    >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(3, 1))
    >>> x = torch.randn(4, 3)
    >>> torch.allclose((k + 2.0 * k)(x), 3 * k(x))
    True
    """

    @abstractmethod
    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block of the kernel between two batches (the second is the first if left out)."""

    @abstractmethod
    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the kernel of each sample with itself."""

    def normalized(self) -> Kernel:
        """Return k(x, x') / sqrt(k(x, x) k(x', x')), a cosine: 1 on the diagonal (no unit)."""
        return Normalized(self)

    def compose(self, transform: Callable[[Any], Inputs]) -> Kernel:
        """Return k(g(x), g(x')) for a transform g of a batch of inputs."""
        return Composed(self, transform)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name; with ``deep``, kernels inside as ``a__b``."""
        signature = inspect.signature(type(self).__init__).parameters.values()
        names = [
            p.name for p in signature if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        params = {name: getattr(self, name) for name in names}
        for name in names if deep else ():
            if isinstance(params[name], Kernel):
                params |= {f"{name}__{k}": v for k, v in params[name].get_params().items()}
        return params

    def set_params(self, **params: object) -> Kernel:
        """Set arguments of the constructor by name (``a__b`` for kernels inside) and return the kernel."""
        own = self.get_params(deep=False)
        for key, value in params.items():
            name, _, rest = key.partition("__")
            if name not in own:
                raise BadValueError(
                    f"{type(self).__name__} has no parameter {name!r}; it has {sorted(own)}."
                    f"{nearest(name, own)}"
                )
            if rest:
                own[name] = own[name].__sklearn_clone__().set_params(**{rest: value})
            else:
                own[name] = value
        self.__init__(**own)
        return self

    def __sklearn_clone__(self) -> Kernel:
        """Return an equal kernel; networks in it are shared, not copied."""
        params = self.get_params(deep=False)
        return type(self)(
            **{k: v.__sklearn_clone__() if isinstance(v, Kernel) else v for k, v in params.items()}
        )

    def identity(self) -> dict[str, object]:
        """Return what tells this kernel from another, by name: the arguments of its constructor.

        `TiledKernel` refuses a folder whose kernel differs in any of it.
        """
        return self.get_params(deep=False)

    def repeatable(self) -> Kernel:
        """Return an equal kernel whose values, to the last bit, hang on its two batches only.

        Not on calls before, nor on how long they took; it serves one call. `TiledKernel` computes with it.
        """
        params = self.get_params(deep=False)
        kernels = {k: v.repeatable() for k, v in params.items() if isinstance(v, Kernel)}
        if all(params[k] is v for k, v in kernels.items()):
            return self
        return type(self)(**params | kernels)

    def __repr__(self) -> str:
        """Return the kernel with the arguments that are not its defaults, in one line."""
        signature = inspect.signature(type(self).__init__).parameters
        given = []
        for name, value in self.get_params(deep=False).items():
            default = signature[name].default
            if default is inspect.Parameter.empty:
                given.append(described(value))
            elif value is not default and described(value) != described(default):
                given.append(f"{name}={described(value)}")
        return f"{type(self).__name__}({', '.join(given)})"

    __array_ufunc__ = None  # an array leaves sums and products with a kernel to the kernel

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, a_kernel(other, "what is added to a kernel"))

    def __mul__(self, other: Kernel | float) -> Kernel:
        if isinstance(other, float | Real):
            return Scaled(self, other)
        return Product(self, a_kernel(other, "what a kernel is multiplied by"))

    __radd__, __rmul__ = __add__, __mul__


def described(value: object, most: int = 60) -> str:
    """Return an argument in a few words: a network by its size, an array by its shape.

    >>> described(torch.nn.Linear(3, 2)), described(torch.ones(2, 3)), described("mean")
    ('<Linear with 8 weights>', '<tensor [2, 3] float32>', "'mean'")
    """
    if isinstance(value, torch.nn.Module):
        count = sum(p.numel() for p in value.parameters())
        return f"<{type(value).__name__} with {count:,} weights>"
    if isinstance(value, Tensor):
        return f"<tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<array {list(value.shape)} {value.dtype}>"  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()):
        return f"<{len(value)} tensors>"
    if callable(value) and hasattr(value, "__name__"):
        return f"<{type(value).__name__} {value.__name__}>"
    text = repr(value)
    return text if isinstance(value, Kernel) or len(text) <= most else f"{text[: most - 1]}…"


def a_kernel(kernel: object, what: str = "the kernel") -> Kernel:
    """Return a kernel of ntkit; refuse anything else."""
    if not isinstance(kernel, Kernel):
        raise BadTypeError(
            f"{what} is of type {type(kernel).__name__}; expected a kernel of ntkit, such as "
            f"ntkit.EmpiricalNTK(model)."
        )
    return kernel


class _Pair(Kernel):
    """Two kernels whose values are combined one by one."""

    def __init__(self, first: Kernel, second: Kernel) -> None:
        self.first, self.second = first, second

    def _combine(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the combination of both blocks."""
        return self._checked(self.first(x1, x2), self.second(x1, x2))

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the combination of both diagonals."""
        return self._checked(self.first.diag(x), self.second.diag(x))

    def _checked(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape:
            raise BadValueError(
                f"Kernels with values of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be combined; "
                f"give both the same outputs=."
            )
        return self._combine(a, b)


class Sum(_Pair):
    """k1(x, x') + k2(x, x')."""

    def _combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Product(_Pair):
    """k1(x, x') k2(x, x'), element by element (a kernel by Schur's theorem)."""

    def _combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Scaled(Kernel):
    """c k(x, x') with a factor c >= 0."""

    def __init__(self, kernel: Kernel, factor: float) -> None:
        if not 0 <= factor < float("inf"):
            raise BadValueError(
                f"A kernel times {factor} is not a kernel; the factor must be finite and >= 0."
            )
        self.kernel, self.factor = kernel, factor

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the scaled block."""
        return self.factor * self.kernel(x1, x2)

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the scaled diagonal."""
        return self.factor * self.kernel.diag(x)


class Composed(Kernel):
    """k(g(x), g(x')) for a transform g of a batch of inputs."""

    def __init__(self, kernel: Kernel, transform: Callable[[Any], Inputs]) -> None:
        if not callable(transform):
            raise BadTypeError(f"compose was given {transform!r}, expected a function of a batch of inputs.")
        self.kernel, self.transform = kernel, transform

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block of the transformed batches."""
        return self.kernel(self.transform(x1), None if x2 is None else self.transform(x2))

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the diagonal of the transformed batch."""
        return self.kernel.diag(self.transform(x))


class Normalized(Kernel):
    """The cosine of another kernel: k(x, x') / sqrt(k(x, x) k(x', x')).

    Where k has a value per pair of outputs (or positions), output o of x is divided by its own norm
    sqrt(k_oo(x, x)).
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the cosines of two batches."""
        block = self.kernel(x1, x2)
        n1 = self._norms(x1, block.ndim)
        n2 = n1 if x2 is None else self._norms(x2, block.ndim)
        ones = [1] * _ends(block.ndim)
        n1 = n1.reshape(n1.shape[0], 1, *n1.shape[1:], *ones)
        return block / (n1 * n2.reshape(1, n2.shape[0], *ones, *n2.shape[1:]))

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return ones; off the diagonal of outputs, the cosines of a sample's outputs."""
        diag = self.kernel.diag(x)
        norms, ones = self._norms(x, diag.ndim + 1), [1] * _ends(diag.ndim + 1)
        if not ones:
            return torch.ones_like(diag)
        n, *ends = norms.shape
        return diag / (norms.reshape(n, *ends, *ones) * norms.reshape(n, *ones, *ends))

    def _norms(self, x: Inputs, block_ndim: int) -> Tensor:
        diag = self.kernel.diag(x)
        for left in range(_ends(block_ndim), 0, -1):
            diag = torch.diagonal(diag, dim1=1, dim2=1 + left)
        bad = (diag <= 0).reshape(diag.shape[0], -1).any(1).nonzero().flatten().tolist()
        if bad:
            raise BadValueError(
                f"A kernel is normalized by k(x, x), which must be positive; it is zero or negative "
                f"for sample(s) {bad[:10]}. Leave those samples out or use the kernel as it is."
            )
        return diag.sqrt()


def _ends(block_ndim: int) -> int:
    """Return how many axes of outputs or positions each of the two has, where there are all pairs of them."""
    return (block_ndim - 2) // 2 if block_ndim % 2 == 0 else 0


class Rebuilt:
    """What builds an object again, and its arguments, kernels among them likewise: to be pickled.

    Kernels hold traced graphs and closures, which no pickle takes: what they are made of is enough.
    """

    def __init__(self, maker: Callable[..., object], arguments: dict[str, object]) -> None:
        self.maker = maker
        self.arguments = {k: Rebuilt.of(v) if isinstance(v, Kernel) else v for k, v in arguments.items()}

    @classmethod
    def of(cls, kernel: Kernel) -> Rebuilt:
        """Return what builds a kernel again."""
        return cls(type(kernel), kernel.get_params(deep=False))

    def moved(self, device: str) -> Rebuilt:
        """Return this with the networks and tensors among the arguments on a device."""

        def there(value: object) -> object:
            if isinstance(value, Rebuilt):
                return value.moved(device)
            if isinstance(value, torch.nn.Module):
                return copy.deepcopy(value).to(device)
            return pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, value)

        return Rebuilt(self.maker, {k: there(v) for k, v in self.arguments.items()})

    def again(self) -> object:
        """Return the object again."""
        arguments = {k: v.again() if isinstance(v, Rebuilt) else v for k, v in self.arguments.items()}
        return self.maker(**arguments)
