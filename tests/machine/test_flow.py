"""Gradient flow against its golden values, against descent step by step, against trained networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ntkit
from ntkit.machine.conformal import SpreadWarning
from ntkit.machine.kernels import ReLUKernel

KERNEL = ReLUKernel()
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "predict.npz"))
TIMES = [*GOLDEN["times"], np.inf]
RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(25, 3)), RNG.normal(size=(6, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1)


def table(kind):
    """A kernel of samples that are numbered: training samples 0 to 11, queries from 12 on."""
    tt, qt, qq = (GOLDEN[f"{kind}_{which}"] for which in ("tt", "qt", "qq"))
    whole = np.block([[tt, qt.T], [qt, qq]])
    return lambda a, b: whole[np.ix_(a[:, 0].astype(int), b[:, 0].astype(int))]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_golden(kind, t):
    flow = ntkit.GradientFlow(table(kind), t, prior=table("nngp"))
    train, queries = np.arange(12.0)[:, None], np.arange(12.0, 18.0)[:, None]
    flow.fit(train, GOLDEN["y_train"])
    name = "inf" if t == np.inf else str(t)
    mean, cov = flow.predict(queries, return_cov=True)
    np.testing.assert_allclose(mean, GOLDEN[f"mean_{kind}_t{name}"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(cov[..., 0], GOLDEN[f"cov_{kind}_t{name}"], rtol=0, atol=1e-10)
    std = flow.predict(queries, return_std=True)[1]
    np.testing.assert_allclose(std[:, 0] ** 2, cov[..., 0].diagonal(), rtol=0, atol=1e-10)
    if kind == "ntk":
        np.testing.assert_allclose(mean, GOLDEN[f"flow_test_t{name}"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(flow.predict(train), GOLDEN[f"flow_train_t{name}"], rtol=0, atol=1e-10)


def test_the_spread_is_told_to_be_no_interval():
    flow = ntkit.GradientFlow(ReLUKernel(), 1.0).fit(X, Y)
    with pytest.warns(SpreadWarning, match="no interval"):
        flow.predict(Q, return_std=True)
    flow.predict(Q)
    flow.predict_interval(Q)


def test_ridge_flow_and_process_meet_at_their_ends():
    ridge = ntkit.KernelRidge(KERNEL, alpha=1e-12, normalize_y=False).fit(X, Y).predict(Q)
    none = ntkit.KernelRidge(KERNEL, alpha=0, normalize_y=False).fit(X, Y).predict(Q)
    flow = ntkit.GradientFlow(KERNEL).fit(X, Y).predict(Q)
    process = ntkit.GaussianProcess(KERNEL, noise=0, normalize_y=False).fit(X, Y).predict(Q)
    for other in (none, flow, process):
        np.testing.assert_allclose(ridge, other, rtol=1e-8, atol=1e-8)
    late = ntkit.GradientFlow(KERNEL, t=1e9).fit(X, Y).predict(Q)
    np.testing.assert_allclose(late, flow, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def by_steps():
    """Function values after 10^5 explicit steps, at two learning rates, from a start that is not zero."""
    kernel = KERNEL
    gram, cross = kernel(X).numpy(), kernel(Q, X).numpy()
    start, start_q = np.cos(X), np.cos(Q)
    t = 3 * 25 / np.linalg.eigvalsh(gram)[-1]
    found = {}
    for steps in (10**5, 5 * 10**4):
        f, q, rate = start[:, :2].copy(), start_q[:, :2].copy(), t / steps
        for _ in range(steps):
            residual = rate * (Y - f) / 25
            f, q = f + gram @ residual, q + cross @ residual
        found[steps] = q
    return t, start[:, :2], start_q[:, :2], found


def test_flow_is_the_limit_of_small_steps(by_steps):
    t, start, start_q, found = by_steps
    flow = ntkit.GradientFlow(KERNEL, t=t).fit(X, Y, start)
    exact = flow.predict(Q, f0=start_q)
    once, twice = found[10**5], found[5 * 10**4]
    assert np.abs(once - exact).max() < 1e-4  # the error of Euler's method, of first order in the step
    np.testing.assert_allclose(2 * once - twice, exact, rtol=0, atol=1e-8)  # less its leading term


def test_short_flow_is_small_steps_themselves():
    gram = KERNEL(X).numpy()
    t = 0.04 * 25 / np.linalg.eigvalsh(gram)[-1]
    f = np.zeros_like(Y)
    for _ in range(10**5):
        f += t / 10**5 * gram @ (Y - f) / 25
    np.testing.assert_allclose(ntkit.GradientFlow(KERNEL, t=t).fit(X, Y).predict(X), f, rtol=0, atol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_discrete_steps_are_torchs(by_steps, momentum):
    t, start, start_q, found = by_steps
    if momentum == 0:
        discrete = ntkit.GradientFlow(KERNEL, t=t, learning_rate=t / 10**5).fit(X, Y, start)
        np.testing.assert_allclose(discrete.predict(Q, f0=start_q), found[10**5], rtol=0, atol=1e-8)
    features = torch.linalg.cholesky(ReLUKernel()(np.concatenate([X, Q])))
    w = torch.zeros(31, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=momentum)
    for _ in range(200):
        optimizer.zero_grad()
        ((features[:25] @ w - torch.as_tensor(Y)).square().sum() / 50).backward()
        optimizer.step()
    flow = ntkit.GradientFlow(KERNEL, t=10.0, learning_rate=0.05, momentum=momentum).fit(X, Y)
    np.testing.assert_allclose(flow.predict(Q), (features[25:] @ w).detach().numpy(), atol=1e-8)


def test_the_largest_stable_learning_rate():
    largest = ntkit.GradientFlow(KERNEL).fit(X, Y).max_learning_rate_
    for momentum in (0.0, 0.9):
        limit = ntkit.GradientFlow(KERNEL, momentum=momentum).fit(X, Y).max_learning_rate_
        assert limit == pytest.approx(largest * (1 + momentum))
        near = ntkit.GradientFlow(
            KERNEL, t=limit * 0.999 * 4000, learning_rate=limit * 0.999, momentum=momentum
        )
        assert np.abs(near.fit(X, Y).predict(X) - Y).max() < 1
    with pytest.raises(ntkit.NtkitError, match="largest stable one"):
        ntkit.GradientFlow(KERNEL, t=1.0, learning_rate=largest * 1.01).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="whole number of steps"):
        ntkit.GradientFlow(KERNEL, t=1.0, learning_rate=0.3).fit(X, Y)


@pytest.mark.parametrize("t", [0.7, 4.0, np.inf])
def test_mean_and_covariance_are_those_of_trained_networks(t):
    """500 networks of width 2048, each linearized and trained in its own tangent kernel."""
    sigma_w, sigma_b, width, count = 2**0.5, 0.3, 2048, 500
    x, q = torch.as_tensor(X[:8]), torch.as_tensor(Q[:3])
    y, both = torch.as_tensor(Y[:8, :1]), torch.cat([torch.as_tensor(X[:8]), torch.as_tensor(Q[:3])])
    torch.manual_seed(1)
    finals = []
    for _ in range(count):
        w, b, v, c = (torch.randn(s, dtype=torch.float64) for s in ((width, 3), (width,), (width,), ()))
        g = sigma_w / 3**0.5 * both @ w.T + sigma_b * b
        h, slope = F.relu(g), (g > 0).double() * v * sigma_w / width**0.5
        f0 = sigma_w / width**0.5 * h @ v + sigma_b * c
        k = sigma_w**2 / width * h @ h.T + sigma_b**2
        k = k + (slope @ slope.T) * (sigma_w**2 / 3 * both @ both.T + sigma_b**2)
        values, vectors = torch.linalg.eigh(k[:8, :8])
        g_t = 1 / values if t == np.inf else -torch.expm1(-values * t / 8) / values
        rest = y - f0[:8, None]
        finals.append(f0[8:] + (k[8:, :8] @ (vectors @ (g_t[:, None] * (vectors.T @ rest))))[:, 0])
    finals = torch.stack(finals).numpy()
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    limit = ntkit.infinite_width(model, x[:1], sigma_w, sigma_b)
    flow = ntkit.GradientFlow(limit, t).fit(x, y[:, 0])
    mean, cov = flow.predict(q, return_cov=True)
    std = np.sqrt(cov.diagonal())
    assert (np.abs(finals.mean(0) - mean) <= 3 * std / count**0.5).all()
    error = np.sqrt((np.outer(std, std) ** 2 + cov**2) / count)
    assert (np.abs(np.cov(finals.T) - cov) <= 3 * error).all()


def test_several_times_and_the_learning_curve():
    times = [0.0, 1.0, 30.0, np.inf]
    flow = ntkit.GradientFlow(KERNEL, t=times).fit(X, Y)
    one = np.stack([ntkit.GradientFlow(KERNEL, t=t).fit(X, Y).predict(Q) for t in times])
    np.testing.assert_allclose(flow.predict(Q), one, rtol=0, atol=1e-12)
    np.testing.assert_allclose(flow.predict(Q, t=1.0), one[1], rtol=0, atol=1e-12)
    mean, std = flow.predict(Q, return_std=True)
    assert mean.shape == std.shape == (4, 6, 2) and (std > 0).all()
    assert flow.predict(Q, return_cov=True)[1].shape == (4, 6, 6, 2)
    curve = flow.learning_curve(times)
    np.testing.assert_allclose(curve.loss, ((flow.predict(X) - Y) ** 2).sum((1, 2)) / 50, atol=1e-10)
    np.testing.assert_allclose(curve.left[1], np.exp(-curve.rates))
    assert (np.diff(curve.rates) <= 0).all() and curve.left[-1].max() < 1e-12


def test_the_limit_supplies_both_kernels():
    model = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    limit = ntkit.infinite_width(model, torch.zeros(1, 3).double())
    expected = ntkit.GradientFlow(limit.ntk, 2.0, prior=limit.nngp).fit(X, Y).predict(Q, return_std=True)[1]
    for kernel in (limit, limit.ntk):
        found = ntkit.GradientFlow(kernel, 2.0).fit(X, Y).predict(Q, return_std=True)[1]
        np.testing.assert_allclose(found, expected)
    with pytest.raises(ntkit.NtkitError, match="covariance of f_0"):
        ntkit.GradientFlow(limit.nngp).fit(X, Y).predict(Q, return_std=True)


@pytest.mark.parametrize("way", ["validation", "loo"])
def test_early_stopping(way):
    noisy = Y[:, 0] + RNG.normal(size=25)
    flow = ntkit.GradientFlow(KERNEL, early_stopping=way, validation_fraction=0.3).fit(X, noisy)
    assert 0 < flow.t_ < np.inf
    i = int(np.argmin(flow.stopping_errors_))
    assert flow.t_ == flow.stopping_times_[i]
    if way == "loo":
        refits = []
        for j in range(25):
            rest = np.arange(25) != j
            one = ntkit.GradientFlow(flow.kernel_, flow.t_).fit(X[rest], noisy[rest])
            refits.append((one.predict(X[j : j + 1])[0] - noisy[j]) ** 2 / 2)
        np.testing.assert_allclose(flow.stopping_errors_[i], np.mean(refits), rtol=1e-8)
    truth = np.sin(Q[:, 0])
    late = ntkit.GradientFlow(KERNEL).fit(X, noisy).predict(Q)
    assert ((flow.predict(Q) - truth) ** 2).mean() < ((late - truth) ** 2).mean()


def test_other_losses_by_the_solver():
    def squared(f, y):
        return ((f - y) ** 2).sum(1) / 2

    times = [0.5, 5.0]
    exact = ntkit.GradientFlow(KERNEL, t=times).fit(X, Y).predict(Q)
    found = ntkit.GradientFlow(KERNEL, t=times, loss=squared).fit(X, Y).predict(Q)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    p = np.eye(2)[(Y[:, 0] > 0).astype(int)]
    flow = ntkit.GradientFlow(KERNEL, t=times, loss="cross_entropy").fit(X, p)
    steps = ntkit.GradientFlow(KERNEL, t=times, loss="cross_entropy", learning_rate=5e-4).fit(X, p)
    np.testing.assert_allclose(flow.predict(Q), steps.predict(Q), atol=5e-3)
    assert (flow.predict(X)[1].argmax(1) == p.argmax(1)).mean() > 0.9
    robust = ntkit.GradientFlow(KERNEL, t=3.0, loss="huber").fit(X, Y[:, 0] + 100 * (np.arange(25) == 3))
    assert np.abs(robust.predict(X)).max() < 10
    with pytest.raises(ntkit.NtkitError, match="need not converge"):
        ntkit.GradientFlow(KERNEL, loss="huber").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="closed form"):
        robust.learning_curve([1.0])
    with pytest.raises(ntkit.NtkitError, match="one number for each sample"):
        ntkit.GradientFlow(KERNEL, t=1.0, loss=lambda f, y: f - y).fit(X, Y)


def test_a_large_problem_goes_explicitly():
    x = RNG.normal(size=(600, 2))
    y = np.stack([x[:, 0] > 0, x[:, 0] <= 0], 1).astype(float)
    flow = ntkit.GradientFlow(KERNEL, t=2.0, loss="cross_entropy").fit(x, y)
    assert (flow.predict(x).argmax(1) == y.argmax(1)).mean() > 0.95


def test_refusals():
    with pytest.raises(ntkit.NtkitError, match="not positive semi-definite"):
        ntkit.GradientFlow("precomputed").fit(-np.eye(25), Y)
    with pytest.raises(ntkit.NtkitError, match="f0 has shape"):
        ntkit.GradientFlow(KERNEL).fit(X, Y, Y[:, 0])
    with pytest.raises(ntkit.NtkitError, match="both to fit and to predict"):
        ntkit.GradientFlow(KERNEL).fit(X, Y, Y).predict(Q)
    with pytest.raises(ntkit.NtkitError, match="t=-1"):
        ntkit.GradientFlow(KERNEL, t=-1).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="early_stopping='cv'"):
        ntkit.GradientFlow(KERNEL, early_stopping="cv").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="loss='hinge'"):
        ntkit.GradientFlow(KERNEL, t=1.0, loss="hinge").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="kernel and prior as functions"):
        ntkit.GradientFlow("precomputed").fit(np.eye(25), Y).predict(np.eye(25), return_std=True)
    started = ntkit.GradientFlow(KERNEL).fit(X, Y, Y)
    with pytest.raises(ntkit.NtkitError, match="not an ensemble"):
        started.predict(Q, return_std=True, f0=np.zeros((6, 2)))
