"""Copies of a network in the NTK parameterization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ntkit.compute.surroundings import undisturbed
from ntkit.errors import BadTypeError, BadValueError, NtkitError, real, whole
from ntkit.faults import foreign
from ntkit.finite.roles import Use, uses
from ntkit.graph import trace
from ntkit.inputs import Inputs
from ntkit.network import as_inputs, copy_of, network, unwrapped

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_LINEAR = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
    *_EMBEDDINGS,
)
_NO_MEAN = 4.0  # standard errors

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


@dataclass(frozen=True)
class Law:
    """The law of the entries of a parameter: independent, N(mean, std^2); the padding row is zero."""

    parameter: Tensor
    mean: float = 0.0
    std: float = 1.0
    padding: int | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Draw the parameter again, in place; the same numbers on every device."""
        normal = torch.randn(self.parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            self.parameter.copy_(self.mean + self.std * normal)
            if self.padding is not None:
                self.parameter[self.padding] = 0


def ntk_parametrize(
    model: Module,
    sigma_w: Sigma = 2**0.5,
    sigma_b: Sigma = 0.0,
    *,
    seed: int,
    example: Inputs | None = None,
    select: str | int | None = None,
) -> Module:
    """Return a copy of a network in the NTK parameterization, with newly drawn parameters.

        y = sigma_w / sqrt(fan_in) W h + sigma_b b,   entries of W and b drawn from N(0, 1)

    so that its tangent kernel tends to ``infinite_width(model, ..., sigma_w, sigma_b).ntk`` as its
    layers widen. W and b are the trained parameters (``....parametrizations.weight.original``).

    Parameters
    ----------
    model : torch.nn.Module
        Linear layers, convolutions (transposed ones too: fan_in = input channels / groups x kernel),
        multi-head attention, and recurrent modules and cells (each weight with its own fan_in) are
        parameterized; embeddings are sigma_w W[token]. Tied weights stay tied: one W, with the factor
        of each layer that uses it.
    sigma_w, sigma_b : float or dict
        The scales; a dict gives them by module path, ``""`` for all other modules.
    seed : int
        Of the draw; the global random state stays as it is.
    example : tensor, or tuple or dict of tensors
        A batch of inputs. Where it is given, weights are read from what the network does with them, as
        `infinite_width` reads them: whatever is multiplied as a matrix (``x @ self.weight``, an einsum, a
        layer of another library) is one, whatever module holds it. Without it, layers are known by class.
    select : str or int, optional
        Which part of outputs that are a dict, a tuple or an object the example is to be read with.

    Raises
    ------
    NtkitError
        A parameter that is used as matrices with different fan_in by one module. A module whose NTK
        parameterization is not defined (`torch.nn.Bilinear`, a layer whose weight is derived from others,
        as under weight norm, an uninitialized one): by name.

    Notes
    -----
    All other parameters (norm scales and shifts, PReLU slopes, learned positions; without ``example`` any
    of your own) keep their own parameterization: no factor. One whose entries are all equal keeps its value;
    another is drawn from the normal law with the mean and standard deviation of its entries, a mean within
    four standard errors of zero being taken as zero.

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
    copy, laws = parametrized(model, sigma_w, sigma_b, example, select)
    generator = torch.Generator().manual_seed(whole("seed", seed, None))
    for law in laws:
        law.draw(generator)
    return copy


def parametrized(
    model: Module,
    sigma_w: Sigma,
    sigma_b: Sigma,
    example: Inputs | None = None,
    select: str | int | None = None,
) -> tuple[Module, list[Law]]:
    """Return a copy in the NTK parameterization, and the laws from which its parameters are to be drawn."""
    if not isinstance(model, nn.Module):
        raise BadTypeError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    check_sigma(sigma_w, sigma_b)
    plain: Module = unwrapped(model)  # pyright: ignore
    for path, module in plain.named_modules():
        _refuse(path, module)
    found = _uses(plain, example, select)
    names = {name: found.get(id(p), []) for name, p in plain.named_parameters(remove_duplicate=False)}
    copy = copy_of(plain)
    laws: dict[int, Law] = {}
    factors: dict[int, float] = {}
    others: list[tuple[nn.Module, str, nn.Parameter]] = []
    for path, module in list(copy.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            use = _role(path, module, name, parameter, names[f"{path}.{name}" if path else name])
            if use is None:
                others.append((module, name, parameter))
                continue
            factor = of_path(sigma_b if use.kind == "bias" else sigma_w, path) / (
                1 if use.kind == "bias" else use.fan_in**0.5
            )
            _scale(module, name, factor)
            factors.setdefault(id(parameter), factor)
            laws.setdefault(id(parameter), Law(parameter, padding=use.padding))
        if isinstance(module, nn.RNNBase):
            _read_anew(module)
    for module, name, parameter in others:
        if id(parameter) in factors:
            _scale(module, name, factors[id(parameter)])
        elif id(parameter) not in laws:
            mean, std = _moments(parameter)
            laws[id(parameter)] = Law(parameter, mean, std)
    return copy, [law for law in laws.values() if law.std]


def _uses(model: nn.Module, example: Inputs | None, select: str | int | None) -> dict[int, list[Use]]:
    """Return the uses of each parameter by its id; none where there is no example or no graph."""
    if example is None:
        return {}
    net = network(model, select=select)
    x = as_inputs(example, net, "example")
    found: dict[int, list[Use]] = {}
    parameters = dict(model.named_parameters())
    with undisturbed(net):
        try:
            graph = trace(net, x)
        except NtkitError:
            raise
        except Exception as error:  # it branches on its data: layers are known by class
            foreign(error, "tracing")
            return {}
        for use in uses(graph):
            if use.name in parameters:
                found.setdefault(id(parameters[use.name]), []).append(use)
    return found


def _role(path: str, module: nn.Module, name: str, parameter: Tensor, found: list[Use]) -> Use | None:
    """Return how a module uses one of its parameters: from the graph, else from its class, or None."""
    found = [use for use in found if use.kind != "other"]
    found = [use for use in found if use.path == path] or found
    roles = {"bias" if use.kind == "bias" else use.fan_in for use in found}
    if len(roles) > 1:
        ways = sorted(f"as a {u.kind}, fan_in {u.fan_in}" for u in {use.kind: use for use in found}.values())
        raise BadValueError(
            f"The NTK parameterization of {name!r} of {path or 'the model'} is not defined: it is used "
            f"{' and '.join(ways)}, and one factor cannot serve both."
        )
    if found:
        return found[0]
    if not isinstance(module, _LINEAR) or not ("weight" in name or "bias" in name):
        return None
    if "bias" in name:
        return Use(name, path, "bias")
    if isinstance(module, _EMBEDDINGS):
        return Use(name, path, "table", padding=module.padding_idx)
    return Use(name, path, "matrix", _fan_in(module, parameter))


def check_sigma(sigma_w: Sigma, sigma_b: Sigma) -> None:
    """Refuse scales that are not finite numbers, or dicts of them, and those that require a gradient."""
    for name, sigma in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        for value in sigma.values() if isinstance(sigma, Mapping) else (sigma,):
            if isinstance(value, Tensor) and value.requires_grad:
                raise BadValueError(
                    f"{name} requires a gradient, and kernels are not differentiable by their scales here. "
                    f"Give {name}.item(), and take differences of kernels at two values of {name}; "
                    f"ntkit.dual is differentiable by its variances."
                )
            real(name, value, "a finite number, or a dict of them by module path")


def _refuse(path: str, module: nn.Module) -> None:
    """Refuse a module whose NTK parameterization is not defined."""
    name = f"{path or 'the model'} ({type(module).__name__})"
    if isinstance(module, parametrize.ParametrizationList) or (
        isinstance(module, _LINEAR) and not isinstance(getattr(module, "weight", None), nn.Parameter | None)
    ):
        raise BadValueError(
            f"The NTK parameterization of {name} is not defined: its weight is derived from other "
            f"parameters (a parametrization, weight norm, pruning). Give the model without it."
        )
    if isinstance(module, nn.Bilinear):
        raise BadValueError(
            f"The NTK parameterization of {name} is not defined: it multiplies two inputs by one weight. "
            f"Write its scale into a module of your own, with the weight as a parameter drawn from N(0, 1)."
        )
    for key, parameter in module.named_parameters(recurse=False):
        if nn.parameter.is_lazy(parameter):
            raise BadValueError(f"{key!r} of {name} is not initialized; run the model once.")


def _scale(module: nn.Module, name: str, factor: float) -> None:
    parametrize.register_parametrization(module, name, Scale(factor), unsafe=True)


def _read_anew(module: nn.RNNBase) -> None:
    """Let a recurrent module read its weights at each call: torch keeps the list it was built with."""
    subclass: Any = type(module)  # the class that the parametrization made for this module alone
    subclass._flat_weights = property(
        lambda self: [getattr(self, name, None) for name in self._flat_weights_names],
        lambda self, value: None,
    )
    subclass.flatten_parameters = lambda self: None
    del module.__dict__["_flat_weights"]


def _moments(parameter: Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation of the law of a parameter's entries."""
    entries = parameter.detach().double()
    if not entries.numel() or entries.min() == entries.max():
        return 0.0, 0.0
    mean, std = entries.mean().item(), entries.std().item()
    return (0.0 if abs(mean) <= _NO_MEAN * std / entries.numel() ** 0.5 else mean), std


def of_path(sigma: Sigma, path: str) -> float:
    """Return the scale given for a module path."""
    if not isinstance(sigma, Mapping):
        return float(sigma)
    if path not in sigma and "" not in sigma:
        raise BadValueError(f"No sigma is given for {path!r}; give one, or '' for all other modules.")
    return float(sigma[path] if path in sigma else sigma[""])


def _fan_in(module: nn.Module, weight: Tensor) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.shape[0] // module.groups * weight.shape[2:].numel()
    return weight.shape[1:].numel()
