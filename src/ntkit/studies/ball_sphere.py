"""A circle and the disk inside it, told apart by a small network.

Points of the unit circle and of the disk of half its radius, a network 2-10-10-1 with GELU, gradient descent
on all points (Courtois, Morel, Arias, Section 5.1, Figures 1 to 3).

Eq. 9 of the paper writes the trained network as a sum over training samples up to the sum of the squared
learning rates; the error is measured against the learning rate, beside the account that integrates along each
step. The nearest training points are those of the largest normalized tangent kernel.
"""

from __future__ import annotations

from ntkit.data.toy import ball_sphere
from ntkit.studies import plane
from ntkit.studies.figures import Figures
from ntkit.studies.study import Claim, Result

QUICK = plane.QUICK


class Config(plane.PlaneConfig):
    """The paper's numbers; the error against the rate is measured at 32 points."""


def run(config: Config) -> Result:
    """Train, account, look at neighbors, and separate."""
    numbers, arrays = plane.investigate(config, ball_sphere, (0.6, 0.8))
    claims = (
        Claim(f"accuracy, worst of {config.seeds}", numbers["accuracy"], "100 %", low=1.0),
        Claim(f"accuracy on new points, worst of {config.seeds}", numbers["accuracy on new points"]),
        Claim("slope of the error of Eq. 9 in the learning rate", numbers["slope"], low=0.8, high=1.2),
        Claim("error of Eq. 9 / max |f|, largest rate", numbers["Eq. 9"]),
        Claim("error of the exact account / max |f|", numbers["exact"], high=1e-8),
        Claim("linear SVM on tangent features", numbers["features"], "100 %", low=1.0),
        Claim("linear SVM on tangent features, new points", numbers["features, new points"]),
        Claim("linear SVM on inputs", numbers["inputs"], "fails", high=0.75),
        Claim(
            "SVM with the tangent kernel agrees with the network, of the square",
            numbers["agreement"],
            "closely matches",
            low=0.95,
        ),
        Claim("linear SVM on inputs agrees with the network, of the square", numbers["agreement, inputs"]),
        Claim(
            "radius of the network's boundary, mean over directions",
            numbers["radius, network"],
            "0.75",
            low=0.65,
            high=0.85,
        ),
        Claim("radius of the SVM's boundary, mean over directions", numbers["radius, svm"]),
        Claim("distance of the two boundaries along a direction, mean", numbers["radii apart"], high=0.05),
        Claim("neighbors that kernel and distance share", numbers["overlap"], "similar"),
    )
    return Result(config, claims, arrays)


def figure(result: Result) -> Figures:
    """Draw the paper's Figures 1 to 3, and the errors."""
    return plane.draw_all(result.arrays)
