"""A circle and the disk inside it, told apart by a small network.

Points of the unit circle and of the disk of half its radius, a network 2-10-10-1 with GELU, gradient descent
on all points (Courtois, Morel, Arias, Section 5.1, Figures 1 to 3).

Eq. 9 of the paper writes the trained network as a sum over training samples up to the sum of the squared
learning rates; the error is measured against the learning rate, beside the account that integrates along each
step. The nearest training points are those of the largest normalized tangent kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from ntkit.data.toy import ball_sphere
from ntkit.studies import plane
from ntkit.studies.study import Claim, Result, array

QUICK = {
    "samples": 128,
    "steps": 1000,
    "rate": 0.02,
    "seeds": 1,
    "rates": (0.01, 0.02),
    "queries": 8,
    "nearest": 20,
}


@dataclass(frozen=True, kw_only=True)
class Config(plane.PlaneConfig):
    """The paper's numbers; the error against the rate is measured at 32 points."""


def run(config: Config) -> Result:
    """Train, account, look at neighbors, and separate."""
    x, y = (t.to(config.device) for t in ball_sphere(config.samples, config.seed))
    test_x, test_y = (t.to(config.device) for t in ball_sphere(config.samples, config.seed + 1000))
    models = [plane.train(config, x, y, config.seed + s, config.rate) for s in range(config.seeds)]
    accuracies = [plane.accuracy(model, test_x, test_y) for model in models]
    model = models[0]
    errors = plane.errors_of_equation_9(config, x, y)
    along = plane.ray((0.6, 0.8)).to(config.device)
    by_kernel, by_distance = plane.neighbors(model, x, along, config.nearest)
    labels, test_labels = array(y).reshape(-1), array(test_y).reshape(-1)
    on_features = plane.separability(
        plane.features(model, x), labels, plane.features(model, test_x), test_labels
    )
    on_inputs = plane.separability(array(x), labels, array(test_x), test_labels)
    growth = plane.slope(errors["rates"], errors["left"])
    with torch.no_grad():
        values = model(plane.grid().to(config.device))
    return Result(
        config,
        claims=(
            Claim(f"accuracy on new points, worst of {config.seeds}", min(accuracies), "100 %", low=1.0),
            Claim("slope of the error of Eq. 9 in the learning rate", growth, "O(Σ η²)", low=0.8, high=1.2),
            Claim("error of Eq. 9 / max |f|, largest rate", float(errors["left"].max()), "small"),
            Claim("error of the exact account / max |f|", float(errors["exact"].max()), high=1e-8),
            Claim("linear SVM on tangent features, accuracy", on_features[0], "100 %", low=1.0),
            Claim("linear SVM on tangent features, new points", on_features[1], ""),
            Claim("linear SVM on inputs, accuracy", on_inputs[0], "fails", high=0.75),
            Claim(
                "neighbors that kernel and distance share", plane.overlap(by_kernel, by_distance), "similar"
            ),
        ),
        arrays={
            "x": array(x),
            "y": array(y),
            "prediction": array(values),
            "along": array(along),
            "by_kernel": by_kernel,
            "by_distance": by_distance,
            **errors,
        },
        numbers={"accuracies": accuracies},
    )


def figure(result: Result) -> Mapping[str, Figure]:
    """Draw data and prediction, the errors, and the neighbors along a ray."""
    a: Mapping[str, np.ndarray] = result.arrays
    return {
        "Training points and prediction": plane.draw_predictions(a["x"], a["y"], a["prediction"]),
        "Error against the learning rate": plane.draw_errors({k: a[k] for k in ("rates", "left", "exact")}),
        "Nearest training points": plane.draw_neighbors(
            a["x"], a["y"], a["along"], a["by_kernel"], a["by_distance"]
        ),
    }
