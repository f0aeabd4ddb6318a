"""Spectral densities of kernels, and draws from them: independent, orthogonal, quasi-random."""

from __future__ import annotations

import numpy as np
from scipy import special, stats
from scipy.stats import qmc

from ntkit.errors import BadValueError, one_of

DRAWS = ("iid", "orthogonal", "sobol")
ISOTROPIC = ("gaussian", "matern")


def frequencies(law: str, d: int, m: int, draw: str, seed: int, nu: float = 1.5) -> np.ndarray:
    """Return m frequencies ``[m, d]`` of unit length scale from the spectral density of a kernel.

        gaussian    exp(-|x|^2 / 2)          N(0, I)
        laplacian   exp(-|x|_1)              prod_i 1 / (pi (1 + w_i^2))
        cauchy      prod_i 1 / (1 + x_i^2)   prod_i exp(-|w_i|) / 2
        matern      of smoothness nu         Student's t with 2 nu degrees of freedom

    ``"orthogonal"``: rows of random rotations, of independent lengths (rotationally symmetric laws only).
    ``"sobol"``: scrambled Sobol points through the quantile functions.

    References
    ----------
    Ravikumar (2024), section 2; Yu et al., "Orthogonal random features" (2016); Yang et al., "Quasi-Monte
    Carlo feature maps" (2014).

    Examples
    --------
    >>> w = frequencies("gaussian", 2, 4, "orthogonal", seed=0)
    >>> bool(abs(w[0] @ w[1]) < 1e-12), w.shape
    (True, (4, 2))
    """
    one_of("draw", draw, DRAWS)
    if draw == "orthogonal" and law not in ISOTROPIC:
        raise BadValueError(
            f"draw='orthogonal' needs a law that is the same in all directions, {law!r} is not; use 'iid' or "
            f"'sobol'."
        )
    extra = int(law == "matern")
    rng = np.random.default_rng(seed)
    u = _sobol(d + extra, m, seed) if draw == "sobol" else rng.random((m, d + extra))
    quantile = {"laplacian": stats.cauchy.ppf, "cauchy": stats.laplace.ppf}.get(law, special.ndtri)
    w = quantile(u[:, :d])
    if draw == "orthogonal":
        w = np.linalg.norm(w, axis=1, keepdims=True) * _directions(d, m, rng)
    if law == "matern":
        w = w * np.sqrt(2 * nu / stats.chi2.ppf(u[:, d:], 2 * nu))
    return w


def _sobol(d: int, m: int, seed: int) -> np.ndarray:
    """Return scrambled Sobol points inside (0, 1), the first m of a power of two."""
    if d > qmc.Sobol.MAXDIM:
        raise BadValueError(
            f"Sobol points have at most {qmc.Sobol.MAXDIM} coordinates, {d} are needed; use 'iid'."
        )
    points = qmc.Sobol(d, scramble=True, seed=np.random.default_rng(seed))  # pyright: ignore[reportCallIssue]
    return points.random_base2((m - 1).bit_length())[:m].clip(1e-12, 1 - 1e-12)


def _directions(d: int, m: int, rng: np.random.Generator) -> np.ndarray:
    """Return m unit vectors, orthogonal to each other in groups of d."""
    blocks = []
    for _ in range(-(-m // d)):
        q, r = np.linalg.qr(rng.normal(size=(d, d)))
        blocks.append(q * np.sign(np.diagonal(r)))  # uniform over rotations and reflections
    return np.concatenate(blocks)[:m]
