"""What the two studies of points in the plane share (Courtois, Morel, Arias, Section 5)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC, LinearSVC
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, ORANGE
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, above, finish, panels, ticks
from ntkit.studies.parts import part, scratch
from ntkit.studies.study import StudyConfig, array, option
from ntkit.studies.training import (
    loss_of,
    loss_option,
    mlp,
    optimizer_of,
    optimizer_option,
    seeded,
    slope,
    step,
)
from ntkit.training.integrals.quadrature import Nodes

QUICK = dict(samples=128, steps=800, rate=0.05, seeds=1, rates=(0.025, 0.05), queries=8, nearest=20)
SIDE = 1.2  # of the square that is looked at


class PlaneConfig(StudyConfig):
    """Points in the plane with two labels, learned by gradient descent on all of them."""

    optimizer: str = optimizer_option("SGD")
    loss: str = loss_option("mse_loss")
    samples: int = option(1024, "Training points.", low=8, high=100_000)
    steps: int = option(10_000, "Steps of gradient descent.", low=10, high=10**6)
    rate: float = option(0.01, "Learning rate.", low=1e-6, high=1.0)
    width: int = option(10, "Units in each of the two hidden layers.", low=1, high=1000)
    seeds: int = option(3, "Networks trained for the accuracy.", low=1, high=100)
    rates: tuple[float, ...] = option(
        (0.01, 0.014, 0.02),
        "Learning rates for the error of Eq. 9, at equal steps x rate.",
        low=1e-5,
        least=2,
    )
    queries: int = option(32, "Points whose predictions are accounted for.", low=1, high=10_000)
    nearest: int = option(100, "Nearest training points shown.", low=1, high=100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rates", tuple(sorted(self.rates)))
        if round(self.steps * self.rate / self.rates[-1]) < 1:
            raise BadValueError(
                f"rates holds {self.rates[-1]:g}, and steps x rate is {self.steps * self.rate:g}, less than "
                "one step of it. Expected smaller rates, or more steps."
            )


def investigate(
    config: PlaneConfig, draw: Callable[[int, int], tuple[Tensor, Tensor]], direction: Sequence[float]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Train, account, look at the neighbors along a direction, and separate; return numbers and arrays.

    ``draw(n, seed)`` gives points and labels; the test points are drawn with another seed.
    """
    x, y = (t.to(config.device) for t in draw(config.samples, config.seed))
    test_x, test_y = (t.to(config.device) for t in draw(config.samples, config.seed + 1000))
    models = [train(config, x, y, config.seed + s, config.rate) for s in range(config.seeds)]
    model = models[0]
    errors = errors_of_equation_9(config, x, y)
    along = ray(direction).to(config.device)
    by_kernel, by_distance = neighbors(model, x, along, config.nearest)
    labels, test_labels = array(y).reshape(-1), array(test_y).reshape(-1)
    on_features = separability(features(model, x), labels, features(model, test_x), test_labels)
    on_inputs = separability(array(x), labels, array(test_x), test_labels)
    with torch.no_grad():
        values = model(grid().to(config.device))
    machine = decision(model, x, labels)
    by_svm = machine(grid().to(config.device))
    on_line = linear_decision(array(x), labels)(array(grid()))
    by_network = array(values).reshape(-1)
    radii = {name: boundary(f) for name, f in (("network", as_function(model)), ("svm", machine))}
    numbers = {
        "accuracy": min(accuracy(m, x, y) for m in models),
        "accuracy on new points": min(accuracy(m, test_x, test_y) for m in models),
        "slope": slope(errors["rates"], errors["left"]),
        "Eq. 9": float(errors["left"].max()),
        "exact": float(errors["exact"].max()),
        "features": on_features[0],
        "features, new points": on_features[1],
        "inputs": on_inputs[0],
        "agreement": float(np.mean((by_network > 0) == (by_svm > 0))),
        "agreement, inputs": float(np.mean((by_network > 0) == (on_line > 0))),
        **{f"radius, {name}": float(np.mean(r)) for name, r in radii.items()},
        "radii apart": float(np.mean(np.abs(radii["network"] - radii["svm"]))),
        "overlap": overlap(by_kernel, by_distance),
        "purity by kernel": purity(by_kernel, labels),
        "purity by distance": purity(by_distance, labels),
    }
    arrays = {
        "x": array(x),
        "y": array(y),
        "prediction": array(values),
        "along": array(along),
        "by_kernel": by_kernel,
        "by_distance": by_distance,
        "svm": by_svm,
        "svm on inputs": on_line,
        **{f"radius, {name}": r for name, r in radii.items()},
    }
    return numbers, arrays | errors


