"""The limit of a network estimated from finite draws of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ntkit.compute.surroundings import undisturbed
from ntkit.errors import BadTypeError, NtkitError, one_of, whole
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.finite.jacobian.proof import last_layer, sample_pair
from ntkit.finite.parametrize import Sigma
from ntkit.infinite.data import as_data
from ntkit.infinite.drawing import redrawn
from ntkit.infinite.reading.laws import Parameterization
from ntkit.inputs import Batch, Inputs, Picked, take
from ntkit.network import Network, network, refuse_complex


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """Kernels ``[n1, n2]`` averaged over draws of a network, and the standard errors of these means."""

    nngp: Float[Tensor, "n1 n2"]
    ntk: Float[Tensor, "n1 n2"]
    nngp_error: Float[Tensor, "n1 n2"]
    ntk_error: Float[Tensor, "n1 n2"]
    samples: int

    def __repr__(self) -> str:
        """Show the number of draws, and how far the means may be off."""
        n1, n2 = self.nngp.shape
        kernels = (("nngp", self.nngp, self.nngp_error), ("ntk", self.ntk, self.ntk_error))
        errors = [
            f"{name} up to {mean.abs().max().item():.4g}, standard error up to {error.max().item():.1e}"
            for name, mean, error in kernels
        ]
        return f"Estimate from {self.samples} draws, {n1} x {n2} pairs: {'; '.join(errors)}"


def monte_carlo(
    model: nn.Module,
    samples: int,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    sigma_w: Sigma = 2**0.5,
    sigma_b: Sigma = 0.0,
    parameterization: Parameterization = "ntk",
    seed: int = 0,
    memory: str | int = "2GiB",
    inputs: Picked = None,
    select: str | int | None = None,
) -> Estimate:
    """Estimate the infinite-width kernels of a network by drawing it many times and averaging.

        NNGP(x, x') ~ mean over draws of (1/o) sum_o f_o(x) f_o(x')
        NTK(x, x')  ~ mean over draws of (1/o) sum_o J_o(x) . J_o(x')

    each ``[n1, n2]`` (``x2`` left out: ``x1`` with itself), with standard errors of the means. It takes
    any network that runs, has the network's own widths, and is off by their finite-width bias, which
    falls like 1 / width and which the standard errors do not see. Use float64 and wide layers.

    Where the network is linear in the weights of its last layer, they are integrated out exactly,
    (1/o) sum_o f_o f'_o replaced by (1/o) sum_o,w var(w) df_o/dw df'_o/dw, which for a linear layer is
    sigma_w^2 / fan_in h . h' + sigma_b^2: few outputs then cost the NNGP no precision.

    Parameters
    ----------
    model : torch.nn.Module
        The network, which stays as it is, as do its buffers and the global random state. The widths of its
        layers are your choice.
    samples : int
        The number of networks, at least 2. They are drawn one after the other: memory holds one.
    x1, x2
        Batches of inputs.
    sigma_w, sigma_b : float or dict
        The scales of ``parameterization="ntk"``, also by module path as in `ntk_parametrize`.
    parameterization : {"ntk", "standard"}
        ``"ntk"``: drawn as `ntk_parametrize` does. ``"standard"``: drawn by the modules' own
        ``reset_parameters``; the kernels are then those of the network as PyTorch initializes it.
    seed : int
        Of the draws. The first draws do not depend on how many follow.
    memory : str or int
        Bytes for one tangent kernel to work in.
    inputs, select
        As for `infinite_width`.

    Raises
    ------
    NtkitError
        What `EmpiricalNTK` and `ntk_parametrize` refuse; under ``"standard"``, a module that has
        parameters but no ``reset_parameters``.

    References
    ----------
    Cappelletti, "Convolutional neural tangent kernel" (2019), section 3.2.

    Examples
    --------
    >>> import torch, ntkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
    >>> x = torch.eye(3, dtype=torch.float64)
    >>> limit = ntkit.monte_carlo(model.double(), 20, x)
    >>> abs(limit.nngp[0, 0] - 2 / 3) < 4 * limit.nngp_error[0, 0]
    tensor(True)
    """
    whole("samples", samples, 2)
    whole("seed", seed, None)
    one_of("parameterization", parameterization, get_args(Parameterization))
    if not isinstance(model, nn.Module):
        raise BadTypeError(f"Expected a torch.nn.Module, which can be redrawn, got {type(model).__name__}.")
    standard = parameterization == "standard"
    example = None if standard else as_data(x1, network(model, select=select), "x1", inputs)
    copy, draw = redrawn(model, parameterization, sigma_w, sigma_b, seed, example, select)
    net = network(copy, select=select)
    refuse_complex(net, "An estimate of the limit")
    first = as_data(x1, net, "x1", inputs)
    second = None if x2 is None else as_data(x2, net, "x2", inputs)
    ntk, nngp = EmpiricalNTK(copy, memory=memory, select=select), None
    means = _Means(), _Means()
    with undisturbed(net), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No output depends on")  # a step function cuts gradients
        with torch.no_grad():
            net.direct(take(first, slice(0, 2)))
        for _ in range(int(samples)):
            draw()
            if nngp is None:
                nngp = _nngp(net, first, standard, memory)
            means[0].add(nngp(first, second))
            means[1].add(ntk(first, second))
    (mean, error), (ntk_mean, ntk_error) = (m.result(net.dtype) for m in means)
    return Estimate(mean, ntk_mean, error, ntk_error, int(samples))


class _Means:
    """Mean and standard error of matrices that come one after the other (Welford), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = self.mean

    def add(self, value: Tensor) -> None:
        value = value.detach().double()
        self.count += 1
        step = value - self.mean
        self.mean = self.mean + step / self.count
        self.squares = self.squares + step * (value - self.mean)

    def result(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        error = (self.squares / (self.count - 1) / self.count).sqrt()
        return self.mean.to(dtype), error.to(dtype)


def _nngp(
    net: Network, x: Batch, standard: bool, memory: str | int
) -> Callable[[Batch, Batch | None], Tensor]:
    """Return one draw's estimate of the NNGP: its last layer integrated out, or its outputs averaged."""
    try:
        names = last_layer(net, x, tuple(net.weights))
    except NtkitError:
        names = ()
    if names and _linear_in(net, names, sample_pair(x)):
        assert net.module is not None
        last = EmpiricalNTK(net.module, params=list(names), memory=memory, select=net.select)

        def integrated(x1: Batch, x2: Batch | None) -> Tensor:
            if not standard:
                return last(x1, x2)
            parts = last(x1, x2, per_parameter=True)
            return torch.stack([part * net.weights[k].square().mean() for k, part in parts.items()]).sum(0)

        return integrated

    def averaged(x1: Batch, x2: Batch | None) -> Tensor:
        with torch.no_grad():
            y1 = net.outputs(net.weights, x1)
            y2 = y1 if x2 is None else net.outputs(net.weights, x2)
        return y1 @ y2.T / y1.shape[1]

    return averaged


def _linear_in(net: Network, names: tuple[str, ...], x: Batch) -> bool:
    """Return whether the network is linear in some of its weights together, by trying it."""
    generator = torch.Generator().manual_seed(0)
    now = net.weights

    def at(point: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return net.outputs({**now, **point}, x)

    def near(w: Tensor) -> Tensor:
        return torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w).add_(w)

    a, b = ({k: near(now[k]) for k in names} for _ in range(2))
    both = at({k: 2 * a[k] - 3 * b[k] for k in names})
    apart = 2 * at(a) - 3 * at(b)
    tolerance = 1e4 * torch.finfo(both.dtype).eps * (at(a).abs().max() + at(b).abs().max())
    return bool(((both - apart).abs() <= tolerance).all())
