"""Every kernel there is obeys the laws of kernels, for sizes, seeds and dtypes that hypothesis draws."""

from __future__ import annotations

from functools import cache, partial

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.gaussian_process.kernels import RBF
from torch import nn

import ntkit
from ntkit.kernel import Kernel
from ntkit.machine.adapters import FromGPyTorch, FromSklearn
from ntkit.machine.kernels import FromFunction, ReLUKernel
from ntkit.testing import KernelLawError, batches, check_kernel

D = 3


@cache
def network(dtype: torch.dtype, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.GELU(), nn.Linear(5, outputs)).to(dtype)


@cache
def convolutional(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(4, 2)).to(dtype).eval()


@cache
def limit(dtype: torch.dtype) -> object:
    return ntkit.infinite_width(network(dtype), torch.zeros(1, D, dtype=dtype), sigma_b=0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A recorded run in each dtype."""
    folders = {}
    for dtype in (torch.float64, torch.float32):
        folders[dtype] = tmp_path_factory.mktemp("laws") / "run"
        model = network(dtype)
        x, y = torch.randn(8, D, dtype=dtype), torch.randn(8, 2, dtype=dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with ntkit.record(folders[dtype], model, optimizer) as run:
            for _ in range(2):
                run.batch(range(8))
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    return folders


def empirical(outputs, runs, dtype):
    return ntkit.EmpiricalNTK(network(dtype), outputs=outputs)


def path(outputs, runs, dtype):
    return ntkit.PathKernel(runs[dtype], network(dtype), outputs=outputs)


def layer(number, kind, runs, dtype):
    return getattr(list(limit(dtype).layers.values())[number], kind)


@cache
def drawn(kind):
    z = ntkit.RandomFeatures(kind, 32, seed=0).fit(np.random.default_rng(0).normal(size=(4, D)))
    return FromFunction(lambda a, b: z.transform(a) @ z.transform(b).T)


def features(kind, runs, dtype):
    return drawn(kind)


RELU = ReLUKernel(depth=2)
VECTORS = {
    **{f"EmpiricalNTK, {o}": partial(empirical, o) for o in ("full", "diagonal", "trace", "mean")},
    **{f"PathKernel, {o}": partial(path, o) for o in ("full", "diagonal", "mean")},
    "ConjugateKernel": lambda runs, dtype: ntkit.ConjugateKernel(network(dtype)),
    "limit, NTK": lambda runs, dtype: limit(dtype).ntk,
    "limit, NNGP": lambda runs, dtype: limit(dtype).nngp,
    "limit, a layer's NTK": partial(layer, 1, "ntk"),
    "limit, a layer's NNGP": partial(layer, 0, "nngp"),
    "ReLUKernel": lambda runs, dtype: RELU,
    "RandomFeatures, gaussian": partial(features, "gaussian"),
    "RandomFeatures, ntk": partial(features, "ntk"),
    "scikit-learn": lambda runs, dtype: FromSklearn(RBF(1.5)),
    "GPyTorch": lambda runs, dtype: FromGPyTorch(gpytorch.kernels.RBFKernel().to(dtype)),
    "sum": lambda runs, dtype: limit(dtype).ntk + limit(dtype).nngp,
    "product": lambda runs, dtype: limit(dtype).ntk * empirical("mean", runs, dtype),
    "scaled": lambda runs, dtype: 0.3 * empirical("full", runs, dtype),
    "composed": lambda runs, dtype: limit(dtype).ntk.compose(torch.sin),
    "normalized": lambda runs, dtype: empirical("full", runs, dtype).normalized(),
}


SLOW = ("PathKernel, full", "PathKernel, mean")  # as "PathKernel, diagonal", which shares their code


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in VECTORS]
)
def test_laws(name, runs):
    made = cache(lambda dtype: VECTORS[name](runs, dtype))

    @given(batches(D))
    @settings(max_examples=4, derandomize=True, deadline=None, database=None)
    def laws(pair):
        x1, x2 = pair
        kernel = made(x1.dtype)
        if isinstance(kernel, (FromFunction, FromSklearn, ReLUKernel)):
            x1, x2 = x1.double().numpy(), x2.double().numpy()
        check_kernel(kernel, x1, x2)

    laws()


@pytest.mark.slow
def test_laws_of_pictures():
    made = cache(lambda dtype, outputs: ntkit.EmpiricalNTK(convolutional(dtype), outputs=outputs))

    @given(batches(2, 5, 5, most=4))
    @settings(max_examples=4, derandomize=True, deadline=None, database=None)
    def laws(pair):
        for outputs in ("full", "trace"):
            check_kernel(made(pair[0].dtype, outputs), *pair)

    laws()


def test_laws_of_a_precomputed_matrix():
    a = np.random.default_rng(0).normal(size=(9, 4))
    matrix = a @ a.T
    kernel = FromFunction(lambda i, j: matrix[np.ix_(i[:, 0], j[:, 0])])
    check_kernel(kernel, np.arange(5)[:, None], np.arange(4, 9)[:, None])


class Wrong(Kernel):
    """x . x' with one law broken."""

    def __init__(self, law: str = "") -> None:
        self.law = law

    def __call__(self, x1, x2=None):
        second = x1 if x2 is None else x2
        block = x1 @ second.T
        if self.law == "symmetry":
            block = block + x1[:, :1]
        if self.law == "positive semi-definite":
            block = -block
        if self.law == "blocks":
            block = block * len(x1)
        if self.law == "itself" and x2 is None:
            block = 1.01 * block
        if self.law == "permutation":
            block = block + torch.outer(torch.arange(len(x1)).to(x1), torch.arange(len(second)).to(x1))
        return block[:, :-1] if self.law == "shape" else block

    def diag(self, x):
        own = x.square().sum(1)
        own = own * {"blocks": len(x), "positive semi-definite": -1}.get(self.law, 1)
        return own + 0.1 if self.law == "diagonal" else own


@pytest.mark.parametrize(
    "law", ["symmetry", "positive semi-definite", "blocks", "itself", "permutation", "diagonal", "shape"]
)
def test_a_broken_law_is_told(law):
    x = torch.randn(7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KernelLawError, match=law if law != "shape" else "expected"):
        check_kernel(Wrong(law), x[:4], x[4:])
    check_kernel(Wrong(), x[:4], x[4:])
