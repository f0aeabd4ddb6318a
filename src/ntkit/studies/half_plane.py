"""The two sides of a line, told apart by a small network.

Points of a square on either side of a line through its middle; network, training and measurements are those
of the study ball-sphere (Courtois, Morel, Arias, Section 5.2, Figures 4 and 5). The nearest training points
are looked at along the normal of the line.
"""

from __future__ import annotations

from ntkit.data.toy import half_plane
from ntkit.studies import plane
from ntkit.studies.figures import Figures
from ntkit.studies.study import Claim, Result

NORMAL = (0.6, 0.8)
QUICK = plane.QUICK


class Config(plane.PlaneConfig):
    """The paper's numbers; the error against the rate is measured at 32 points."""


def run(config: Config) -> Result:
    """Train, account, look at neighbors, and separate."""
    numbers, arrays = plane.investigate(config, half_plane, NORMAL)
    bar = 0.9 if config.changed else 0.99
    claims = (
        Claim(f"accuracy, worst of {config.seeds}", numbers["accuracy"], "99.80 %", low=bar),
        Claim(f"accuracy on new points, worst of {config.seeds}", numbers["accuracy on new points"], low=bar),
        Claim("slope of the error of Eq. 9 in the learning rate", numbers["slope"], low=0.8, high=1.2),
        Claim("error of Eq. 9 / max |f|, largest rate", numbers["Eq. 9"]),
        Claim("error of the exact account / max |f|", numbers["exact"], high=1e-8),
        Claim("linear SVM on tangent features", numbers["features"], low=1.0),
        Claim("linear SVM on tangent features, new points", numbers["features, new points"]),
        Claim("linear SVM on inputs", numbers["inputs"], "separable", low=1.0),
        Claim("SVM with the tangent kernel agrees with the network, of the square", numbers["agreement"]),
        Claim("linear SVM on inputs agrees with the network, of the square", numbers["agreement, inputs"]),
        Claim("neighbors of one label, by kernel", numbers["purity by kernel"], "most"),
        Claim("neighbors of one label, by distance", numbers["purity by distance"]),
    )
    return Result(config, claims, arrays)


def figure(result: Result) -> Figures:
    """Draw the paper's Figures 4 and 5, the errors, and the boundaries."""
    return plane.draw_all(result.arrays)
