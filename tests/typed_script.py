"""What a user may write, each result with its type shown: read by pyright in test_types.py, never run."""

from typing import reveal_type

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ntkit
from ntkit.finite.factors import Factor
from ntkit.finite.rules import Use
from ntkit.infinite.duals.homogeneous import Homogeneous
from ntkit.training.optimizers.registry import Coefficients, Made

x, y = torch.randn(6, 3), torch.randn(6, 2)
X, Y = np.zeros((6, 3)), np.zeros(6)
model = nn.Sequential(nn.Linear(3, 2))
reveal_type(ntkit.__version__)

k = ntkit.EmpiricalNTK(model)
reveal_type(k)
reveal_type(k(x))
reveal_type(k(x, x, per_parameter=True))
reveal_type(k.diag(x))
reveal_type(k.features(x))
reveal_type(k.operator(x))
reveal_type(k.operator(x) @ torch.ones(6, 1))
reveal_type(k.operator(x).to_dense())
reveal_type(k.operator(x).to_scipy())
reveal_type(k.plan(x))
reveal_type(k.plan(x).peak)
reveal_type(k.explain(x))
reveal_type(k.explain(x).rows)
reveal_type(k.normalized())
reveal_type(k.compose(torch.relu))
reveal_type(k + k)
reveal_type(k * k)
reveal_type(2.0 * k)
c = ntkit.ConjugateKernel(model)
reveal_type(c)
reveal_type(c(x))
reveal_type(c.diag(x))
reveal_type(c.features(x))

limit = ntkit.infinite_width(model, x)
reveal_type(limit)
reveal_type(limit.nngp)
reveal_type(limit.ntk)
reveal_type(limit.ntk(x))
reveal_type(limit.nngp.diag(x))
reveal_type(limit.program)
reveal_type(limit.layers)
reveal_type(limit.layers["h1"].nngp(x))
reveal_type(limit.error)
reveal_type(limit.kernel("ntk", "h1"))
reveal_type(limit.expect(lambda g1: g1, x))
reveal_type(limit.expect(lambda g1: g1, x).value)
reveal_type(limit.coordinates("g1", x))
reveal_type(limit.coordinates("g1", x).values)
reveal_type(limit.coordinates("g1", x).plot())
reveal_type(ntkit.TensorProgram("y = v @ x", {"x": 3}))
sampled = ntkit.monte_carlo(model, 2, x)
reveal_type(sampled)
reveal_type(sampled.nngp)
reveal_type(sampled.ntk)
reveal_type(sampled.nngp_error)
reveal_type(sampled.ntk_error)
reveal_type(sampled.samples)
phi = ntkit.dual("relu")
reveal_type(phi)
reveal_type(phi(0.5, 1.0, 1.0))
reveal_type(phi.hermite(3))
reveal_type(phi.error)
reveal_type(phi.how)

reveal_type(ntkit.linearize(model))
reveal_type(ntkit.linearize(model)(x))
reveal_type(ntkit.taylor(model, 2))
reveal_type(ntkit.taylor(model, 2)(x))
reveal_type(ntkit.taylor(model, 2).network)
reveal_type(ntkit.ntk_parametrize(model, seed=0))

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = nn.functional.mse_loss
with ntkit.record("run", model, optimizer, train=(x, y)) as run:
    reveal_type(run)
    run.batch(range(3))
    run.batch(torch.arange(3))
    reveal_type(run.steps)
    reveal_type(run.stats)
    reveal_type(run.folder)
a = ntkit.account("run", model, loss, train=(x, y), queries=x)
reveal_type(a)
reveal_type(a.contributions)
reveal_type(a.by_step)
reveal_type(a.initial)
reveal_type(a.decay)
reveal_type(a.start)
reveal_type(a.buffers)
reveal_type(a.rounding)
reveal_type(a.residual)
reveal_type(a.prediction)
reveal_type(a.tol)
reveal_type(a.nodes)
reveal_type(a.converged)
reveal_type(a.steps)
reveal_type(a.rule)
reveal_type(a.spent)
reveal_type(a.relative_residual)
reveal_type(a.top(0))
reveal_type(a.top(0)[0].index)
reveal_type(a.by_class(torch.zeros(6)))
reveal_type(a.over_time(0))
reveal_type(a.self_influence())
reveal_type(a.margin(0, 1))
reveal_type(a.summary())
reveal_type(a.save("a"))
reveal_type(ntkit.Account.load("a"))
reveal_type(a.to_xarray())
with ntkit.watch(model, optimizer, loss, (x, y), x) as watched:
    reveal_type(watched)
    watched.batch([0, 1])
