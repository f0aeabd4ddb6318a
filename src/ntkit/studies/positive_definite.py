"""Which activations make the tangent kernel positive definite on the sphere.

On distinct points of the unit sphere the NTK of a network with a nonlinearity that is not a polynomial has
only positive eigenvalues (Giancola, Proposition III.3.3), so that training reaches any labels. A polynomial
of degree p has a kernel that is a polynomial of x . x', whose rank is bounded whatever the number of points
(Observation III.3.4): there labels exist that no width can fit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.diagnose.definiteness import definiteness, harmonics, sphere
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import Elementwise

QUICK = {"points": 40}


class Config(StudyConfig):
    """Random points of the unit sphere."""

    points: int = option(100, "Points on the sphere.", low=10, high=2000)
    dimension: int = option(3, "Dimension of the space that the sphere is in.", low=2, high=100)
    beta: float = option(0.1, "Scale of the bias.", low=0.0)


def square_and_line(x: Tensor) -> Tensor:
    """Return x^2 + x, a polynomial of degree two."""
    return x**2 + x


ACTIVATIONS = {"ReLU": torch.relu, "erf": torch.erf, "x² + x": square_and_line}


def run(config: Config) -> Result:
    """Find the ends of the spectra."""
    d = config.dimension
    x = sphere(config.points, d, seed=config.seed).to(config.device)
    claims, spectra = [], {}
    for name, function in ACTIVATIONS.items():
        model = nn.Sequential(nn.Linear(d, 4), Elementwise(function), nn.Linear(4, 1))
        model.to(config.device, torch.float64)
        kernel = ntkit.infinite_width(model, x[:1], sigma_w=2**0.5, sigma_b=config.beta).ntk
        ends = definiteness(kernel, x)
        spectra[name] = np.linalg.eigvalsh(array(kernel(x)))[::-1]
        most, ratio = harmonics(d, 2), ends.smallest / ends.rounding
        if function is square_and_line:
            rank = f"{name}: rank on {config.points} points"
            claims += [
                Claim(rank, ends.rank, f"at most {most}", low=most, high=most),
                Claim(f"{name}: smallest eigenvalue / rounding", abs(ratio), "0", high=1.0),
            ]
        else:
            claims += [
                Claim(f"{name}: smallest eigenvalue", ends.smallest, "> 0"),
                Claim(f"{name}: smallest eigenvalue / rounding", ratio, "> 1", low=1.0),
            ]
    return Result(config, claims, spectra)


def figure(result: Result) -> Figures:
    """Draw the spectra."""
    drawn, ax = panels(6.5, 4)
    for (name, values), color in zip(result.arrays.items(), (BLUE, GREEN, ORANGE), strict=True):
        ax.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-18), ".-", color=color, label=name)
    finish(ax, xlabel="rank", ylabel="eigenvalue of the NTK (no unit)", ylim=(1e-17, None))
    return {"Eigenvalues on the sphere": drawn}
