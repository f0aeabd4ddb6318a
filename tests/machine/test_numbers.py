"""The numbers that the library promises, at the sizes that it promises them for."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

import ntkit
from ntkit.compute.cg import conjugate_gradients
from ntkit.compute.matrix import Dense
from ntkit.machine.kernels import ReLUKernel

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scores(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return script("scores")


def test_scores_of_a_table_that_scikit_learn_ships(scores, tmp_path):
    table = next(t for t in scores.halves(False)[0] if t.name == "diabetes")
    found = scores.run([table], ("ntkit ridge", "boosting"), tmp_path)["diabetes"]
    assert (
        found["ntkit ridge"]["R2"] > found["boosting"]["R2"] and 0.9 < found["ntkit ridge"]["coverage"] < 0.99
    )
    assert (
        scores.run([table], ("ntkit ridge", "boosting"), tmp_path)["diabetes"] == found
    )  # kept, not made again


def test_the_bars_of_the_scores_are_missed_by_noise(scores):
    names = ("ntkit", "ntkit, standardized", "SVC", "SVC, grid", "forest")
    good = (0.83, 0.83, 0.81, 0.83, 0.83)
    tables = {
        str(i): {n: {"accuracy": a + 0.001 * i} for n, a in zip(names, good, strict=True)} for i in range(9)
    }
    assert scores.verdict(tables, {}) == []
    tables = {k: row | {"ntkit": {"accuracy": 0.5}} for k, row in tables.items()}
    assert len(scores.verdict(tables, {})) == 4
    right = {"R2": 0.5, "coverage": 0.95, "log density": -0.5}
    tables = {str(i): {n: right for n in ("ntkit process", "ntkit ridge", "process")} for i in range(9)}
    assert scores.verdict({}, tables) == []
    wrong = {"ntkit process": {"R2": 0.1, "coverage": 0.7, "log density": -9.0}}
    assert len(scores.verdict({}, {k: row | wrong for k, row in tables.items()})) == 4
    wide = {"ntkit ridge": right | {"coverage": 1.0}}
    assert len(scores.verdict({}, {k: row | wide for k, row in tables.items()})) == 1


def test_choices_and_the_last_look_are_at_different_tables(scores):
    for classes in (True, False):
        first, second = ([t.name for t in half] for half in scores.halves(classes))
        assert max(first) < min(second) and len(first) - len(second) in (0, 1) and len(second) >= 15


@pytest.mark.slow
@pytest.mark.skipif("NTKIT_DATA_DIR" not in os.environ, reason="needs MNIST: set NTKIT_DATA_DIR")
def test_mnist_with_ten_thousand_digits():
    command = [sys.executable, str(Path(__file__).with_name("mnist_ridge.py"))]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["accuracy"] >= 0.97
    assert found["fit"] < 90 and found["seconds"] < 120
    assert found["peak"] < 6 * 2**30


@pytest.fixture(scope="module")
def large():
    """8000 samples of the default kernel, whose spectrum falls by ten orders of magnitude."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8000, 3))
    return ReLUKernel()(x).numpy(), np.sin(2 * x) + 0.1 * rng.normal(size=x.shape)


@pytest.mark.slow
def test_cholesky_is_no_slower_than_scikit_learns(large):
    gram, y = large
    ours, theirs = [], []
    for _ in range(3):  # in turn
        start = time.perf_counter()
        a = ntkit.KernelRidge("precomputed", alpha=0.1, normalize_y=False).fit(gram, y)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        b = KernelRidge(alpha=0.1, kernel="precomputed").fit(gram, y)
        theirs.append(time.perf_counter() - start)
    np.testing.assert_allclose(a.dual_coef_, b.dual_coef_, rtol=1e-6, atol=1e-6)
    assert np.median(ours) <= np.median(theirs)


@pytest.mark.slow
def test_preconditioning_halves_the_iterations_at_least(large):
    gram, y = large
    alpha = 1e-6 * gram.diagonal().mean()
    model = ntkit.KernelRidge("precomputed", alpha=alpha, solver="cg", normalize_y=False).fit(gram, y)
    residual = y - gram @ model.dual_coef_ - alpha * model.dual_coef_
    assert (np.linalg.norm(residual, axis=0) <= 1e-8 * np.linalg.norm(y, axis=0)).all()
    twice = 2 * model.n_iter_
    plain = conjugate_gradients(Dense(torch.as_tensor(gram)), torch.as_tensor(y), alpha, max_iter=twice)
    assert not plain.converged
