"""Kernel-target alignment beside the plain formula, and where its value is known."""

import numpy as np
import pytest
import torch
from small_runs import classes, mlp, recorded

import ntkit
from ntkit.diagnose import alignment
from ntkit.machine.kernels import FromFunction


def plain(k, y):
    h = np.eye(len(k)) - 1 / len(k)
    a, b = h @ k @ h, h @ y @ y.T @ h
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def test_it_is_the_plain_formula_per_class_before_and_after(tmp_path):
    x, y = classes()
    start, model = mlp(), mlp()
    run = recorded(tmp_path / "run", model, (x, y))
    found = alignment(run)
    one = np.eye(3)[y]
    assert found.when == ("before", "after") and found.names == ("all", "0", "1", "2")
    for row, net in zip(found.values, (start, model), strict=True):
        k = ntkit.EmpiricalNTK(net)(x).numpy()
        expected = [plain(k, one), *(plain(k, one[:, [c]]) for c in range(3))]
        assert np.allclose(row, expected, rtol=1e-8)
    assert np.allclose(found.values[-1], alignment(model, x, y).values[0], rtol=1e-10)
    assert found.values[1, 0] > found.values[0, 0] > found.chance[0, 0]
    assert len(found.table()) == 8


def test_chance_is_the_mean_over_all_orders_and_a_random_kernel_has_no_more():
    draw = np.random.default_rng(0)
    features, y = draw.normal(size=(120, 30)), draw.normal(size=(120, 1))
    kernel = FromFunction(lambda a, b: a @ b.T)
    found = alignment(kernel, features, y)
    k = features @ features.T
    orders = [plain(k, y[draw.permutation(120)]) for _ in range(400)]
    error = 4 * np.std(orders) / 400**0.5
    assert found.chance[0, 0] == pytest.approx(np.mean(orders), abs=error)
    assert abs(found.overall.value - found.chance[0, 0]) < 4 * np.std(orders)
    assert found.names == ("all",)


def test_the_targets_own_kernel_is_one_and_white_noise_is_little():
    y = torch.arange(40) % 4
    one = torch.eye(4, dtype=torch.float64)[y]
    linear = FromFunction(lambda a, b: a @ b.T)
    assert alignment(linear, one, y).overall.value == pytest.approx(1, abs=1e-12)
    white = alignment(linear, torch.eye(40, dtype=torch.float64), y)
    assert white.overall.value == pytest.approx(3 / (39**0.5 * 3**0.5), rel=1e-10)  # tr / (|H| |H Y Y^T H|)
    assert white.chance[0, 0] == pytest.approx(white.overall.value, rel=1e-10)