reveal_type(watched.account)
path = ntkit.PathKernel("run", model)
reveal_type(path)
reveal_type(path(x))
reveal_type(path.diag(x))
loader = ntkit.indexed(DataLoader(TensorDataset(x, y)))
reveal_type(loader)
for index, _ in loader:
    reveal_type(index)

ridge = ntkit.KernelRidge().fit(X, Y)
reveal_type(ridge)
reveal_type(ridge.predict(X))
reveal_type(ridge.leave_one_out())
reveal_type(ridge.gcv())
reveal_type(ridge.path([1.0]))
reveal_type(ridge.path([1.0]).predict(X))
reveal_type(ridge.path([1.0]).loo)
reveal_type(ridge.dual_coef_)
reveal_type(ridge.alpha_)
reveal_type(ridge.solver_)
reveal_type(ridge.solver_reason_)
reveal_type(ridge.residual_)
reveal_type(ridge.n_iter_)
reveal_type(ridge.jitter_)
reveal_type(ridge.condition_)
reveal_type(ridge.min_eigenvalue_)
reveal_type(ridge.X_fit_)
reveal_type(ridge.kernel_)
gp = ntkit.GaussianProcess().fit(X, Y)
reveal_type(gp)
reveal_type(gp.predict(X))
reveal_type(gp.predict(X, return_std=True))
reveal_type(gp.predict(X, return_cov=True))
reveal_type(gp.predict(X, True))
reveal_type(gp.sample_y(X))
reveal_type(gp.noise_)
reveal_type(gp.kernel_)
reveal_type(gp.dual_coef_)
reveal_type(gp.log_marginal_likelihood_)
reveal_type(gp.condition_)
flow = ntkit.GradientFlow(t=[1.0, 2.0]).fit(X, Y)
reveal_type(flow)
reveal_type(flow.predict(X))
reveal_type(flow.predict(X, return_std=True))
reveal_type(flow.predict(X, return_cov=True, t=1.0))
reveal_type(flow.learning_curve(1.0))
reveal_type(flow.learning_curve(1.0).loss)
reveal_type(flow.t_)
reveal_type(flow.dual_coef_)
reveal_type(flow.max_learning_rate_)
reveal_type(flow.min_eigenvalue_)
reveal_type(flow.condition_)
classifier = ntkit.KernelClassifier().fit(X, Y > 0)
reveal_type(classifier)
reveal_type(classifier.predict(X))
reveal_type(classifier.predict_proba(X))
reveal_type(classifier.decision_function(X))
reveal_type(classifier.classes_)
reveal_type(classifier.dual_coef_)
reveal_type(classifier.gradient_norm_)
reveal_type(classifier.n_iter_)
features = ntkit.RandomFeatures("gaussian", 10).fit(X)
reveal_type(features)
reveal_type(features.transform(X))
reveal_type(features.fit_transform(X))
reveal_type(features.error_)
reveal_type(features.error(X))
reveal_type(features.kernel())
reveal_type(features.to_module())

reveal_type(ntkit.register_dual(torch.ops.aten.deg2rad.default))


@ntkit.register_dual(torch.ops.aten.deg2rad.default)
def degrees() -> Homogeneous:
    return Homogeneous(1.0, 1.0)


reveal_type(degrees)


@ntkit.register_rule(torch.ops.aten.rot90.default, "self")
def factor(use: Use) -> Factor | None:
    return None


reveal_type(factor)


@ntkit.register_limit_rule(torch.ops.aten.rot90.default)
def rule(read: object, h: object) -> object:
    return h


reveal_type(rule)


@ntkit.register_optimizer(torch.optim.SGD)
def describe(made: Made) -> Coefficients:
    reveal_type(made.fresh)
    reveal_type(made.weight)
    reveal_type(made.gradient)
    return Coefficients(a=0.1)


reveal_type(describe)
reveal_type(ntkit.report.explain(a, "x.html", labels=y, truth=y, classes=["a"]))
ntkit.report.explain(a, "x.html", labls=y)  # a typo: pyright must say so
reveal_type(ntkit.testing.check_kernel(k, x, x))
reveal_type(ntkit.testing.batches(3))
reveal_type(ntkit.NtkitError("no"))
reveal_type(ntkit.NoRuleError("no"))
reveal_type(ntkit.testing.KernelLawError("no"))
