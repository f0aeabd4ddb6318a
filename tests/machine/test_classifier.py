"""Classification against scikit-learn's logistic regression, and its optimum against its gradient."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

import ntkit
from ntkit.machine.kernels import ReLUKernel
from ntkit.machine.solving import newton
from ntkit.machine.solving.losses import LOSSES, loss_of

X, Y = load_iris(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)


def linear(a, b):
    return a @ b.T


def gradient(model, y, gram, weights=None):
    """The gradient of the objective in c, by autograd."""
    c = torch.as_tensor(model.dual_coef_).requires_grad_()
    flat = gram.transpose(1, 2).reshape(c.numel(), -1) if gram.ndim == 4 else gram
    f = (flat @ c.reshape(flat.shape[0], -1)).reshape(c.shape)
    each = LOSSES["cross_entropy"].value(f, y)
    each = each if weights is None else each * torch.as_tensor(weights)
    (each.sum() + model.alpha_ / 2 * (c * f).sum()).backward()
    return c.grad.abs().max()


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("classes", [2, 3])
def test_with_a_linear_kernel_it_is_logistic_regression(solver, classes):
    x, y = (X, Y) if classes == 3 else (X[Y > 0], Y[Y > 0])
    ours = ntkit.KernelClassifier(linear, "cross_entropy", alpha=0.5, solver=solver, max_iter=1000).fit(x, y)
    theirs = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10000).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x))
    assert ours.decision_function(x).shape == ((len(x),) if classes == 2 else (len(x), 3))


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("dense", [True, False])
def test_the_gradient_is_zero_at_the_optimum(solver, dense, monkeypatch):
    monkeypatch.setattr(newton, "DENSE", 10**4 if dense else 0)
    weights = np.random.default_rng(0).uniform(0, 2, size=150)
    for x, y, target in ((X, Y, np.eye(3)[Y]), (X[Y > 0], Y[Y > 0], (Y[Y > 0] == 2)[:, None].astype(float))):
        model = ntkit.KernelClassifier(
            ReLUKernel(), "cross_entropy", alpha=0.3, solver=solver, tol=1e-10
        ).fit(x, y, weights[: len(x)])
        found = gradient(model, torch.as_tensor(target), model.kernel_(x), weights[: len(x)])
        assert found < 1e-6 and model.gradient_norm_ < 1e-8


@pytest.mark.parametrize("outputs", ["full", "diagonal"])
@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_kernels_with_values_for_outputs(outputs, solver):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    kernel = ntkit.EmpiricalNTK(net, outputs=outputs)
    x, y = X[::3], Y[::3]
    model = ntkit.KernelClassifier(kernel, "cross_entropy", alpha=0.3, solver=solver, tol=1e-9).fit(x, y)
    if outputs == "full":
        assert gradient(model, torch.eye(3).double()[y], kernel(x)) < 1e-6
        features = kernel.features(x).numpy()  # the same machine, as a linear one on the Jacobian
        w = np.einsum("nop,no->p", features, model.dual_coef_)
        np.testing.assert_allclose(model.decision_function(x), features @ w, atol=1e-9)
    assert model.score(X, Y) > 0.9 and model.gradient_norm_ < 1e-6
    with pytest.raises(ntkit.NtkitError, match="values for 3 outputs, there are 2 classes"):
        model.fit(x[y > 0], y[y > 0])


@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_kernels_that_are_never_formed(outputs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    kernel = ntkit.EmpiricalNTK(net, outputs=outputs)
    settings = {"loss": "cross_entropy", "alpha": 0.3}
    formed = ntkit.KernelClassifier(kernel, **settings).fit(X[::3], Y[::3])
    free = ntkit.KernelClassifier(kernel, memory=1000, **settings).fit(X[::3], Y[::3])
    assert "on products" in free.solver_reason_ and "on products" not in formed.solver_reason_
    np.testing.assert_allclose(free.decision_function(X), formed.decision_function(X), atol=1e-6)
    with pytest.raises(ntkit.NtkitError, match="needs the kernel matrix"):
        ntkit.KernelClassifier(kernel, solver="lbfgs", memory=1000, **settings).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="early_stopping needs the kernel"):
        ntkit.KernelClassifier(kernel, early_stopping=True, memory=1000).fit(X, Y)


def test_squared_loss_is_ridge_on_one_hot_targets():
    model = ntkit.KernelClassifier(loss="squared", alpha=0.1).fit(X, Y)
    ridge = ntkit.KernelRidge(alpha=0.1).fit(X, np.eye(3)[Y])
    np.testing.assert_allclose(model.decision_function(X), ridge.predict(X))
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p >= 0).all() and model.score(X, Y) > 0.95
    two = ntkit.KernelClassifier(loss="squared", alpha="loo").fit(X[Y > 0], Y[Y > 0])
    assert two.predict_proba(X[:2]).shape == (2, 2) and two.alpha_ > 0
    full = ntkit.EmpiricalNTK(nn.Linear(4, 3).double(), outputs="full")
    assert ntkit.KernelClassifier(full, loss="squared").fit(X, Y).n_iter_ <= 3


def test_early_stopping():
    rng = np.random.default_rng(0)
    y = np.where(rng.random(150) < 0.2, rng.integers(0, 3, 150), Y)
    model = ntkit.KernelClassifier(early_stopping=True, validation_fraction=0.3).fit(X, y)
    assert 0 < model.t_ < np.inf and model.solver_ == "flow"
    assert model.score(X, Y) > 0.9
    with pytest.raises(ntkit.NtkitError, match="no sample weights"):
        ntkit.KernelClassifier(early_stopping=True).fit(X, y, np.ones(150))


def test_losses_of_ones_own():
    def cross_entropy(f, y):
        return -(y * torch.log_softmax(f, 1)).sum(1)

    own = loss_of(cross_entropy)
    f, y = torch.randn(5, 3).double(), torch.eye(3).double()[[0, 1, 2, 0, 1]]
    for part in ("value", "gradient", "hessian"):
        expected = getattr(LOSSES["cross_entropy"], part)(f, y)
        torch.testing.assert_close(getattr(own, part)(f, y), expected)
    a, b = (ntkit.KernelClassifier(loss=loss).fit(X, Y) for loss in (cross_entropy, "cross_entropy"))
    np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), atol=1e-6)
    with pytest.raises(ntkit.NtkitError, match="give probabilities"):
        a.predict_proba(X)


def test_one_class_and_refusals():
    one = ntkit.KernelClassifier().fit(X, np.full(150, "a"))
    assert set(one.predict(X)) == {"a"} and (one.predict_proba(X) == 1).all()
    for alpha in (0, -1, "gcv", np.inf):
        with pytest.raises(ntkit.NtkitError, match="expected a number > 0"):
            ntkit.KernelClassifier(loss="cross_entropy", alpha=alpha).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="solver='sgd'"):
        ntkit.KernelClassifier(solver="sgd").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="loss='hinge'"):
        ntkit.KernelClassifier(loss="hinge").fit(X, Y)
    with pytest.warns(ConvergenceWarning, match="was not reached"):
        ntkit.KernelClassifier(loss="cross_entropy", max_iter=1, alpha=1e-3).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ntkit.KernelClassifier(loss="cross_entropy", alpha=1e-4).fit(X, Y)
