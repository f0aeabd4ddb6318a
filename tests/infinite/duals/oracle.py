"""Expectations under two correlated Gaussians by brute force: the oracle of the duals."""

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)
REACH = 9.5


def _rule(edges):
    edges = np.unique(np.clip(edges, -REACH, REACH))
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    z = (middle[:, None] + half[:, None] * NODES).ravel()
    return z, (half[:, None] * WEIGHTS).ravel() * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def expectation(f, g, cov, var1, var2, kinks1=(), kinks2=()):
    """E[f(u) g(v)] with u = sd1 z1, v = sd2 (rho z1 + s z2): two rules of Gauss, split where either jumps."""
    sd1, sd2 = np.sqrt(var1), np.sqrt(var2)
    rho = np.clip(cov / max(np.sqrt(var1 * var2), 1e-300), -1, 1)
    s = np.sqrt((1 - rho) * (1 + rho))
    even = np.linspace(-REACH, REACH, 17)
    outer = [even, np.asarray(kinks1, float) / max(sd1, 1e-300)]
    if rho:
        for k in kinks2:
            outer.append(k / (sd2 * rho) + s / abs(rho) * np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8]))
    z, w = _rule(np.concatenate(outer))
    total = 0.0
    for z1, w1 in zip(z, w, strict=True):
        if s == 0:
            inner = g(np.array([sd2 * rho * z1]))[0]
        else:
            places = (np.asarray(kinks2, float) / max(sd2, 1e-300) - rho * z1) / s
            z2, w2 = _rule(np.concatenate([np.linspace(-REACH, REACH, 9), places]))
            inner = (w2 * g(sd2 * (rho * z1 + s * z2))).sum()
        total += w1 * f(np.array([sd1 * z1]))[0] * inner
    return total
