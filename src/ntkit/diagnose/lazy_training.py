"""Whether training was lazy: how far kernel and weights moved, and what the linearized network would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.compute.progress import progress
from ntkit.compute.surroundings import undisturbed
from ntkit.diagnose.shown import Places, Shown
from ntkit.diagnose.subject import RecordedRun, a_run, drawn
from ntkit.diagnose.uncertainty import Measured, jackknife
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.finite.linearize import linearize
from ntkit.inputs import Batch, take
from ntkit.network import Floats, network
from ntkit.training.folder.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAZY, RICH = 0.1, 0.5


@dataclass(frozen=True, repr=False)
class Drift(Shown):
    """How kernel, weights and predictions moved away from the start of a run; made by `drift`.

    Attributes
    ----------
    steps
        The step before which each row was measured, ``[t]``; the last is the end.
    kernel, kernel_low, kernel_high
        |K_t - K_0| / |K_0| in the Frobenius norm on the samples, and the ends of its interval, ``[t]``.
    turned
        1 - <K_t, K_0> / |K_t| |K_0|: the part of that which is no change of scale, ``[t]``.
    linear, linear_low, linear_high
        |f_t - l_t| / |f_t - f_0| on the samples, l_t = f_0 + J_0 (w_t - w_0): what the linearized network
        misses, as a part of what training changed, ``[t]``; zero at the start.
    layers, weights
        The names of the layers, and |w_t - w_0| / |w_0| of each, ``[t, layers]``.
    samples
        How many training samples were looked at.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> model, loss = torch.nn.Linear(1, 1).double(), torch.nn.MSELoss()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.1), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, x)) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), x).backward()
    ...         _ = optimizer.step()
    >>> found = ntkit.diagnose.drift(ntkit.diagnose.RecordedRun(folder, model, loss, train=(x, x)))
    >>> bool(abs(found.kernel[-1]) < 1e-9)  # a linear model's kernel does not move
    True
    """

    steps: Places
    kernel: Floats
    kernel_low: Floats
    kernel_high: Floats
    turned: Floats
    linear: Floats
    linear_low: Floats
    linear_high: Floats
    layers: tuple[str, ...]
    weights: Floats
    samples: int

    @property
    def words(self) -> str:
        """What was found."""
        half = int(self.steps[int(np.argmax(self.kernel >= self.kernel[-1] / 2))])
        return (
            f"The kernel moved by {self.kernel[-1]:.3g} times its size in {self.steps[-1]} steps, half of "
            f"that until step {half}; the linearized network misses {self.linear[-1]:.3g} of what training "
            f"changed."
        )

    def columns(self) -> Mapping[str, object]:
        """Return steps, kernel, predictions and layers."""
        names = ("steps", "kernel", "kernel_low", "kernel_high", "turned", "linear")
        return {name: getattr(self, name) for name in names} | {
            f"weights {layer}": self.weights[:, i] for i, layer in enumerate(self.layers)
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw all three over the steps."""
        from ntkit.display.diagnosis_plots import drift_over_time

        return drift_over_time(self, ax)


