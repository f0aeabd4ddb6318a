"""A function is judged before it is integrated: growth, poles, kinks that nobody named, what error is left.

What a Gaussian of infinite width is put through must have a second moment: Cappelletti (2019), Def. 2.1, a
controlled function. ``evaluate`` maps places z ``[K, *s]``, in standard deviations, to the function and its
derivatives there, each ``[K, *s]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], Sequence[Tensor]]
SMOOTH = 1e-11  # an error of the even grid up to which a function is taken for smooth
MOST = 8  # kinks of one function
_HALVINGS = 48
_GRADES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5)  # panels around a kink, where its neighborhood may be steep


class Uncontrolled(ValueError):
    """A function without a second moment under the Gaussian: the reason."""


def judge(values: Tensor, nodes: Tensor, evaluate: Callable[[Tensor], Tensor]) -> float:
    """Return the relative error of E[f^2] on an even grid, from ``values [*s, Q]`` at ``nodes [Q]``.

    Raises `Uncontrolled` for a function that grows as fast as the density falls, that is not defined
    everywhere, or that has a pole whose square cannot be integrated.
    """
    density = torch.exp(-nodes * nodes / 2) / math.sqrt(2 * math.pi) * (nodes[1] - nodes[0])
    if not torch.isfinite(values).all():
        place = nodes[(~torch.isfinite(values)).reshape(-1, len(nodes)).any(0)]
        raise Uncontrolled(
            f"it is infinite or not a number at {float(place[place.abs().argmin()]):.3g} standard deviations"
        )
    mass = values.square() * density
    total = mass.sum(-1)
    scale = total.amax().clamp(min=torch.finfo(values.dtype).tiny)
    step = max(1, round(0.5 / float(nodes[1] - nodes[0])))  # half a standard deviation
    for end, before in ((mass[..., -1], mass[..., -1 - step]), (mass[..., 0], mass[..., step])):
        if ((end > before) & (end > 1e-9 * scale)).any():
            raise Uncontrolled("its square grows faster than the Gaussian density falls")
    even, odd = 2 * mass[..., ::2].sum(-1), 2 * mass[..., 1::2].sum(-1)
    error = (even - odd).abs()
    if float((error / scale).max()) > 1e-3:
        _refuse_pole(values, nodes, evaluate, int(error.reshape(-1).argmax()))
    return halved(values, nodes)


def halved(values: Tensor, nodes: Tensor) -> float:
    """Return how far the two halves of an even grid are apart."""
    step = 2 * (nodes[1] - nodes[0])
    return apart(*(probes(values[..., i::2], nodes[i::2], step) for i in (0, 1)))


def probes(values: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """Return E[t f^2] and E[t f], ``[*s, 2]``, with a t that no symmetry of f makes smoother than f is."""
    tilted = (1 + 0.5 * torch.tanh(nodes - 0.3)) * weights * torch.exp(-nodes * nodes / 2)
    both = [(v * tilted).sum(-1) / math.sqrt(2 * math.pi) for v in (values.square(), values)]
    return torch.stack(both, -1)


def apart(first: Tensor, second: Tensor) -> float:
    """Return how far two quadratures of the same `probes` are apart, relative to E[f^2] and its root."""
    scale = second[..., 0].amax().clamp(min=1e-300)
    gap = (first - second).abs()
    return float(torch.maximum(gap[..., 0] / scale, gap[..., 1] / scale.sqrt()).max())


def _refuse_pole(values: Tensor, nodes: Tensor, evaluate: Callable[[Tensor], Tensor], entry: int) -> None:
    """Go towards the largest value: its square times the distance rises where it has no integral."""
    weighted = values.reshape(-1, len(nodes))[entry].abs() * torch.exp(-nodes * nodes / 4)
    center, width = float(nodes[weighted.argmax()]), float(nodes[1] - nodes[0])
    shape = values.shape[:-1]
    masses = []
    for _ in range(_HALVINGS // 2):
        z = center + width * torch.linspace(-1, 1, 17, dtype=nodes.dtype, device=nodes.device)
        found = evaluate(z.reshape(-1, *[1] * len(shape)).expand(-1, *shape)).reshape(17, -1)[:, entry].abs()
        if not torch.isfinite(found).all():
            raise Uncontrolled(f"it has a pole at {center:.6g} standard deviations")
        masses.append(float(found.max()) ** 2 * width)
        center, width = float(z[found.argmax()]), width / 4
    if masses[-1] > 10 * masses[len(masses) // 2]:
        raise Uncontrolled(f"it has a pole at {center:.6g} standard deviations, whose square has no integral")


def kinks(drawn: Sequence[Tensor], nodes: Tensor, evaluate: Evaluate) -> Tensor | None:
    """Return the places ``[*s, M]`` where a function or a derivative jumps, by bisection; None if nowhere.

    ``drawn`` are the function and its derivatives on the grid, ``[*s, Q]``; entries with fewer jumps than
    others repeat the end of the grid.
    """
    shape = drawn[0].shape[:-1]
    weight = torch.exp(-nodes * nodes / 4)
    defect = torch.stack([_relative(_bend(v) * weight[1:-1]) for v in drawn]).sum(0)
    top = defect.topk(2 * MOST, -1).indices  # the node in the middle of three
    step = nodes[1] - nodes[0]
    low = (nodes[top + 1] - step).movedim(-1, 0)
    high = low + 2 * step
    left, right = evaluate(low), evaluate(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        at = evaluate(middle)
        first = _change(left, at, drawn) >= _change(at, right, drawn)
        low, high = torch.where(first, low, middle), torch.where(first, middle, high)
        left = [torch.where(first, a, b) for a, b in zip(left, at, strict=True)]
        right = [torch.where(first, b, a) for a, b in zip(right, at, strict=True)]
    places = torch.where(_change(left, right, drawn) > 1e-7, high, float(nodes[-1]))
    if bool((places == nodes[-1]).all()):
        return None
    places = places.sort(0).values
    again = torch.cat([torch.zeros_like(places[:1], dtype=torch.bool), places.diff(dim=0) < 1e-9])
    places = torch.where(again, float(nodes[-1]), places).sort(0).values[:MOST]
    return places.movedim(0, -1).reshape(*shape, -1)


def _bend(values: Tensor) -> Tensor:
    """Return how far each value is from the middle of its neighbors."""
    return (values[..., 2:] - 2 * values[..., 1:-1] + values[..., :-2]).abs()


def _relative(values: Tensor) -> Tensor:
    return values / values.amax(-1, keepdim=True).clamp(min=1e-300)


def _change(a: Sequence[Tensor], b: Sequence[Tensor], drawn: Sequence[Tensor]) -> Tensor:
    """Return how far functions are apart at two places, relative to the largest values of each."""
    scales = [v.abs().amax(-1).clamp(min=1e-300) for v in drawn]
    return torch.stack([(x - y).abs() / s for x, y, s in zip(a, b, scales, strict=True)]).sum(0)


def edges(places: Tensor, span: float) -> Tensor:
    """Return the ends of panels ``[*s, E]``: even ones, those at kinks, finer ones around them."""
    even = torch.linspace(-span, span, 9, dtype=places.dtype, device=places.device)
    near = [places + sign * grade for grade in (0.0, *_GRADES) for sign in (1, -1)]
    all_edges = torch.cat([even.expand(*places.shape[:-1], -1), *near], -1)
    return all_edges.clamp(-span, span).sort(-1).values
