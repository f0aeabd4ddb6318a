"""Random feature maps as torch modules: two-layer networks, and the NTK of a ReLU network layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.machine.solving.densities import frequencies


class ScaledMap(nn.Module):
    """scale x activation, elementwise."""

    def __init__(self, name: str, scale: float) -> None:
        super().__init__()
        self.name, self.scale = name, scale

    def extra_repr(self) -> str:
        """Return what printing shows."""
        return f"{self.scale:.4g} x {self.name}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        if self.name == "cos":
            return self.scale * torch.cos(x)
        return self.scale * (torch.relu(x) if self.name == "relu" else (x > 0).to(x))


def fourier(w: np.ndarray) -> nn.Sequential:
    """Return sqrt(1 / m) [cos(W x), sin(W x)] for frequencies ``[m, d]``, as a layer with 2 m cosines.

    The phases of sqrt(2) cos(w x + b) are 0 and -pi / 2 in place of random ones: k(x, x) is one exactly.
    """
    m = len(w)
    bias = np.repeat([0.0, -np.pi / 2], m)
    return nn.Sequential(linear(np.concatenate([w, w]), bias), ScaledMap("cos", (1 / m) ** 0.5))


def arc_cosine(w: np.ndarray, order: int) -> nn.Sequential:
    """Return sqrt(2 / m) relu(W x) (order 1) or step(W x) (order 0)."""
    return nn.Sequential(linear(w), ScaledMap("relu" if order else "step", (2 / len(w)) ** 0.5))


def linear(weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Linear:
    """Return a linear layer in float64 with given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer


class NTKFeatures(nn.Module):
    """Features whose inner products tend to the NTK of an infinitely wide ReLU network.

        phi_1 = psi_1 = [sigma_w x / sqrt(d), sigma_b]
        h = relu(W phi_l) / sqrt(m),  s = step(W phi_l) / sqrt(m)
        phi_{l+1} = [sigma_w h, sigma_b],  psi_{l+1} = [phi_{l+1}, sigma_w s * (B psi_l)]

    psi of the last layer is returned: ``[n, m]``. s * (B psi), with Gaussian B, are random features of the
    product: E[step(w . phi) step(w . phi') (b . psi) (b . psi')] is that of the steps times psi . psi'.

    References
    ----------
    Zandieh et al., "Scaling neural tangent kernels via sketching and random features" (2021); Ravikumar
    (2024), section 6 for one hidden layer.
    """

    def __init__(
        self, d: int, m: int, depth: int, sigma_w: float, sigma_b: float, draw: str, seed: int
    ) -> None:
        super().__init__()
        self.d, self.depth, self.sigma_w, self.sigma_b = d, depth, sigma_w, sigma_b
        relus, products = m // 2, m - m // 2 - 1
        rng = np.random.default_rng(seed)
        width, tangent = d + 1, d + 1
        for layer in range(depth):
            drawn = {
                "W": frequencies("gaussian", width, relus, draw, seed + layer),
                "B": rng.normal(size=(products, tangent)),
            }
            for name, value in drawn.items():
                self.register_buffer(f"{name}{layer}", torch.as_tensor(value))
            width, tangent = relus + 1, m

    def forward(self, x: Tensor) -> Tensor:
        """Return psi of the last layer."""
        ones = x.new_full((len(x), 1), self.sigma_b)
        phi = psi = torch.cat([self.sigma_w / self.d**0.5 * x, ones], 1)
        for layer in range(self.depth):
            w, b = (getattr(self, f"{name}{layer}") for name in "WB")
            g = phi @ w.T
            h, s = torch.relu(g) / len(w) ** 0.5, (g[:, : len(b)] > 0).to(g)
            phi = torch.cat([self.sigma_w * h, ones], 1)
            psi = torch.cat([phi, self.sigma_w / len(b) ** 0.5 * s * (psi @ b.T)], 1)
        return psi


def arc_cosine_kernel(order: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the arc-cosine kernel: 1 - theta / pi, or |x| |x'| (sin theta + (pi - theta) cos theta) / pi."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        cosine = np.clip(a @ b.T / np.where(norms > 0, norms, 1.0), -1, 1)
        theta = np.arccos(cosine)
        if order == 0:  # step(0) = 0: a sample that is zero has no features
            return np.where(norms > 0, 1 - theta / np.pi, 0.0)
        return norms * (np.sin(theta) + (np.pi - theta) * cosine) / np.pi

    return kernel


def cauchy_kernel(scale: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return prod_i 1 / (1 + (x_i - x'_i)^2 / scale^2)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = np.ones((len(a), len(b)))
        for i in range(a.shape[1]):
            out /= 1 + ((a[:, i, None] - b[:, i]) / scale) ** 2
        return out

    return kernel