@dataclass(frozen=True, repr=False)
class Laziness(Shown):
    """Whether a run was lazy, with what that is judged by; made by `laziness`.

    Attributes
    ----------
    verdict
        "lazy", "in between" or "rich".
    kernel, linear
        The change of the kernel, and what the linearized network misses, at the end, with their intervals.
    weights
        The change of all weights, |w_K - w_0| / |w_0|.
    certain
        Whether both intervals lie on the side of the thresholds that the verdict says.
    drift
        All of it over time.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> model, loss = torch.nn.Linear(1, 1).double(), torch.nn.MSELoss()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.1), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, x)) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), x).backward()
    ...         _ = optimizer.step()
    >>> found = ntkit.diagnose.laziness(ntkit.diagnose.RecordedRun(folder, model, loss, train=(x, x)))
    >>> bool(found.linear.value < 1e-9)
    True
    """

    verdict: Literal["lazy", "in between", "rich"]
    kernel: Measured
    linear: Measured
    weights: float
    certain: bool
    drift: Drift

    @property
    def words(self) -> str:
        """The verdict, and why."""
        why = {
            "lazy": "the network is close to its linearization, a kernel machine with the kernel that it "
            "started with",
            "in between": "the kernel of the start explains a part of what was learned",
            "rich": "the features were learned, and the kernel of the start does not explain this network",
        }
        sure = "" if self.certain else " (the interval leaves room for another verdict)"
        return (
            f"Training was {self.verdict}{sure}: {why[self.verdict]}. The kernel moved by {self.kernel} "
            f"times its size, the linearized network misses {self.linear} of what training changed."
        )

    def columns(self) -> Mapping[str, object]:
        """Return each measure with its interval and the thresholds."""
        rows = (self.kernel, self.linear)
        return {
            "measure": ["change of the kernel", "missed by the linearization"],
            "value": [r.value for r in rows],
            "low": [r.low for r in rows],
            "high": [r.high for r in rows],
            "lazy up to": [LAZY, LAZY],
            "rich from": [RICH, RICH],
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the drift over the steps, with the thresholds."""
        from ntkit.display.diagnosis_plots import drift_over_time

        return drift_over_time(self.drift, ax, thresholds=(LAZY, RICH))


def drift(run: RecordedRun, *, samples: int = 200, checkpoints: int = 10, seed: int = 0) -> Drift:
    """Return how far a run moved its kernel, its weights and its predictions, over time.

        |K_t - K_0| / |K_0|,    |w_t - w_0| / |w_0| per layer,    |f_t - l_t| / |f_t - f_0|

    with l_t = f_0 + J_0 (w_t - w_0), the linearized network at the weights of the run. To second order in
    the step l misses a quarter of the relative change of the kernel along the way, so both go together.

    Parameters
    ----------
    run : RecordedRun
        The run, its network and data.
    samples : int
        How many training samples are looked at; intervals are over their draw.
    checkpoints : int
        Times, from the start to the end; of a run of checkpoints, those that it holds.
    seed : int
        Of the draw of the samples, and of the groups of the jackknife.

    Raises
    ------
    NtkitError
        Anything but a `RecordedRun`; a network without a tangent kernel.

    References
    ----------
    Giancola (2023), sections IV.1 and V.1; Ravikumar (2024), section 5.3; Chizat, Oyallon, Bach (2019).

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> model, loss = torch.nn.Linear(1, 1).double(), torch.nn.MSELoss()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.1), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, x)) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), x).backward()
    ...         _ = optimizer.step()
    >>> found = ntkit.diagnose.drift(ntkit.diagnose.RecordedRun(folder, model, loss, train=(x, x)))
    >>> len(found.table()) > 1
    True
    """
    a_run(run)
    x = take(run.x, drawn(run.x, samples, seed))
    steps = run.checkpoints(checkpoints)
    with run.opened() as opened, undisturbed(network(run.model)), progress("looking", len(steps)) as done:
        rows = _Rows(run, opened, x, seed)
        found = []
        for k in steps:
            found.append(rows.at(k))
            done(1)
    kernel, linear = (np.array([row[key] for row in found]) for key in ("kernel", "linear"))
    return Drift(
        np.array(steps),
        kernel[:, 0],
        kernel[:, 1],
        kernel[:, 2],
        np.array([row["turned"] for row in found]),
        linear[:, 0],
        linear[:, 1],
        linear[:, 2],
        rows.layers,
        np.array([row["weights"] for row in found]),
        rows.n,
    )


def laziness(run: RecordedRun, *, samples: int = 200, checkpoints: int = 10, seed: int = 0) -> Laziness:
    """Return whether training stayed with the kernel that it started with.

    It is *lazy* where the kernel moved by at most 0.1 of its size and the linearized network misses at most
    0.1 of what training changed: predicting with the start's kernel is then right to a few per cent. It is
    *rich* where either is at least 0.5: another kernel, or half of what was learned is not linear in the
    weights. Anything else is *in between*. The thresholds are conventions; the figures are in the result.

    Parameters
    ----------
    run, samples, checkpoints, seed
        As for `drift`.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> from ntkit.diagnose import RecordedRun, laziness
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> model, loss = torch.nn.Linear(1, 1).double(), torch.nn.MSELoss()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.1), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, x)) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), x).backward()
    ...         _ = optimizer.step()
    >>> laziness(RecordedRun(folder, model, loss, train=(x, x))).verdict
    'lazy'
    """
    found = drift(run, samples=samples, checkpoints=checkpoints, seed=seed)
    kernel, linear = (
        Measured(*(float(getattr(found, f"{name}{end}")[-1]) for end in ("", "_low", "_high")))
        for name in ("kernel", "linear")
    )
    verdict = _verdict(kernel.value, linear.value)
    corners = {_verdict(a, b) for a, b in ((kernel.low, linear.low), (kernel.high, linear.high))}
    with run.opened() as opened:
        start = opened.weights(0)
        moved = float((opened.weights(run.steps) - start).norm() / start.norm().clamp_min(1e-300))
    return Laziness(verdict, kernel, linear, moved, corners == {verdict}, found)


def _verdict(kernel: float, linear: float) -> Literal["lazy", "in between", "rich"]:
    most = max(kernel, linear)
    return "lazy" if most <= LAZY else "rich" if most >= RICH else "in between"


class _Rows:
    """What is measured at a step, against the start."""

    def __init__(self, run: RecordedRun, opened: Run, x: Batch, seed: int) -> None:
        self.run, self.opened, self.x, self.seed = run, opened, x, seed
        model = run.network_of(opened, 0)
        self.kernel = self._kernel(model)
        self.outputs, self.n = self._outputs(model), len(self.kernel)
        self.linear = linearize(model)
        self.start = opened.weights(0)
        self.layers, self.places = _layers(opened)

    def _kernel(self, model: nn.Module) -> Tensor:
        return EmpiricalNTK(model, select=self.run.select)(self.x).double().cpu()

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> Tensor:
        return network(model, select=self.run.select).direct(self.x).double().cpu()

    def at(self, k: int) -> dict[str, np.ndarray]:
        model = self.run.network_of(self.opened, k)
        there, here = self._kernel(model), self.kernel
        with torch.no_grad():
            for p, q in zip(self.linear.network.parameters(), model.parameters(), strict=True):
                p.copy_(q)
        outputs = self._outputs(model)
        missed = (outputs - self._outputs(self.linear)).square().sum(1)
        moved = (outputs - self.outputs).square().sum(1)
        apart, size = (there - here).square(), here.square()

        def ratios(kept: Tensor) -> np.ndarray:
            pairs = (
                (apart[kept][:, kept].sum(), size[kept][:, kept].sum()),
                (
                    missed[kept].sum(),
                    moved[kept].sum(),
                ),
            )
            return np.array([float((a / b).sqrt()) if float(b) > 0 else 0.0 for a, b in pairs])

        both = np.stack(jackknife(ratios, self.n, self.seed))
        cosine = (there * here).sum() / (there.norm() * here.norm()).clamp_min(1e-300)
        step = self.opened.weights(k) - self.start
        weights = [
            float(step[place].norm() / self.start[place].norm().clamp_min(1e-300)) for place in self.places
        ]
        both = np.maximum(both, 0)
        return {
            "kernel": both[:, 0],
            "linear": both[:, 1],
            "turned": np.array(max(0.0, 1 - float(cosine))),
            "weights": np.array(weights),
        }


def _layers(run: Run) -> tuple[tuple[str, ...], list[Tensor]]:
    """Return the names of the modules that own the trained weights, and their places among all of them."""
    places: dict[str, list[Tensor]] = {}
    first = 0
    for name, shape in run.trained.items():
        layer = name.rpartition(".")[0] or name
        places.setdefault(layer, []).append(torch.arange(first, first + shape.numel()))
        first += shape.numel()
    return tuple(places), [torch.cat(parts) for parts in places.values()]
