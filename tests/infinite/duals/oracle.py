"""Expectations under two correlated Gaussians by brute force, two rules of Gauss: the oracle of the duals."""

import numpy as np
import torch

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)
REACH = 9.5


def _rule(edges):
    """Nodes and weights of the standard normal between the edges in the last axis."""
    edges = np.sort(np.clip(edges, -REACH, REACH), -1)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, np.diff(edges) / 2
    z = (middle[..., None] + half[..., None] * NODES).reshape(*edges.shape[:-1], -1)
    w = (half[..., None] * WEIGHTS).reshape(z.shape)
    return z, w * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def expectation(f, g, cov, var1, var2, kinks1=(), kinks2=()):
    """E[f(u) g(v)] with u = sd1 z1, v = sd2 (rho z1 + s z2), both split where a function has a kink."""
    sd1, sd2 = np.sqrt(max(var1, 1e-300)), np.sqrt(max(var2, 1e-300))
    rho = np.clip(cov / np.sqrt(max(var1 * var2, 1e-300)), -1, 1)
    s = np.sqrt((1 - rho) * (1 + rho))
    even = np.linspace(-REACH, REACH, 9)
    outer = [even, np.asarray(kinks1, float) / sd1]
    if rho:
        widths = s / abs(rho) * np.array([-8, -5, -2.5, -1, 0, 1, 2.5, 5, 8])
        outer += [k / (sd2 * rho) + widths for k in kinks2]
    z1, w1 = _rule(np.concatenate(outer))
    if s == 0:
        return float(w1 @ (f(sd1 * z1) * g(sd2 * rho * z1)))
    places = (np.asarray(kinks2, float) / sd2 - rho * z1[:, None]) / s
    z2, w2 = _rule(np.concatenate([np.broadcast_to(even, (len(z1), len(even))), places], -1))
    return float(w1 @ (f(sd1 * z1) * (w2 * g(sd2 * (rho * z1[:, None] + s * z2))).sum(-1)))


def functions_of(phi):
    """Return phi, phi' and x phi'(x), from arrays to arrays, the derivative by autograd."""

    def value(x):
        return phi(torch.tensor(x)).numpy()

    def slope(x):
        x = torch.tensor(x, requires_grad=True)
        y = phi(x).sum()
        return torch.autograd.grad(y, x)[0].numpy() if y.requires_grad else np.zeros(x.shape)

    return value, slope, lambda x: x * slope(x)
