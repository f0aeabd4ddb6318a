"""How weights are drawn and trained: the NTK parameterization, or the module's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from ntkit.finite.parametrize import Sigma, of_path
from ntkit.infinite.reading.values import Weight
from ntkit.infinite.variables.algebra import refuse
from ntkit.infinite.variables.vectors import WeightLaw

Parameterization = Literal["ntk", "standard"]


@dataclass
class Laws:
    """The variance of each weight and how far a step of its training goes.

    ``"ntk"``: y = sigma_w / sqrt(fan_in) W h + sigma_b b, so K = sigma_w^2 E[h h'] + sigma_b^2 and the
    weight itself adds the same to Theta. ``"standard"``: y = W h + b with the widths and variances
    of the module, so the weight adds fan_in E[h h'] and the bias 1. Frozen weights add nothing to Theta.
    """

    parameterization: Parameterization
    sigma_w: Sigma
    sigma_b: Sigma
    frozen: frozenset[str] = frozenset()
    biases: Mapping[str, int] = field(default_factory=dict)  # added to products, by name with their fan_in

    def matrix(self, weight: Weight, fan_in: int, path: str) -> WeightLaw:
        """Return the law of a weight that is multiplied with a vector of ``fan_in`` entries."""
        _unshifted(weight)
        path = weight.name.rpartition(".")[0] or path
        scale = weight.factor**2
        if self.parameterization == "ntk":
            variance = of_path(self.sigma_w, path) ** 2
            return self._law(weight, variance * scale, variance * scale)
        return self._law(weight, _variance(weight, fan_in) * fan_in * scale, fan_in * scale)

    def bias(self, weight: Weight, fan_in: int, path: str) -> tuple[float, WeightLaw]:
        """Return mean and law of a bias."""
        _unshifted(weight)
        path = weight.name.rpartition(".")[0] or path
        scale = weight.factor**2
        if self.parameterization == "ntk":
            variance = of_path(self.sigma_b, path) ** 2
            return 0.0, self._law(weight, variance * scale, variance * scale)
        average, variance = initial(weight.tensor)
        drawn = (average or variance) and uniform(weight.tensor, fan_in)  # a single entry may well be, too
        if drawn or (variance and not average):
            average, variance = 0.0, _variance(weight, fan_in)
        return average * weight.factor, self._law(weight, variance * scale, scale)

    def depthwise(self, weight: Weight, size: int, path: str) -> WeightLaw:
        """Return the law of an entry of the kernels of a depthwise convolution, of ``size`` entries each."""
        law = self.matrix(weight, size, path)
        return WeightLaw(law.variance / size, law.step / size)

    def vector(self, weight: Weight) -> tuple[float, WeightLaw]:
        """Return mean and law of a vector of parameters used coordinate by coordinate."""
        if weight.name in self.biases:
            return self.bias(weight, self.biases[weight.name], "")
        average, variance = initial(weight.tensor)
        average = average * weight.factor + weight.shift
        return average, self._law(weight, variance * weight.factor**2, weight.factor**2)

    def _law(self, weight: Weight, variance: float, step: float) -> WeightLaw:
        return WeightLaw(variance, 0.0 if weight.name in self.frozen else step)


def frozen(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are not trained; none where no parameter is.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> _ = model[0].requires_grad_(False)
    >>> sorted(frozen(model)), frozen(model[0])
    (['0.bias', '0.weight'], frozenset())
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    held = {name for name, p in named.items() if not p.requires_grad}
    return frozenset(held if len(held) < len(named) else ())


def _unshifted(weight: Weight) -> None:
    if weight.shift:
        raise refuse(
            f"A number is added to the weight {weight.name!r} before a product: only a vector of parameters "
            f"that is used coordinate by coordinate may have one, as the scale of a norm."
        )


def initial(tensor: Tensor) -> tuple[float, float]:
    """Return mean and variance of the entries of a weight (the mean is zero if that is plausible).

    All entries alike: that value and no variance. Otherwise a mean within four standard errors of
    zero is taken to be zero.
    """
    values = tensor.double()
    first = float(values.flatten()[0])
    if bool((values == first).all()):
        return first, 0.0
    average, variance = float(values.mean()), float(values.var(correction=0))
    if abs(average) < 4 * (variance / values.numel()) ** 0.5:
        return 0.0, float(values.square().mean())
    return average, variance


def uniform(tensor: Tensor, fan_in: int) -> bool:
    """Return whether entries look like PyTorch's own draw, uniform in +-1 / sqrt(fan_in)."""
    values = tensor.double()
    bound = float(values.abs().max()) <= fan_in**-0.5 * (1 + 1e-6)
    error = (4 / (5 * tensor.numel())) ** 0.5  # of the mean of u^2, relative, for a uniform u
    return bound and abs(float(values.square().mean()) * 3 * fan_in - 1) < 4 * error


def _variance(weight: Weight, fan_in: int) -> float:
    """Return E[W^2]: of PyTorch's draw or ntk_parametrize's where the entries look like it, else measured."""
    if uniform(weight.tensor, fan_in):
        return 1 / (3 * fan_in)
    measured = float(weight.tensor.double().square().mean())
    drawn = weight.name.endswith(".original") and abs(measured - 1) < 4 * (2 / weight.tensor.numel()) ** 0.5
    return 1.0 if drawn else measured
