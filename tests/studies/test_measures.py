"""What the studies measure with, against independent ways to it."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

import ntkit
from ntkit.studies import feature_risk, nngp_posterior, path_kernel, plane, still_weights
from ntkit.studies.training import LOSSES, loss_of, optimizer_of


@pytest.mark.parametrize("bound", [1e-2, 0.1, 10.0])
def test_bounded_least_squares_is_that_of_scipy(bound):
    draw = np.random.default_rng(1)
    z, y = draw.normal(size=(60, 12)), draw.normal(size=60)
    exact = lsq_linear(z, y, (-bound, bound), tol=1e-14).x
    found = feature_risk.bounded(z, y, bound)
    assert np.abs(found).max() <= bound
    assert np.abs(found - exact).max() < 1e-6 * bound


def test_the_target_of_the_risk_is_the_mean_over_features_of_bounded_coefficients():
    goal = feature_risk.target(3, seed=0, noise=0.1)
    draw = np.random.default_rng(2)
    x, m = draw.normal(size=(20, 3)), 100_000
    w, b = draw.normal(size=(m, 3)) / feature_risk.SCALE, draw.uniform(0, 2 * np.pi, m)
    theta = 2**0.5 * np.cos(goal.centers @ w.T + b).T @ goal.weights  # over the density
    assert np.abs(theta).max() <= goal.bound
    drawn = (2**0.5 * np.cos(x @ w.T + b) * theta).mean(1)
    assert np.abs(drawn - goal(x)).max() < 5 * goal.bound * 2**0.5 / m**0.5


def test_the_boundary_of_a_circle_is_its_radius():
    radii = plane.boundary(lambda points: plane.array(points.norm(dim=1) - 0.7512))
    assert np.abs(radii - 0.7512).max() < 1e-9
    nowhere = plane.boundary(lambda points: np.ones(len(points)))
    assert np.abs(nowhere - plane.SIDE).max() < 1e-9


def test_the_svm_on_a_linear_network_is_the_linear_one():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=draw, dtype=torch.float64)
    x = x[x[:, 0].abs() > 0.3]
    labels = np.sign(plane.array(x[:, 0]))
    machine = plane.decision(torch.nn.Linear(2, 1).double(), x, labels)
    points = torch.tensor([[1.0, 0.1], [-1.0, 0.1], [0.5, -0.4]], dtype=torch.float64)
    assert (np.sign(machine(points)) == [1, -1, 1]).all()


def test_the_distance_of_weights_is_an_operator_norm_over_the_root_of_the_inputs():
    start = torch.zeros(3, 4)
    assert still_weights._distance(
        torch.diag(torch.tensor([3.0, 1.0, 2.0, 0.0]))[:3], start
    ) == pytest.approx(1.5)


def test_standard_errors_of_gaussian_draws_are_about_one():
    draw = np.random.default_rng(3)
    root = draw.normal(size=(6, 6))
    found = [
        nngp_posterior._standard_errors(draw.normal(size=(50, 6)) @ root.T, root @ root.T) for _ in range(300)
    ]
    assert np.mean(np.square(found)) == pytest.approx(1, abs=0.15)


def test_theorem_1_of_a_linear_network_is_that_of_the_closed_form(monkeypatch):
    config = path_kernel.Config(samples=6, queries=3, time=2.0, flow_steps=40)
    draw = torch.Generator().manual_seed(4)
    x, q = (torch.randn(n, 2, generator=draw, dtype=torch.float64) for n in (6, 3))
    y = torch.randn(6, 1, generator=draw, dtype=torch.float64)
    model = torch.nn.Linear(2, 1, bias=False).double()
    start = model.weight.detach().clone()
    monkeypatch.setattr(path_kernel, "_network", lambda config: model)
    found = path_kernel.Terms(*path_kernel._flow(config, x, y, q))
    assert torch.allclose(found.kernel, 2.0 * q @ x.T)
    decay = torch.linalg.matrix_exp(-2.0 * x.T @ x / 6)
    best = torch.linalg.lstsq(x, y).solution
    end = q @ (best + decay @ (start.T - best))
    assert (found.end - end[:, 0]).abs().max() < 1e-6 and found.residual < 1e-6


@pytest.mark.parametrize(("targets", "names"), LOSSES.items())
def test_losses_are_means_over_samples(targets, names):
    f = torch.randn(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 1, 0]) if targets == "classes" else (f > 0).to(f)
    for name in names:
        loss = loss_of(name)
        each = torch.stack([loss(f[i : i + 1], y[i : i + 1]) for i in range(5)])
        assert torch.allclose(loss(f, y), each.mean())


def test_every_optimizer_that_is_let_in_makes_a_step_from_gradients_alone():
    usable = [name for name in dir(torch.optim) if _accepted(name)]
    assert {"SGD", "Adam", "RMSprop"} <= set(usable)
    for name in usable:
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = optimizer_of(name, [weight], 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()
        assert float(weight.detach().square().sum()) < 4, name


def _accepted(name):
    from ntkit.studies.training import _check_optimizer

    try:
        _check_optimizer("optimizer", name)
    except ntkit.NtkitError:
        return False
    return True
