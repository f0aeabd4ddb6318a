"""Where a wrong value can be given: the arguments of the public functions, and what they are a kind of."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset
from wrong_setting import (
    PLACE,
    Bare,
    D,
    Mixed,
    Own,
    Parts,
    X,
    account,
    an_account,
    batch,
    classifier,
    data,
    early,
    estimated,
    features,
    flow,
    fresh,
    infinite,
    limit,
    matrix_variance,
    net,
    normed,
    ntk,
    page,
    path_kernel,
    record,
    recorded,
    registered,
    ridge,
    started,
    unannounced,
    watch,
    y,
    zero,
)
from wrong_values import KINDS, Bad, counted, near, sized, values

import ntkit
import ntkit.report
import ntkit.testing
from ntkit.diagnose.definiteness import definiteness, harmonics, operator_norm, smallest_eigenvalue, sphere
from ntkit.report.run_page import explain_run
from ntkit.studies import catalog

OP = torch.ops.aten.rot90.default
Call = Callable[[Any], Any]
FLOATS = [b for b in KINDS["batch"] if b.label != "whole numbers"]  # a limit takes those as numbers
SECOND = [b for b in KINDS["batch"] if b.label != "None"]  # a second batch of None is none
SLOTS: dict[str, tuple[str | list[Bad], Call]] = {
    # kernels of networks
    "EmpiricalNTK model": ("model", lambda v: ntkit.EmpiricalNTK(v)(data()[0])),
    "EmpiricalNTK weights": ("weights", lambda v: ntkit.EmpiricalNTK(net(), v)),
    "EmpiricalNTK outputs": (near("full", None), lambda v: ntkit.EmpiricalNTK(net(), outputs=v)),
    "EmpiricalNTK check": (near("rows", None), lambda v: ntkit.EmpiricalNTK(net(), check=v)),
    "EmpiricalNTK params": ("params", lambda v: ntkit.EmpiricalNTK(net(), params=v)),
    "EmpiricalNTK memory": ("memory", lambda v: ntkit.EmpiricalNTK(net(), memory=v)),
    "EmpiricalNTK select": (
        [
            Bad("typo", lambda: "logit", "Did you mean 'logits'"),
            Bad("a place", lambda: 3, "3"),
            Bad("a list", lambda: ["logits"], "logits"),
            Bad("a number", lambda: 1.5, "1.5"),
        ],
        lambda v: ntkit.EmpiricalNTK(Parts(3, 2).double(), select=v)(data()[0]),
    ),
    "EmpiricalNTK inputs": (
        values("pixels", 5, 1.5, [0, 7]),
        lambda v: ntkit.EmpiricalNTK(net(), inputs=v)(TensorDataset(*data())),
    ),
    "EmpiricalNTK()": ("batch", lambda v: ntk()(v)),
    "EmpiricalNTK(, x2)": (SECOND, lambda v: ntk()(data()[0], v)),
    "EmpiricalNTK.diag": ("batch", lambda v: ntk().diag(v)),
    "EmpiricalNTK.features": ("batch", lambda v: ntk().features(v)),
    "EmpiricalNTK.operator": ("batch", lambda v: ntk().operator(v)),
    "EmpiricalNTK.plan": ("batch", lambda v: ntk().plan(v)),
    "EmpiricalNTK.explain": ("batch", lambda v: ntk().explain(v)),
    "EmpiricalNTK.features project": ("count", lambda v: ntk().features(data()[0], v)),
    "EmpiricalNTK.features seed": ("seed", lambda v: ntk().features(data()[0], 4, seed=v)),
    "EmpiricalNTK.features kind": (near("sparse", None), lambda v: ntk().features(data()[0], 4, kind=v)),
    "Kernel.compose": ("transform", lambda v: ntk().compose(v)),
    "Kernel +": ("summand", lambda v: ntk() + v),
    "+ Kernel": (KINDS["summand"][:3], lambda v: v + ntk()),
    "Kernel *": ("factor", lambda v: ntk() * v),
    "Kernel.normalized()": ("batch", lambda v: ntk().normalized()(v)),
    "Kernel sum()": ("batch", lambda v: (ntk() + 2.0 * ntk())(v)),
    "Kernel.set_params": (
        [
            Bad("typo", lambda: {"output": "full"}, "Did you mean 'outputs'"),
            Bad("qzx", lambda: {"qzx": 1}, "qzx"),
        ],
        lambda v: ntkit.EmpiricalNTK(net()).set_params(**v),
    ),
    "ConjugateKernel model": ("model", lambda v: ntkit.ConjugateKernel(v)(data()[0])),
    "ConjugateKernel weights": ("weights", lambda v: ntkit.ConjugateKernel(net(), v)),
    "ConjugateKernel()": ("batch", lambda v: ntkit.ConjugateKernel(net())(v)),
    "linearize": (KINDS["model"][:7], ntkit.linearize),
    "taylor": (KINDS["model"][:7], ntkit.taylor),
    "taylor order": (values(-1, 1.5, "2", None, True, float("nan"), [2]), lambda v: ntkit.taylor(net(), v)),
    "ntk_parametrize": (KINDS["model"][:7], lambda v: ntkit.ntk_parametrize(v, seed=0)),
    "ntk_parametrize sigma_w": ("sigma", lambda v: ntkit.ntk_parametrize(net(), v, seed=0)),
    "ntk_parametrize sigma_b": ("sigma", lambda v: ntkit.ntk_parametrize(net(), sigma_b=v, seed=0)),
    "ntk_parametrize seed": ("seed", lambda v: ntkit.ntk_parametrize(net(), seed=v)),
    # the limits
    "infinite_width model": ("model", lambda v: ntkit.infinite_width(v, data()[0])),
    "infinite_width example": ("batch", lambda v: ntkit.infinite_width(net(), v)),
    "infinite_width sigma_w": ("sigma", lambda v: infinite(sigma_w=v)),
    "infinite_width sigma_b": ("sigma", lambda v: infinite(sigma_b=v)),
    "infinite_width parameterization": (near("standard", None), lambda v: infinite(parameterization=v)),
    "infinite_width samples": ("count", lambda v: infinite(samples=v)),
    "infinite_width seed": ("seed", lambda v: infinite(seed=v)),
    "infinite_width memory": ("memory", lambda v: infinite(memory=v)),
    "infinite_width compile": (near("auto", None), lambda v: infinite(compile=v)),
    "Limit.ntk()": (FLOATS, lambda v: limit().ntk(v)),
    "Limit.nngp.diag": (FLOATS, lambda v: limit().nngp.diag(v)),
    "Limit.kernel": (near("nngp", None), lambda v: limit().kernel(v)(data()[0])),
    "Limit.kernel line": (
        near("h1")[:1] + values("qzx", 7.5, ["qzx"]),
        lambda v: limit().kernel("ntk", v)(data()[0]),
    ),
    "monte_carlo model": ("model", lambda v: ntkit.monte_carlo(v, 2, data()[0])),
    "monte_carlo samples": ("count", lambda v: estimated(samples=v)),
    "monte_carlo x1": ("batch", lambda v: ntkit.monte_carlo(net(), 2, v)),
    "monte_carlo x2": (SECOND, lambda v: estimated(x2=v)),
    "monte_carlo sigma_w": ("sigma", lambda v: estimated(sigma_w=v)),
    "monte_carlo parameterization": (near("standard", None), lambda v: estimated(parameterization=v)),
    "monte_carlo seed": ("seed", lambda v: estimated(seed=v)),
    "monte_carlo memory": ("memory", lambda v: estimated(memory=v)),
    "dual": (
        [
            Bad("typo", lambda: "rleu", "Did you mean 'relu'"),
            *values(3, None, [1], "qzxqzx"),
            Bad("not by elements", lambda: lambda x: x - x.mean(), "mixes"),
            Bad("another shape", lambda: lambda x: x.sum(), "shape"),
            Bad("no tensor", lambda: lambda x: 3.0, "float"),
            Bad("a class", lambda: nn.ReLU, "ReLU"),
            Bad("slopes", lambda: nn.PReLU(3), "3 slopes"),
        ],
        ntkit.dual,
    ),
    "Dual() cov": ("covariance", lambda v: ntkit.dual("relu")(v, torch.ones(3), torch.ones(3))),
    "Dual() var1": ("covariance", lambda v: ntkit.dual("relu")(torch.zeros(3), v, torch.ones(3))),
    "Dual() beyond": ([Bad("2", lambda: 2.0, "2")], lambda v: ntkit.dual("relu")(v, 1.0, 1.0)),
    "Dual() negative": ([Bad("-1", lambda: -1.0, "-1")], lambda v: ntkit.dual("relu")(0.0, v, 1.0)),
    # registering
    "register_rule": ("op", lambda v: registered(ntkit.register_rule, v, "self")),
    "register_rule names": (
        [Bad("typo", lambda: "wieght", "Did you mean 'weight'"), *values("qzx", 3)],
        lambda v: registered(ntkit.register_rule, torch.ops.aten.linear.default, v),
    ),
    "register_rule function": ("function", lambda v: ntkit.register_rule(OP, "self")(v)),
    "register_limit_rule": ("op", lambda v: registered(ntkit.register_limit_rule, v)),
    "register_limit_rule function": ("function", lambda v: ntkit.register_limit_rule(OP)(v)),
    "register_dual": ("op", lambda v: registered(ntkit.register_dual, v)),
    "register_dual function": ("function", lambda v: ntkit.register_dual(OP)(v)),
    "register_optimizer": (
        [*values(None, 3, "SGD"), *KINDS["op"][-1:]],
        lambda v: registered(ntkit.register_optimizer, v),
    ),
    "register_optimizer function": ("function", lambda v: ntkit.register_optimizer(Own)(v)),
    "indexed": ("loader", ntkit.indexed),
    # training
    "record folder": ("path", lambda v: record(folder=v)),
    "record model": (KINDS["model"][:7], lambda v: record(model=v)),
    "record optimizer": ("optimizer", lambda v: record(optimizer=v)),
    "record train": (
        [b for b in KINDS["train"] if b.label not in {"None", "another shape"}],
        lambda v: record(train=v),
    ),
    "record scaler": (values(3, "scaler", [1]), lambda v: record(scaler=v)),
    "record average": (values(3, "ema", [1]), lambda v: record(average=v)),
    "record every": ("count", lambda v: record(every=v)),
    "record lookahead": ("count", lambda v: record(lookahead=v)),
    "Recording.batch": ("indices", batch),
    "Recording.batch weight": ("number", lambda v: batch(weight=v)),
    "watch model": (KINDS["model"][:7], lambda v: watch(model=v)),
    "watch optimizer": ("optimizer", lambda v: watch(optimizer=v)),
    "watch loss": ("loss", lambda v: watch(loss=v)),
    "watch train": ("train", lambda v: watch(train=v)),
    "watch queries": ("batch", lambda v: watch(queries=v)),
    "watch tol": ("positive", lambda v: watch(tol=v)),
    "watch nodes": (near("auto", 0, None), lambda v: watch(nodes=v)),
    "watch target": ("target", lambda v: watch(target=v)),
    "account folder": ([*values("/nowhere/run", 3.5, None)], lambda v: account(folder=v)),
    "account model": ("model", lambda v: account(model=v)),
    "account another model": (
        [
            Bad("wider", lambda: net(5), r"\(5, 3\)"),
            Bad("float32", lambda: net().float(), "float32"),
            Bad("batch norm", lambda: nn.Sequential(*net(), nn.BatchNorm1d(2)).double(), "3.weight"),
        ],
        lambda v: account(model=v),
    ),
    "account loss": ("loss", lambda v: account(loss=v)),
    "account train": ("train", lambda v: account(train=v)),
    "account queries": ("batch", lambda v: account(queries=v)),
    "account tol": ("positive", lambda v: account(tol=v)),
    "account nodes": (near("left", 0, -1, True, None), lambda v: account(nodes=v)),
    "account memory": ("memory", lambda v: account(memory=v)),
    "account average": ("flag", lambda v: account(average=v)),
    "account target": ("target", lambda v: account(target=v)),
    "account labels": (
        [
            *values("a"),
            Bad("a number", lambda: 3, "single number"),
            Bad("too few", lambda: torch.zeros(1, 2, dtype=D), "1 labels"),
        ],
        lambda v: account(target="loss", labels=v),
    ),
    "account augment": ("function", lambda v: account(augment=v)),
    "account keep": (values(3.5, ["keep"]), lambda v: account(keep=v)),
    "account jobs": ("count", lambda v: account(jobs=v)),
    "Account.top": (values(2, -3, 1.5, "0", None), lambda v: an_account().top(v)),
    "Account.top k": (values(-1, 1.5, "3", None), lambda v: an_account().top(0, v)),
    "Account.top output": (values(2, -3, 1.5, "0"), lambda v: an_account().top(0, output=v)),
    "Account.over_time": (values(2, -3, 1.5, "0"), lambda v: an_account().over_time(v)),
    "Account.by_class": (
        [
            *values("abc", None),
            Bad("7", lambda: [0] * 7, "7 labels"),
            Bad("-1", lambda: [-1] * 8, r"\[-1, -1"),
            Bad("0.5", lambda: [0.5] * 8, r"\[0.5"),
        ],
        lambda v: an_account().by_class(v),
    ),
    "Account.self_influence": (
        [*values("ab"), *map(sized, ([0], [0, 8], [-1, 0], [0.5, 1.5]))],
        lambda v: an_account().self_influence(v),
    ),
    "Account.margin": (values(2, -3, "0", 1.5), lambda v: an_account().margin(0, v)),
    "Account.load": ([*values("/nowhere/account", 3.5, None)], ntkit.Account.load),
    "Account.save": (values("/nowhere/account", 3.5, None), lambda v: an_account().save(v)),
    "PathKernel folder": (values("/nowhere/run", 3.5), lambda v: path_kernel(folder=v)(data()[0])),
    "PathKernel model": (KINDS["model"][:7], lambda v: path_kernel(model=v)(data()[0])),
    "PathKernel outputs": (near("trace", None), lambda v: path_kernel(outputs=v)),
    "PathKernel time": (near("steps", None), lambda v: path_kernel(time=v)),
    "PathKernel nodes": (near("left", 0, "auto", None), lambda v: path_kernel(nodes=v)),
    "PathKernel memory": ("memory", lambda v: path_kernel(memory=v)),
    "PathKernel()": ("batch", lambda v: path_kernel()(v)),
    "PathKernel(, x2)": (SECOND, lambda v: path_kernel()(data()[0], v)),
    "PathKernel.diag": ("batch", lambda v: path_kernel().diag(v)),
    "PathKernel of checkpoints": (
        [Bad("no loss", lambda: None, "loss= and train=")],
        lambda v: path_kernel(folder=recorded(2), loss=v)(data()[0]),
    ),
    # checks and pages
    "definiteness kernel": ("kernel", lambda v: definiteness(v, data()[0])),
    "definiteness": ("batch", lambda v: definiteness(ntk(), v)),
    "definiteness of outputs": (
        [Bad("diagonal", lambda: "diagonal", r"\(8, 8, 2\)")],
        lambda v: definiteness(ntk(outputs=v), data()[0]),
    ),
    "smallest_eigenvalue kernel": ("kernel", lambda v: smallest_eigenvalue(v, data()[0])),
    "operator_norm kernel": ("kernel", lambda v: operator_norm(v, data()[0])),
    "sphere n": ("count", lambda v: sphere(v, 3, seed=0)),
    "sphere d": ("count", lambda v: sphere(3, v, seed=0)),
    "sphere seed": ("seed", lambda v: sphere(3, 3, seed=v)),
    "harmonics degree": (values(-1, 1.5, "2", None), lambda v: harmonics(3, v)),
    "harmonics d": (values(0, 1.5, "2", None), lambda v: harmonics(v, 2)),
    "check_kernel": ("kernel", lambda v: ntkit.testing.check_kernel(v, data()[0][:3], data()[0][3:])),
    "check_kernel x1": ("batch", lambda v: ntkit.testing.check_kernel(ntk(), v, data()[0])),
    "check_kernel rtol": (
        "positive",
        lambda v: ntkit.testing.check_kernel(ntk(), data()[0][:3], data()[0][3:], rtol=v),
    ),
    "batches shape": (values(1.5, "3", -1, None), lambda v: ntkit.testing.batches(v)),
    "batches most": ("count", lambda v: ntkit.testing.batches(3, most=v)),
    "batches dtypes": (values([], "float64", 3, [int]), lambda v: ntkit.testing.batches(3, dtypes=v)),
    "explain account": (
        values(3, None, "run"),
        lambda v: ntkit.report.explain(v, PLACE["root"] / "page.html"),
    ),
    "explain path": (
        [*values(3.5, None), Bad("a folder", lambda: PLACE["root"], "cannot be written")],
        lambda v: ntkit.report.explain(an_account(), v),
    ),
    "explain option": (
        [
            Bad("typo", lambda: {"label": [0] * 8}, "Did you mean 'labels'"),
            Bad("qzx", lambda: {"qzx": 1}, "qzx"),
        ],
        lambda v: page(**v),
    ),
    "explain labels": ([*values(3, True), counted([0] * 7)], lambda v: page(labels=v)),
    "explain truth": ([*values(3), counted([0] * 3)], lambda v: page(truth=v)),
    "explain classes": ([*values(3), counted(["a"])], lambda v: page(classes=v)),
    "explain names": ([*values(3), counted(["a"])], lambda v: page(names=v)),
    "explain shown": (values(-1, "3", 1.5, None), lambda v: page(shown=v)),
    "explain picture": (values((7, 7), 3, "ab"), lambda v: page(train=data()[0], picture=v)),
    # what does not go together, and what was forgotten
    "together": (
        [
            Bad("no with: batch", lambda: lambda: started().batch([0]), "`with`"),
            Bad("no with: stats", lambda: lambda: started().stats, "`with`"),
            Bad("no run.batch", lambda: unannounced, r"No run.batch\(indices\) before step 0"),
            Bad("account before the end", lambda: early, "before the `with` block has ended"),
            Bad("a folder twice", lambda: lambda: record(folder=recorded()), "not empty"),
            Bad("lookahead of checkpoints", lambda: lambda: record(lookahead=2, every=2), "every=1"),
            Bad("an average of none", lambda: lambda: account(average=True), "average="),
            Bad("a margin, watched", lambda: lambda: watch(target="margin"), "'margin'"),
            Bad("one output's margin", lambda: lambda: an_account().margin(0, 7), "7"),
            Bad(
                "an operator of diagonals",
                lambda: lambda: ntk(outputs="diagonal").operator(data()[0]),
                "diagonal",
            ),
            Bad(
                "a sum of other outputs",
                lambda: lambda: (ntk() + ntk(outputs="full"))(data()[0]),
                r"\(8, 8, 2, 2\)",
            ),
            Bad(
                "a cosine of zero",
                lambda: lambda: zero().normalized()(torch.zeros(2, 3, dtype=D)),
                r"\[0, 1\]",
            ),
            Bad("a function without weights", lambda: lambda: ntkit.EmpiricalNTK(lambda w, x: x), "weights"),
            Bad(
                "nothing to train",
                lambda: lambda: ntkit.EmpiricalNTK(net().requires_grad_(False)),
                "gradient",
            ),
            Bad(
                "batch norm in training",
                lambda: lambda: ntkit.EmpiricalNTK(normed())(data()[0]),
                "BatchNorm1d",
            ),
            Bad(
                "a limit of batch norm",
                lambda: lambda: ntkit.infinite_width(normed(), data()[0]),
                "BatchNorm1d",
            ),
            Bad(
                "a sum over samples",
                lambda: lambda: ntkit.EmpiricalNTK(Mixed(3, 2).double())(data()[0]),
                "other samples",
            ),
            Bad("scales twice", lambda: lambda: infinite(ntkit.ntk_parametrize(net(), seed=0)), "twice"),
            Bad(
                "a limit of sigmoids",
                lambda: lambda: infinite(nn.Sequential(net(), nn.Softmax(1))),
                "softmax",
            ),
            Bad(
                "no reset", lambda: lambda: estimated(Bare(), parameterization="standard"), "reset_parameters"
            ),
            Bad(
                "probabilities of huber",
                lambda: lambda: classifier(loss="huber").predict_proba(X()),
                "'cross_entropy'",
            ),
            Bad(
                "a spread without prior",
                lambda: lambda: flow(kernel=ntk()).predict(X(), return_std=True),
                "prior=",
            ),
            Bad(
                "f0 at fit alone", lambda: lambda: ntkit.GradientFlow().fit(X(), y(), y()).predict(X()), "f0"
            ),
            Bad(
                "a full kernel for ridge",
                lambda: lambda: ridge(kernel=ntk(outputs="full")),
                r"outputs='mean'",
            ),
            Bad("a variance of a matrix", lambda: matrix_variance, "k\\(x, x\\)"),
            Bad(
                "orthogonal laplacians",
                lambda: lambda: features(kind="laplacian", draw="orthogonal"),
                "'laplacian'",
            ),
            Bad("an odd number of waves", lambda: lambda: features(m=9), "9"),
        ],
        lambda v: v(),
    ),
    # the command line
    "study name": (
        [
            Bad("typo", lambda: "lazzy", "Did you mean 'lazy'"),
            Bad("typo 2", lambda: "kernel-pac", "Did you mean 'kernel-pca'"),
            *values("qzx"),
        ],
        catalog.module,
    ),
    "study option": (
        [
            Bad("typo", lambda: {"sed": 1}, "Did you mean 'seed'"),
            *(Bad(str(b), partial(dict, seed=b), re.escape(repr(b))) for b in (-1, "a", 1.5)),
        ],
        lambda v: catalog.configure("lazy", **v),
    ),
    "explain_run loss": (
        [Bad("typo", lambda: "cross_entrpy", "Did you mean 'cross_entropy'"), *values("qzx", "nowhere:loss")],
        lambda v: explain_run(
            str(recorded()), f"{__name__}:net", f"{__name__}:data", "0", str(fresh()), loss=v
        ),
    ),
}
