"""Pictures of kernel machines: they draw the numbers that they are given."""

import numpy as np

import ntkit
from ntkit.report.learning import eigen_learning, leave_one_out_curve, posterior_band

X = np.linspace(-1, 1, 15)[:, None]
Y = np.sin(3 * X[:, 0])


def test_the_eigen_learning_curve():
    curve = ntkit.GradientFlow().fit(X, Y).learning_curve(np.logspace(-2, 4, 20))
    ax = eigen_learning(curve, parts=3)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["1", "2", "3", "loss"]
    np.testing.assert_allclose(lines["2"].get_ydata(), curve.left[:, 1])
    np.testing.assert_allclose(lines["loss"].get_ydata(), curve.loss / (Y**2).sum() * 30)


def test_the_posterior_band(tmp_path):
    q = np.linspace(-2, 2, 30)[:, None]
    gp = ntkit.GaussianProcess(noise=1e-4).fit(X, Y)
    mean, std = gp.predict(q, return_std=True)
    ax = posterior_band(q, mean, std, (X, Y), draws=gp.sample_y(q, 2))
    assert [len(line.get_xdata()) for line in ax.lines] == [30, 30, 30, 15]
    ax.figure.savefig(tmp_path / "band.png")
    assert (tmp_path / "band.png").stat().st_size > 1000


def test_leave_one_out_against_alpha():
    path = ntkit.KernelRidge().fit(X, Y + 0.1 * np.cos(50 * X[:, 0])).path(np.logspace(-5, 2, 20))
    ax = leave_one_out_curve(path)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), path.loo)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), path.loo.min())
    np.testing.assert_allclose(ax.lines[2].get_ydata(), path.gcv)