def draw_all(a: Mapping[str, np.ndarray]) -> Figures:
    """Draw data and prediction, the errors, and the neighbors along the direction."""
    return {
        "Training points and prediction": draw_predictions(a["x"], a["y"], a["prediction"]),
        "Error against the learning rate": draw_errors(a),
        "Nearest training points": draw_neighbors(a),
        "Boundaries of the SVMs and of the network": draw_boundaries(a),
    }


def train(
    config: PlaneConfig, x: Tensor, y: Tensor, seed: int, rate: float, folder: str | None = None
) -> nn.Module:
    """Train by full-batch gradient descent for ``steps * config.rate / rate`` steps; record into a folder.

    The network is N(x; w) = W1 GELU(W2 GELU(W3 x + b3) + b2) + b1 with PyTorch's initialization.
    """
    with seeded(seed):
        model = mlp(2, config.width, config.width, 1, activation=nn.GELU).to(config.device, torch.float64)
    optimizer, loss = optimizer_of(config.optimizer, model.parameters(), rate), loss_of(config.loss)
    steps = round(config.steps * config.rate / rate)
    recording = nullcontext() if folder is None else ntkit.record(folder, model, optimizer, train=(x, y))
    with recording as run, progress(f"training at rate {rate:g} (steps)", steps) as done:
        for _ in range(steps):
            if run is not None:
                run.batch(range(len(x)))
            step(optimizer, loss(model(x), y))
            done(1)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of points whose prediction has the sign of the label."""
    return float(((model(x) > 0) == (y > 0)).double().mean())


def errors_of_equation_9(config: PlaneConfig, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """Return the error of Eq. 9 and of the exact account, over max abs f, for each learning rate."""
    q = queries(config)
    errors: dict[Nodes, list[float]] = {"left": [], 3: []}
    for rate in config.rates:

        def residuals(rate=rate) -> list[float]:
            found = []
            with scratch() as folder:
                model = train(config, x, y, config.seed, rate, f"{folder}/run")
                account = partial(
                    ntkit.account, f"{folder}/run", model, loss_of(config.loss), train=(x, y), queries=q
                )
                for a in [account(nodes=nodes) for nodes in errors]:
                    found.append(float(a.residual.abs().max() / a.prediction.abs().max()))
            return found

        for values, value in zip(errors.values(), part(f"rate {rate}", residuals), strict=True):
            values.append(value)
    return {"rates": np.array(config.rates), "left": np.array(errors["left"]), "exact": np.array(errors[3])}


def queries(config: PlaneConfig) -> Tensor:
    """Draw points of the square, of which predictions are accounted for."""
    draw = torch.Generator().manual_seed(config.seed + 1)
    points = 2 * SIDE * torch.rand(config.queries, 2, generator=draw, dtype=torch.float64) - SIDE
    return points.to(config.device)


def neighbors(model: nn.Module, x: Tensor, along: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest training points ``[q, count]`` of points: by normalized NTK, and by distance."""
    cosine = ntkit.EmpiricalNTK(model).normalized()(along, x)
    count = min(count, len(x))
    by_kernel = cosine.topk(count, dim=1).indices
    by_distance = torch.cdist(along, x).topk(count, dim=1, largest=False).indices
    return array(by_kernel), array(by_distance)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean share of neighbors that two lists have in common."""
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(first, second, strict=True)]))


def purity(nearest: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean share of neighbors that have the most frequent label among them."""
    share = (labels[nearest] > 0).mean(1)
    return float(np.maximum(share, 1 - share).mean())


