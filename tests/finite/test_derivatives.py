"""Networks that return derivatives of themselves: read below autograd, all weights by structure."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn
from torch.autograd import grad
from torch.func import hessian, jacrev, jvp, vmap

import ntkit

D = torch.float64


class Derived(nn.Module):
    """A function of a network and its inputs, which takes derivatives of it."""

    def __init__(self, net, f):
        super().__init__()
        self.u, self.f = net, f

    def forward(self, x):
        with torch.enable_grad():
            return self.f(self.u, x.detach().requires_grad_())


def mlp(inputs, outputs, act=nn.Tanh):
    return nn.Sequential(nn.Linear(inputs, 7), act(), nn.Linear(7, 7), act(), nn.Linear(7, outputs))


def convolutions(axes, transposed=False):
    conv = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1] if transposed else (nn.Conv1d, nn.Conv2d)[axes - 1]
    )
    more = {"output_padding": 1} if transposed else {"dilation": 2} if axes == 1 else {}
    return nn.Sequential(
        nn.Unflatten(1, (1, *[6] * axes)),
        conv(1, 4, 3, stride=2, padding=2, **more),
        nn.Softplus(),
        (nn.Conv1d, nn.Conv2d)[axes - 1](4, 4, 2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(1),
    )


def first(u, x):
    return grad(u(x).sum(), x, create_graph=True)[0]


def laplacian(u, x):
    d = first(u, x)
    return sum(grad(d[:, i].sum(), x, create_graph=True)[0][:, i : i + 1] for i in range(x.shape[1]))


def divergence(u, x):
    y = u(x)
    return sum(grad(y[:, i].sum(), x, create_graph=True)[0][:, i : i + 1] for i in range(x.shape[1]))


def hamiltonian(u, x):
    q, p = first(u, x).chunk(2, 1)
    return torch.cat([p, -q], 1)


def third(u, x):
    y = u(x)
    for _ in range(3):
        (y,) = grad(y.sum(), x, create_graph=True)
    return y


def constant_factor(u, x):
    y = u(x)
    return y * grad(y.sum(), x, retain_graph=True)[0]


def cut(u, x):
    y = u(x)
    return y.detach() * grad(y.sum(), x, create_graph=True)[0] + y


def without_gradient(u, x):
    d = first(u, x)
    with torch.no_grad():
        y = u(x.contiguous()) ** 2
    return y * d


def data_factor(u, x):
    y = u(x)
    return y.data * grad(y.sum(), x, create_graph=True)[0]


def functional(u, x):
    return vmap(jacrev(lambda a: u(a)[0]))(x)


def functional_hessian(u, x):
    return vmap(lambda a: hessian(lambda b: u(b)[0])(a).diagonal().sum())(x)[:, None]


def forward_mode(u, x):
    return jvp(u, (x,), (torch.ones_like(x),))[1]


# name: network, derivative, number of inputs
CASES = {
    "first": (lambda: mlp(3, 1), first, 3),
    "laplacian": (lambda: mlp(3, 1), laplacian, 3),
    "laplacian, softplus": (lambda: mlp(2, 1, nn.Softplus), laplacian, 2),
    "laplacian, silu": (lambda: mlp(2, 1, nn.SiLU), laplacian, 2),
    "laplacian, gelu": (lambda: mlp(2, 1, nn.GELU), laplacian, 2),
    "divergence": (lambda: mlp(3, 3), divergence, 3),
    "hamiltonian": (lambda: mlp(4, 1, nn.Softplus), hamiltonian, 4),
    "third": (lambda: mlp(1, 1), third, 1),
    "relu": (lambda: mlp(3, 1, nn.ReLU), first, 3),
    "norms": (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)), first, 3),
    "convolutions": (lambda: convolutions(1), first, 6),
    "convolutions, laplacian": (lambda: convolutions(1), laplacian, 6),
    "convolutions in the plane": (lambda: convolutions(2), first, 36),
    "transposed convolutions": (lambda: convolutions(1, transposed=True), laplacian, 6),
    "a derivative that is a constant": (lambda: mlp(3, 1), constant_factor, 3),
    "detach": (lambda: mlp(3, 1), cut, 3),
    "no_grad": (lambda: mlp(3, 1), without_gradient, 3),
    "data": (lambda: mlp(3, 1), data_factor, 3),
    "jacrev": (lambda: mlp(3, 2), lambda u, x: functional(u, x).flatten(1), 3),
    "hessian": (lambda: mlp(3, 1), functional_hessian, 3),
    "jvp": (lambda: mlp(3, 2), forward_mode, 3),
}


@pytest.mark.filterwarnings("ignore:No output depends on")  # derivatives do not depend on the last bias
@pytest.mark.parametrize("case", CASES)
def test_derivatives_by_structure(case):
    make, f, size = CASES[case]
    torch.manual_seed(0)
    model, x = Derived(make(), f), torch.randn(4, size, dtype=D)
    model.u(x.float())  # lazy layers
    model = model.to(D)
    k, truth = ntkit.EmpiricalNTK(model), mean_kernel(model, x)
    for _ in range(2):
        assert_kernel(k(x), truth)
    assert_kernel(k.operator(x) @ torch.eye(4, dtype=D), truth)
    assert_kernel(k(x[:3], x[2:]), truth[:3, 2:])
    old = torch.__version__.startswith("2.6.") and case in ("jacrev", "hessian")  # torch cannot trace them
    ways = {row.way for row in k.explain(x).rows}
    assert ways == ({"contraction"} if old else {"structure"}), k.explain(x)


def test_the_limit_of_a_derivative_is_refused():
    with pytest.raises(ntkit.NoRuleError):
        ntkit.infinite_width(Derived(mlp(3, 1), first).to(D), torch.randn(2, 3, dtype=D))
