import pytest
import torch
from sklearn.base import clone

import ntkit
from ntkit.kernel import Kernel


class Linear(Kernel):
    def __call__(self, x1, x2=None):
        return x1 @ (x1 if x2 is None else x2).T

    def diag(self, x):
        return x.square().sum(1)


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kernel", "dense"),
    [
        (Linear() + Linear(), lambda k: 2 * k),
        (Linear() * Linear(), lambda k: k * k),
        (3 * Linear(), lambda k: 3 * k),
        (Linear() * 0.5, lambda k: 0.5 * k),
        (Linear().compose(lambda x: 2 * x), lambda k: 4 * k),
        (Linear().normalized(), lambda k: k / torch.sqrt(torch.outer(k.diagonal(), k.diagonal()))),
        ((2.0 * Linear() + Linear() * Linear()).normalized().compose(torch.sin), None),
    ],
)
def test_algebra_blocks_and_diagonals(kernel, dense):
    whole = kernel(X)
    if dense is not None:
        torch.testing.assert_close(whole, dense(X @ X.T))
    torch.testing.assert_close(kernel(X, X[1:3]), whole[:, 1:3])
    torch.testing.assert_close(kernel.diag(X), whole.diagonal())
    torch.testing.assert_close(whole, whole.T)
    assert torch.linalg.eigvalsh(whole).min() > -1e-10


def test_what_is_no_kernel():
    with pytest.raises(ntkit.NtkitError, match="finite and >= 0"):
        -1 * Linear()
    with pytest.raises(TypeError):
        Linear() + 1
    with pytest.raises(ntkit.NtkitError, match=r"sample\(s\) \[1\]"):
        Linear().normalized()(torch.tensor([[1.0], [0.0]]))
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    with pytest.raises(ntkit.NtkitError, match="same outputs="):
        (ntkit.EmpiricalNTK(model) + ntkit.EmpiricalNTK(model, outputs="full"))(X)


def test_parameters_and_clones_share_the_model():
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    k = 2.0 * ntkit.EmpiricalNTK(model) + Linear()
    assert k.get_params()["first__kernel__outputs"] == "mean"
    copy = clone(k)
    assert copy is not k
    assert copy.first.kernel.model is model
    torch.testing.assert_close(copy(X), k(X))
    before = k(X)
    copy.set_params(first__kernel__outputs="trace", first__factor=1.0)
    torch.testing.assert_close(copy(X), before)
    torch.testing.assert_close(k(X), before)
    assert k.first.kernel.outputs == "mean"
    with pytest.raises(ntkit.NtkitError, match="no parameter 'sigma'"):
        k.set_params(sigma=1)
