"""Spectra beside numpy, and where exponent, shares and dimension are known."""

import numpy as np
import pytest
from small_runs import classes, mlp

import ntkit
from ntkit.diagnose import spectra, spectrum
from ntkit.machine.kernels import FromFunction

linear = FromFunction(lambda a, b: a @ b.T)


def test_it_is_numpy_s():
    x, y = classes()
    kernel = ntkit.EmpiricalNTK(mlp())
    found = spectrum(kernel, x, y)
    values, vectors = np.linalg.eigh(kernel(x).numpy())
    one = np.eye(3)[y] - np.eye(3)[y].mean(0)
    share = ((vectors.T @ one) ** 2).sum(1)[::-1] / (one**2).sum()
    there = found.eigenvalues > found.floor
    assert np.allclose(found.eigenvalues[there], values[::-1][there], rtol=1e-8)
    assert np.allclose(found.target[there][:20].cumsum(), share[there][:20].cumsum(), atol=1e-8)
    assert np.allclose(found.times[:9], 48 / values[::-1][:9], rtol=1e-8)
    assert found.effective_dimension.value == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-8)
    positive = values.clip(0)
    assert found.dimension(0.5) == pytest.approx((positive / (positive + 0.5)).sum(), rel=1e-8)
    left = (share * np.exp(-2 * found.learned_by / found.times)).sum()
    assert left == pytest.approx(0.1, rel=1e-6)
    assert len(found.table()) == 48


def test_a_power_law_has_its_exponent():
    draw = np.random.default_rng(0)
    rotation = np.linalg.qr(draw.normal(size=(300, 300)))[0]
    root = rotation * np.arange(1, 301) ** -1.0  # eigenvalues i^-2
    found = spectrum(linear, root)
    assert found.decay.value == pytest.approx(2, abs=1e-6)
    assert found.condition == pytest.approx(300**2, rel=1e-6)
    white = spectrum(linear, np.eye(300))
    assert abs(white.decay.value) < 1e-10 and white.effective_dimension.value == pytest.approx(300)


def test_white_targets_have_a_share_of_k_of_n():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(400, 400)), draw.normal(size=(400, 50))
    found = spectrum(linear, x, y)
    for k in (40, 100, 200):
        assert found.share(k) == pytest.approx(k / 400, abs=4 * (2 * k / 400 / 400 / 50) ** 0.5 + 1 / 400)


@pytest.mark.slow
def test_the_interval_of_the_exponent_covers_that_of_more_data():
    """Gaussian data with variances i^-1.5: eigenvalues of 150 drawn samples, against those of 3,000."""
    scale = np.arange(1, 101) ** -0.75

    def drawn(n, seed):
        return np.random.default_rng(seed).normal(size=(n, 100)) * scale

    values = np.linalg.eigvalsh(drawn(3000, 99).T @ drawn(3000, 99))[::-1]
    ranks = (10, 30)
    truth = spectra.exponent(values, ranks)
    found = [spectrum(linear, drawn(150, s)).decay for s in range(10)]
    assert sum(f.high > f.low for f in found) == 10
    finite_n = np.mean([f.value for f in found])  # few samples bend the tail: the interval is of the draw
    assert sum(f.low <= finite_n <= f.high for f in found) >= 8 and abs(finite_n - truth) < 0.5


@pytest.mark.slow
def test_lanczos_gives_the_leading_ones(monkeypatch):
    x, y = classes(60)
    whole = spectrum(mlp(), x, y)
    monkeypatch.setattr(spectra, "ALL", 50)
    found = spectrum(mlp(), x, y, leading=12)
    assert not found.complete and np.allclose(found.eigenvalues, whole.eigenvalues[:12], rtol=1e-8)
    assert found.share(6) == pytest.approx(whole.share(6), rel=1e-8)
    size = whole.effective_dimension.value
    assert found.effective_dimension.low <= size <= found.effective_dimension.high
    assert found.dimension(0.1) >= whole.dimension(0.1) - 1e-9