def separability(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> tuple[float, float]:
    """Return the accuracy of a linear SVM with a hard margin on the points it learned from, and on others."""
    scale = np.abs(x).max(0)
    scale[scale == 0] = 1
    svm = LinearSVC(C=1e8, dual=False, tol=1e-8, max_iter=20_000)  # pyright: ignore[reportArgumentType]
    svm.fit(x / scale, y)
    return float(svm.score(x / scale, y)), float(svm.score(test_x / scale, test_y))


def decision(model: nn.Module, x: Tensor, labels: np.ndarray) -> Callable[[Tensor], np.ndarray]:
    """Return the decision function of a hard-margin SVM with the tangent kernel, learned from x."""
    kernel = ntkit.EmpiricalNTK(model)
    gram = array(kernel(x))
    scale = float(np.diag(gram).mean())
    svm = SVC(C=1e8, kernel="precomputed", max_iter=200_000)
    with warnings.catch_warnings():  # labels that it cannot separate have no margin to converge to
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(gram / scale, labels)
    return lambda points: svm.decision_function(array(kernel(points, x)) / scale)


def linear_decision(x: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the decision function of a linear SVM on the points themselves."""
    svm = LinearSVC(dual=False).fit(x, labels)  # pyright: ignore[reportArgumentType]
    return svm.decision_function


def as_function(model: nn.Module) -> Callable[[Tensor], np.ndarray]:
    """Return the network as a function of points to an array ``[n]``."""

    def function(points: Tensor) -> np.ndarray:
        with torch.no_grad():
            return array(model(points)).reshape(-1)

    return function


def boundary(function: Callable[[Tensor], np.ndarray], directions: int = 180) -> np.ndarray:
    """Return the radius at which a function first changes its sign along each direction; else the side."""
    angle = torch.arange(directions, dtype=torch.float64) * (2 * torch.pi / directions)
    radius = torch.linspace(0, SIDE, 241, dtype=torch.float64)
    rays = radius[None, :, None] * torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    values = function(rays.reshape(-1, 2)).reshape(directions, -1)
    changed = np.sign(values[:, 1:]) != np.sign(values[:, :-1])
    first = np.where(changed.any(1), changed.argmax(1), len(radius) - 2)
    rows = np.arange(directions)
    low, high = values[rows, first], values[rows, first + 1]
    share = np.where(changed.any(1), low / np.where(low == high, 1, low - high), 1.0)
    return array(radius)[first] + share * float(radius[1])


def features(model: nn.Module, x: Tensor) -> np.ndarray:
    """Return tangent features ``[n, P]`` of the one output."""
    return array(ntkit.EmpiricalNTK(model).features(x)[:, 0])


def grid(side: int = 61) -> Tensor:
    """Return a grid of the square, ``[side * side, 2]``, row by row from below."""
    line = torch.linspace(-SIDE, SIDE, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line).flip(1)


def draw_predictions(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> Figure:
    """Draw the training points, and the prediction over the square."""
    figure, (left, right) = panels(9, 4.2, columns=2)
    _points(left, x, y)
    left.set_title("training points")
    side = round(len(values) ** 0.5)
    bound = np.abs(values).max()
    place = {"origin": "lower", "extent": (-SIDE, SIDE) * 2}
    shown = right.imshow(values.reshape(side, side), cmap="PuOr", vmin=-bound, vmax=bound, **place)
    right.contour(values.reshape(side, side), [0], colors="k", **place)
    right.set_title("prediction of the trained network (black: 0)")
    figure.colorbar(shown, ax=right, shrink=0.85, label="f(x)")
    for ax in (left, right):
        ax.set(xlabel="first coordinate", ylabel="second coordinate")
    above(figure, left, 2)
    return figure


def draw_boundaries(a: Mapping[str, np.ndarray]) -> Figure:
    """Draw the decisions of SVMs on the inputs and with the tangent kernel, and the network's boundary."""
    figure, axes = panels(9, 4.6, columns=2)
    side = round(len(a["svm"]) ** 0.5)
    place = {"origin": "lower", "extent": (-SIDE, SIDE) * 2}
    for ax, name, title in zip(
        axes, ("svm on inputs", "svm"), ("SVM on the inputs", "SVM with the tangent kernel"), strict=True
    ):
        sides = np.where(a[name] > 0, 1.0, -1.0).reshape(side, side)
        ax.imshow(sides, cmap="PuOr", vmin=-3, vmax=3, **place)
        _points(ax, a["x"], a["y"])
        ax.contour(a["prediction"].reshape(side, side), [0], colors="k", linestyles="--", **place)
        ax.plot([], [], "k--", label="boundary of the network")
        ax.set(title=f"{title} (shaded)", xlabel="first coordinate", ylabel="second coordinate")
    above(figure, axes[0], 3)
    return figure


def draw_errors(errors: Mapping[str, np.ndarray]) -> Figure:
    """Draw the errors of Eq. 9 and of the exact account against the learning rate."""
    figure, (left, right) = panels(9, 3.8, columns=2)
    rates = errors["rates"]
    left.loglog(rates, errors["left"], "o-", color=ORANGE, label="Eq. 9 (left end of each step)")
    left.loglog(rates, errors["left"][0] * rates / rates[0], ":", color="0.4", label="∝ rate")
    exact = np.maximum(errors["exact"], 1e-17)
    right.loglog(rates, exact, "s-", color=BLUE, label="exact account (3 Gauss nodes)")
    low, high = exact.min(), exact.max()
    right.set_ylim(10.0 ** np.floor(np.log10(low)), 10.0 ** (np.floor(np.log10(high)) + 1))
    for ax in (left, right):
        finish(ax, xlabel="learning rate, at equal steps × rate", ylabel="largest error / largest |f|")
        ticks(ax.xaxis, rates)
    marks = [m * 10.0**k for k in range(-9, 1) for m in (1, 2, 5)]
    ticks(left.yaxis, [m for m in marks if errors["left"].min() * 0.8 <= m <= errors["left"].max() * 1.2])
    return figure


def draw_neighbors(a: Mapping[str, np.ndarray]) -> Figure:
    """Draw the nearest training points of points along a ray: by normalized NTK above, by distance below."""
    x, y, along = a["x"], a["y"], a["along"]
    figure, axes = panels(2.3 * len(along), 5, 2, len(along), squeeze=False)
    for row, (name, key) in enumerate((("normalized NTK", "by_kernel"), ("distance", "by_distance"))):
        for ax, point, index in zip(axes[row], along, a[key], strict=True):
            ax.scatter(*x.T, s=2, color="0.85")
            _points(ax, x[index], y[index])
            ax.plot(*point, "k*", ms=10, label="query x")
            ax.set(xticks=[], yticks=[], title=f"|x| = {np.linalg.norm(point):.2f}" if row == 0 else "")
        axes[row][0].set_ylabel(f"nearest by {name}")
    above(figure, axes[0][0], 3)
    return figure


def ray(direction: Sequence[float], count: int = 5) -> Tensor:
    """Return points along a direction of the plane, from near zero to the edge of the square."""
    unit = torch.tensor(direction, dtype=torch.float64)
    return torch.linspace(0.15, SIDE, count, dtype=torch.float64)[:, None] * unit / unit.norm()


def _points(ax, x: np.ndarray, y: np.ndarray) -> None:
    for label, color in ((1, BLUE), (-1, ORANGE)):
        chosen = y.reshape(-1) == label
        ax.scatter(x[chosen, 0], x[chosen, 1], s=5, color=color, label=f"label {label:+d}")
    ax.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal")
