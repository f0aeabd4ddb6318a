"""What a user may give by mistake, or by another road: right numbers or one clear refusal."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import RBF

import ntkit
from ntkit.machine.kernels import ReLUKernel

DRAW = np.random.default_rng(0)
X, Q = DRAW.normal(size=(20, 3)), DRAW.normal(size=(5, 3))
Y = np.sin(X[:, 0])
MACHINES = (ntkit.KernelRidge, ntkit.GaussianProcess, ntkit.GradientFlow)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_whole_numbers_do_not_overflow_in_limits(dtype):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 1)
    )
    images = torch.randint(0, 256, (4, 1, 4, 4)).to(dtype)
    limit = ntkit.infinite_width(net.double(), torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    assert torch.equal(limit.ntk(images), limit.ntk(images.double()))
    assert torch.equal(limit.nngp.diag(images), limit.nngp.diag(images.double()))
    vectors = images.flatten(1)
    assert torch.equal(ReLUKernel()(vectors), ReLUKernel()(vectors.double()))


def skew(a, b):
    return a @ np.triu(np.ones((3, 3))) @ b.T + 100 * RBF()(a, b)


@pytest.mark.parametrize("machine", [*MACHINES, ntkit.KernelClassifier])
def test_a_function_that_is_not_symmetric_is_refused(machine):
    settings = {"alpha": 1e3} if machine in (ntkit.KernelRidge, ntkit.KernelClassifier) else {}
    with pytest.raises(ntkit.NtkitError, match="not symmetric"):
        machine(skew, **settings).fit(X, Y > 0 if machine is ntkit.KernelClassifier else Y)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (ntkit.KernelRidge(alpha=None), "alpha"),
        (ntkit.KernelRidge(alpha=[1.0, 2.0]), "alpha"),
        (ntkit.GaussianProcess(noise=None), "noise"),
        (ntkit.KernelRidge(RBF), "kernel="),
        (ntkit.GaussianProcess(ReLUKernel(), optimize=("depth",)), "depth"),
        (ntkit.GradientFlow(t="long"), "t='long'"),
        (ntkit.GradientFlow(loss="cross_entropy", t=1.0), "probabilities|in \\[0, 1\\]"),
    ],
)
def test_settings_are_refused_by_name(model, match):
    with pytest.raises(ntkit.NtkitError, match=match):
        model.fit(X, 3 * Y)


def test_penalty_of_a_classifier():
    with pytest.raises(ntkit.NtkitError, match="alpha=None"):
        ntkit.KernelClassifier(alpha=None).fit(X, Y > 0)


def test_one_name_to_optimize_is_a_list_of_one():
    one, listed = (
        ntkit.GaussianProcess(ReLUKernel(), optimize=o).fit(X, Y) for o in ("sigma_w", ["sigma_w"])
    )
    assert one.kernel_.sigma_w == listed.kernel_.sigma_w


def test_flow_takes_times_and_starts_that_are_some():
    flow = ntkit.GradientFlow().fit(X, Y)
    for t in (-3.0, float("nan"), [], "x"):
        with pytest.raises(ntkit.NtkitError, match="expected a time"):
            flow.predict(Q, t=t)
        with pytest.raises(ntkit.NtkitError, match="expected a time"):
            flow.learning_curve(t)
    start = torch.zeros(20, requires_grad=True)
    flow = ntkit.GradientFlow(t=2.0).fit(X, Y, start)
    assert np.isfinite(flow.predict(Q, f0=torch.ones(5, requires_grad=True))).all()
    for wrong in (np.zeros(3), np.full(5, np.nan)):
        with pytest.raises(ntkit.NtkitError, match="f0 has shape"):
            flow.predict(Q, f0=wrong)
