"""Copies of a network in the NTK parameterization."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ntkit.errors import NtkitError

_LINEAR = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
_ELEMENTWISE = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,
    nn.PReLU,
)

Sigma = float | Mapping[str, float]
Module = TypeVar("Module", bound=nn.Module)


class Scale(nn.Module):
    """A weight as a fixed multiple of the parameter that is trained."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        """Return factor * weight."""
        return self.factor * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return weight / factor (a factor of zero forgets the weight)."""
        return weight / self.factor if self.factor else torch.zeros_like(weight)

    def extra_repr(self) -> str:
        """Show the factor when the module is printed."""
        return f"{self.factor:.6g}"


def ntk_parametrize(model: Module, sigma_w: Sigma = 2**0.5, sigma_b: Sigma = 0.0, *, seed: int) -> Module:
    """Return a copy of a network in the NTK parameterization, drawn anew.

        y = sigma_w / sqrt(fan_in) W h + sigma_b b,   entries of W and b drawn from N(0, 1)

    so that its tangent kernel tends to ``infinite_width(model, ..., sigma_w, sigma_b).ntk`` as its
    layers widen. W and b are the trained parameters (``....parametrizations.weight.original``).

    Parameters
    ----------
    model : torch.nn.Module
        Linear layers, convolutions (transposed ones too: fan_in = input channels / groups x kernel)
        and multi-head attention are parameterized; norms and PReLU keep their elementwise parameters.
    sigma_w, sigma_b : float or dict
        The scales; a dict gives them by module path, ``""`` for all other modules.
    seed : int
        Of the draw; the global random state stays as it is.

    Raises
    ------
    NtkitError
        A parameter of another kind of module, of which the parameterization is not defined: by name.

    References
    ----------
    Jacot et al. (2018), section 2; Giancola (2023), Eq. I.2.9 with beta = sigma_b.

    Examples
    --------
    >>> import torch, ntkit
    >>> wide = ntkit.ntk_parametrize(torch.nn.Linear(3, 1000), sigma_w=1.0, sigma_b=0.1, seed=0)
    >>> x = torch.randn(2, 3)
    >>> torch.allclose(ntkit.EmpiricalNTK(wide)(x), x @ x.T / 3 + 0.01, atol=1e-5)
    True
    """
    if not isinstance(model, nn.Module):
        raise NtkitError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    copy = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    known: set[int] = set()
    for path, module in list(copy.named_modules()):
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, _ELEMENTWISE):
            known |= {id(p) for p in own.values()}
        elif isinstance(module, _LINEAR):
            for name, parameter in own.items():
                if id(parameter) not in known and parameter is not None:
                    sigma = _of(sigma_b if "bias" in name else sigma_w, path)
                    fan_in = 1 if "bias" in name else _fan_in(module, parameter)
                    _draw(module, name, sigma / fan_in**0.5, generator)
                    known |= {id(p) for p in module.parametrizations[name].parameters()}  # pyright: ignore
    for name, parameter in copy.named_parameters():
        if id(parameter) not in known:
            raise NtkitError(
                f"The NTK parameterization of {name!r} is not defined: it belongs to no linear layer, "
                f"convolution, attention or norm. Write its scale into the model, and draw it yourself."
            )
    return copy


def _draw(module: nn.Module, name: str, factor: float, generator: torch.Generator) -> None:
    parametrize.register_parametrization(module, name, Scale(factor), unsafe=True)
    original = module.parametrizations[name].original  # pyright: ignore
    with torch.no_grad():
        original.copy_(torch.randn(original.shape, generator=generator, dtype=torch.float64))  # pyright: ignore


def _of(sigma: Sigma, path: str) -> float:
    if not isinstance(sigma, Mapping):
        return float(sigma)
    if path not in sigma and "" not in sigma:
        raise NtkitError(f"No sigma is given for {path!r}; give one, or '' for all other modules.")
    return float(sigma[path] if path in sigma else sigma[""])


def _fan_in(module: nn.Module, weight: Tensor) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.shape[0] // module.groups * weight.shape[2:].numel()
    return weight.shape[1:].numel()
