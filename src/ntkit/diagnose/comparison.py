"""How alike two networks see the same samples, layer by layer, and which they see most differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.compute.surroundings import undisturbed
from ntkit.compute.threads import fitting_threads
from ntkit.diagnose.alignments import centered, scalar
from ntkit.diagnose.shown import Places, Shown
from ntkit.diagnose.subject import RecordedRun, as_x, drawn, network_of
from ntkit.diagnose.uncertainty import Measured, jackknife
from ntkit.errors import BadValueError
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Batch, Inputs, batch_size, take
from ntkit.network import Floats, network

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """How alike two networks see; made by `compare`. 1 is the same up to scale, 0 has nothing in common.

    Attributes
    ----------
    tangent, conjugate
        The centered alignment of the whole tangent kernels, and of the last layer's inputs.
    layers_a, layers_b
        The layers with weights of each network.
    tangent_layers, input_layers
        The alignments of each layer of one with each of the other: of the parts of the tangent kernels that
        are its weights', and of the inputs that it sees, ``[layers of a, layers of b]``.
    samples
        The places of the samples in x, ``[n]``.
    differing
        For each of them, 1 - the correlation of its similarities with all others in both tangent kernels.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import compare
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)), torch.randn(20, 3)
    >>> compare(model, model, x).tangent_layers.shape
    (2, 2)
    """

    tangent: Measured
    conjugate: Measured
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    tangent_layers: Floats
    input_layers: Floats
    samples: Places
    differing: Floats

    @property
    def words(self) -> str:
        """What was found."""
        most = self.top(3)
        text = (
            f"The two networks' tangent kernels are aligned to {self.tangent}, what enters their last "
            f"layers to {self.conjugate}"
        )
        if self.layers_a == self.layers_b:
            own = np.diag(self.tangent_layers)
            text += f". The layer that differs most is {self.layers_a[int(own.argmin())]} ({own.min():.2g})"
        return f"{text}. They differ most about samples {', '.join(str(i) for i, _ in most)}."

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """Return the samples that are seen most differently, with by how much."""
        order = np.argsort(-self.differing, kind="stable")[:k]
        return [(int(self.samples[i]), float(self.differing[i])) for i in order]

    def columns(self) -> Mapping[str, object]:
        """Return a row for each pair of layers."""
        a, b = self.tangent_layers.shape
        return {
            "layer of a": np.repeat(self.layers_a, b),
            "layer of b": np.tile(self.layers_b, a),
            "tangent": self.tangent_layers.reshape(-1),
            "inputs": self.input_layers.reshape(-1),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the alignment of what each layer of one sees with what each of the other sees."""
        from ntkit.display.diagnosis_plots import compared

        return compared(self, ax)


@fitting_threads()
def compare(
    a: nn.Module | RecordedRun,
    b: nn.Module | RecordedRun,
    x: Inputs = None,
    *,
    samples: int = 300,
    seed: int = 0,
) -> Comparison:
    """Return how alike two networks see the same samples: before and after training, two seeds, two sizes.

        A = <H K_a H, H K_b H> / (|H K_a H| |H K_b H|),    H = I - 1 1^T / n

    of the tangent kernels, and of the Gram matrices of what enters the layers (there it is the linear CKA).

    Parameters
    ----------
    a, b : network or RecordedRun
        Of a run, the network at its end (``run.network(0)`` is that at its start).
    x : batch of inputs
        What both see; the data of ``a``, if it is a run.
    samples : int
        At most so many are drawn.
    seed : int
        Of the draw, and of the groups of the jackknife.

    Raises
    ------
    NtkitError
        Anything but networks and runs; inputs that one of them does not take.

    References
    ----------
    Cortes, Mohri, Rostamizadeh (2012), Def. 4; Kornblith et al., "Similarity of neural network
    representations revisited" (2019), section 3.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import compare
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)), torch.randn(20, 3)
    >>> same = compare(model, model, x)
    >>> round(same.tangent.value, 6), same.layers_a
    (1.0, ('0', '1'))
    """
    if isinstance(a, RecordedRun) and x is None:
        x = a.x
    first, second = network_of(a, "a"), network_of(b, "b")
    batch = as_x(first, x)
    as_x(second, x)
    index = drawn(batch, samples, seed)
    batch = take(batch, index)
    one, other = (_Seen(model, batch) for model in (first, second))
    differing = 1 - (_scaled(centered(one.tangent)) * _scaled(centered(other.tangent))).sum(1)
    return Comparison(
        _measured(one.tangent, other.tangent, seed),
        _measured(one.last, other.last, seed),
        tuple(one.inputs),
        tuple(other.inputs),
        _all_pairs(one.tangent_layers, other.tangent_layers),
        _all_pairs(one.inputs, other.inputs),
        index.numpy(),
        differing.numpy(),
    )


def aligned(a: Tensor, b: Tensor) -> float:
    """Return the centered alignment of two kernel matrices; 0 where one of them sees no difference."""
    a, b = centered(a), centered(b)
    size = float(a.norm() * b.norm())
    return float((a * b).sum()) / size if size > 0 else 0.0


def _all_pairs(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Floats:
    return np.array([[aligned(k, other) for other in b.values()] for k in a.values()])


def _measured(a: Tensor, b: Tensor, seed: int) -> Measured:
    def of(kept: Tensor) -> np.ndarray:
        return np.array(aligned(a[kept][:, kept], b[kept][:, kept]))

    value, low, high = jackknife(of, len(a), seed)
    return Measured(float(value), float(low), float(high))


def _scaled(rows: Tensor) -> Tensor:
    rows = rows.clone().fill_diagonal_(0)
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)


class _Seen:
    """The kernel matrices of one network on some samples: by its layers, of their inputs, and whole."""

    def __init__(self, model: nn.Module, x: Batch) -> None:
        parts = EmpiricalNTK(model)(x, per_parameter=True)
        owners = {name: name.rpartition(".")[0] or "" for name in parts}
        inputs = _inputs(model, x)
        self.tangent_layers: dict[str, Tensor] = {}
        for name, block in parts.items():
            layer, part = owners[name], scalar(block)
            self.tangent_layers[layer] = self.tangent_layers.get(layer, 0) + part
        missing = [layer for layer in self.tangent_layers if layer not in inputs]
        if missing:
            raise BadValueError(
                f"The layer {missing[0]!r} holds weights, but no tensor goes into it when the network runs; "
                f"make a module of what uses them, with forward."
            )
        self.inputs = {layer: inputs[layer] for layer in self.tangent_layers}
        self.tangent = sum(self.tangent_layers.values(), torch.zeros(()).double())
        self.last = list(self.inputs.values())[-1]


@torch.no_grad()
def _inputs(model: nn.Module, x: Batch) -> dict[str, Tensor]:
    """Return the Gram matrix of what enters each module that has weights of its own, in the order of use."""
    found: dict[str, Tensor] = {}
    names = {m: name for name, m in model.named_modules() if m._parameters}

    def keep(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim > 0]
        if tensors and len(tensors[0]) == n and names[module] not in found:
            h = tensors[0].detach().double().reshape(n, -1).cpu()
            found[names[module]] = h @ h.T

    n, net = batch_size(x), network(model)
    hooks = [m.register_forward_hook(keep, with_kwargs=True) for m in names]
    try:
        with undisturbed(net):
            net.direct(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
