"""Refusals are NtkitErrors, and what Python raises for a bad value or a bad type besides."""

import numpy as np
import pytest
import torch
from torch import nn

import ntkit
from ntkit import errors
from ntkit.data.toy import ball_sphere
from ntkit.report.run_page import explain_run

NET = nn.Linear(3, 2)
X = np.zeros((4, 2))
VALUES = {
    "memory": lambda: ntkit.EmpiricalNTK(NET, memory="a lot"),
    "names of weights": lambda: ntkit.EmpiricalNTK(NET, weights={"w": torch.zeros(2, 3)}),
    "NaN": lambda: ntkit.EmpiricalNTK(NET)(torch.full((2, 3), torch.nan)),
    "no sample": lambda: ntkit.EmpiricalNTK(NET)(torch.zeros(0, 3)),
    "a mixed batch": lambda: ntkit.EmpiricalNTK(nn.BatchNorm1d(3))(torch.randn(4, 3)),
    "a factor": lambda: -1.0 * ntkit.EmpiricalNTK(NET),
    "a parameter of a kernel": lambda: ntkit.EmpiricalNTK(NET).set_params(depth=3),
    "an order": lambda: ntkit.taylor(NET, -1),
    "a solver": lambda: ntkit.KernelRidge(solver="magic").fit(X, X[:, 0]),
    "a kernel's name": lambda: ntkit.KernelRidge("magic").fit(X, X[:, 0]),
    "a negative penalty": lambda: ntkit.KernelRidge(alpha=-1).fit(X, X[:, 0]),
    "a matrix that is not positive": lambda: ntkit.KernelRidge("precomputed").fit(-4 * np.eye(4), X[:, 0]),
    "a learning rate": lambda: ntkit.GradientFlow(learning_rate=1e9).fit(X + np.eye(4, 2), X[:, 0]),
    "a kind": lambda: ntkit.RandomFeatures("magic").fit(X),
    "points": lambda: ball_sphere(0, 0),
    "a name on the command line": lambda: explain_run("run", "build", "mine:data", "0", "out.html"),
}
TYPES = {
    "a model": lambda: ntkit.EmpiricalNTK(3),
    "a function without weights": lambda: ntkit.EmpiricalNTK(lambda w, x: x),
    "an input": lambda: ntkit.EmpiricalNTK(NET)([object()]),
    "outputs": lambda: ntkit.EmpiricalNTK(Pair())(torch.zeros(2, 3)),
    "a module to linearize": lambda: ntkit.linearize(print),
    "a module to parametrize": lambda: ntkit.ntk_parametrize(print, seed=0),
    "a network in a kernel's place": lambda: ntkit.KernelRidge(NET).fit(X, X[:, 0]),
    "a number in a kernel's place": lambda: ntkit.KernelRidge(3).fit(X, X[:, 0]),
    "a loss": lambda: ntkit.GradientFlow(loss=3).fit(X, X[:, 0]),
}


class Pair(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("name", VALUES)
def test_bad_values(name):
    with pytest.raises(ValueError) as caught:
        VALUES[name]()
    assert isinstance(caught.value, ntkit.NtkitError)


@pytest.mark.parametrize("name", TYPES)
def test_bad_types(name):
    with pytest.raises(TypeError) as caught:
        TYPES[name]()
    assert isinstance(caught.value, ntkit.NtkitError)


def test_every_error_is_ours():
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert len(classes) >= 7 and all(issubclass(c, errors.NtkitError) for c in classes)
