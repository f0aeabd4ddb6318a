"""Where a wrong value can be given to the estimators, and what kind of value is expected there."""

from __future__ import annotations

import numpy as np
from wrong_places import Call
from wrong_setting import (
    MADE,
    X,
    classes,
    classifier,
    features,
    fitted,
    flow,
    ntk,
    process,
    ridge,
    spoil,
    streamed,
    y,
)
from wrong_values import KINDS, Bad, near, sized, values

import ntkit

FITS: dict[str, tuple[str | list[Bad], Call]] = {
    **{f"{name} X": ("X", lambda v, m=made: m().fit(v, classes())) for name, made in MADE.items()},
    **{
        f"{name} kernel": (
            KINDS["kernel"][:6] + near("precomputed"),
            lambda v, m=made: m(v).fit(X(), classes()),
        )
        for name, made in MADE.items()
    },
    **{
        f"{name} y": ("y", lambda v, m=made: m().fit(X(), v))
        for name, made in MADE.items()
        if name != "classifier"
    },
    **{f"{name}.predict": ("X", lambda v, n=name: fitted(n).predict(v)) for name in MADE},
    **{
        f"{name}.predict unfitted": (
            [Bad("", lambda: None, made.__name__)],
            lambda v, m=made: m().predict(X()),
        )
        for name, made in MADE.items()
    },
    **{
        f"{name}.predict columns": (
            [Bad("5", lambda: np.zeros((2, 5)), "5 features")],
            lambda v, n=name: fitted(n).predict(v),
        )
        for name in MADE
    },
    "ridge alpha": ([*KINDS["size"], *near("loo")[:1], *values("qzx")], lambda v: ridge(alpha=v)),
    "ridge solver": (near("cholesky", None), lambda v: ridge(solver=v)),
    "ridge tol": ("positive", lambda v: ridge(solver="cg", tol=v)),
    "ridge max_iter": ("count", lambda v: ridge(solver="cg", max_iter=v)),
    "ridge rank": ("count", lambda v: ridge(solver="nystrom", rank=v)),
    "ridge random_state": (values(1.5, "a", -1), lambda v: ridge(solver="nystrom", random_state=v)),
    "ridge memory": ("memory", lambda v: ridge(memory=v)),
    "ridge sample_weight": ("sample_weight", lambda v: ntkit.KernelRidge().fit(X(), y(), v)),
    "ridge.path": (
        [*values(-1.0, "a", [-1.0], [float("nan")], []), Bad("None", lambda: None, "nan")],
        lambda v: fitted("ridge").path(v),
    ),
    "ridge precomputed": (
        [
            Bad("not square", lambda: np.ones((12, 3)), r"\(12, 3\)"),
            Bad("not symmetric", lambda: np.triu(np.ones((12, 12))), "symmetric"),
            Bad("not positive", lambda: -5 * np.eye(12), "positive"),
        ],
        lambda v: ntkit.KernelRidge("precomputed").fit(v, y()),
    ),
    "ridge scale": (near("standardize", 3), lambda v: ridge(scale=v)),
    "ridge depth": ([b for b in KINDS["count"] if b.label != "None"], lambda v: ridge(depth=v)),
    "ridge normalize_y": ("flag", lambda v: ridge(normalize_y=v)),
    "ridge n_jobs": (values(0, -2, 1.5, "a"), lambda v: ridge(n_jobs=v)),
    "ridge verbose": ("flag", lambda v: ridge(verbose=v)),
    "ridge coverage": (values(0.0, 1.0, 95, "a", None), lambda v: fitted("ridge").predict_interval(X(), v)),
    "flow coverage": (values(0.0, 1.0, 95, "a", None), lambda v: fitted("flow").predict_interval(X(), v)),
    "ridge.inner": (values(3, "a", None), lambda v: fitted("ridge").inner(v)),
    "classifier class_weight": (
        values("even", 3, {"a": -1}, {"qzx": 1.0}),
        lambda v: classifier(class_weight=v),
    ),
    "classifier y": (
        [
            Bad("numbers", y, "continuous"),
            Bad("fewer", lambda: classes()[:5], "12, 5"),
            Bad("None", lambda: None, "None"),
            Bad("NaN", lambda: spoil(y(), 3), "NaN"),
        ],
        lambda v: ntkit.KernelClassifier().fit(X(), v),
    ),
    "classifier loss": (near("cross_entropy", None), lambda v: classifier(loss=v)),
    "classifier alpha": (
        [*values(0.0), *KINDS["size"]],
        lambda v: classifier(loss="cross_entropy", alpha=v),
    ),
    "classifier solver": (near("newton", None), lambda v: classifier(solver=v)),
    "classifier tol": ("positive", lambda v: classifier(tol=v)),
    "classifier max_iter": ("count", lambda v: classifier(max_iter=v)),
    "classifier memory": ("memory", lambda v: classifier(kernel=ntk(), memory=v)),
    "classifier early_stopping": ("flag", lambda v: classifier(early_stopping=v)),
    "classifier fraction": ("fraction", lambda v: classifier(early_stopping=True, validation_fraction=v)),
    "classifier sample_weight": ("sample_weight", lambda v: ntkit.KernelClassifier().fit(X(), classes(), v)),
    "process noise": ([*KINDS["size"], *values("qzx", None)], lambda v: process(noise=v)),
    "process optimize": (
        [Bad("typo", lambda: ["sigma_bb"], "Did you mean 'sigma_b'"), *values(["qzx"], 3, "qzx", [3])],
        lambda v: process(kernel=None, optimize=v),
    ),
    "process both": ([Bad("", lambda: True, "return_std")], lambda v: fitted("process").predict(X(), v, v)),
    "process.sample_y": (values(-1, 1.5, "3", [1]), lambda v: fitted("process").sample_y(X(), v)),
    "process.sample_y random_state": (
        [*values("a", [1.5]), Bad("-1", lambda: -1, "between 0")],
        lambda v: fitted("process").sample_y(X(), 2, v),
    ),
    "flow t": ("times", lambda v: flow(t=v)),
    "flow prior": (KINDS["kernel"][:5], lambda v: flow(prior=v).predict(X(), return_std=True)),
    "flow loss": (near("squared", None), lambda v: flow(loss=v)),
    "flow learning_rate": (
        [*KINDS["positive"], Bad("1e9", lambda: 1e9, "diverges")],
        lambda v: flow(learning_rate=v),
    ),
    "flow momentum": (values(1.0, -0.1, "a", float("nan"), None), lambda v: flow(momentum=v)),
    "flow early_stopping": (near("validation", True), lambda v: flow(early_stopping=v)),
    "flow fraction": ("fraction", lambda v: flow(early_stopping="validation", validation_fraction=v)),
    "flow f0": (
        [*values("a"), sized([1.0]), Bad("NaN", lambda: [float("nan")] * 12, "12 NaN")],
        lambda v: ntkit.GradientFlow().fit(X(), y(), v),
    ),
    "flow.predict t": (
        [b for b in KINDS["times"] if b.label != "None"],
        lambda v: fitted("flow").predict(X(), t=v),
    ),
    "flow.predict both": ([Bad("", lambda: True, "return_std")], lambda v: fitted("flow").predict(X(), v, v)),
    "flow.learning_curve": ("times", lambda v: fitted("flow").learning_curve(v)),
    "features kind": (near("gaussian", None), lambda v: features(kind=v)),
    "features m": ([*KINDS["count"], *values(7)], lambda v: features(m=v)),
    "features seed": ([b for b in KINDS["seed"] if b.label != "None"], lambda v: features(seed=v)),
    "features random_state": ("seed", lambda v: features(random_state=v)),
    "features draw": (near("sobol", None), lambda v: features(draw=v)),
    "features lengthscale": ("positive", lambda v: features(lengthscale=v)),
    "features nu": ("positive", lambda v: features(kind="matern", nu=v)),
    "features depth": ("count", lambda v: features(kind="ntk", depth=v)),
    "features sigma_w": ("number", lambda v: features(kind="ntk", sigma_w=v)),
    "features X": ("X", lambda v: ntkit.RandomFeatures(m=8).fit(v)),
    "features.transform": ("X", lambda v: fitted("features").transform(v)),
    "features n_jobs": (values(0, -2, 1.5, "a"), lambda v: features(n_jobs=v)),
    "features verbose": ("flag", lambda v: features(verbose=v)),
    "process solver": (near("cholesky", None), lambda v: process(solver=v)),
    "process tol": ("positive", lambda v: process(tol=v)),
    "process memory": ("memory", lambda v: process(memory=v)),
    "flow tol": ("positive", lambda v: flow(tol=v)),
    "flow memory": ("memory", lambda v: flow(memory=v)),
    "streamed features": (values("gaussian", 3, [1]), lambda v: streamed(features=v)),
    "streamed alpha": ([*KINDS["size"], *values("qzx", None)], lambda v: streamed(alpha=v)),
    "streamed solver": (near("normal", None), lambda v: streamed(solver=v)),
    "streamed dtype": (near("float32", None), lambda v: streamed(dtype=v)),
    "streamed tol": ("positive", lambda v: streamed(tol=v)),
    "streamed max_iter": (
        [b for b in KINDS["count"] if b.label != "None"],
        lambda v: streamed(max_iter=v),
    ),
    "streamed memory": ("memory", lambda v: streamed(memory=v)),
    "streamed n_jobs": (values(0, -2, 1.5, "a"), lambda v: streamed(n_jobs=v)),
    "streamed verbose": ("flag", lambda v: streamed(verbose=v)),
    "streamed random_state": ("seed", lambda v: streamed(random_state=v)),
    "landmarks m": (
        [b for b in KINDS["count"] if b.label != "None"],
        lambda v: ntkit.NystromFeatures(m=v).fit(X()),
    ),
    "landmarks random_state": ("seed", lambda v: ntkit.NystromFeatures(m=4, random_state=v).fit(X())),
    "landmarks kernel": (KINDS["kernel"][:6], lambda v: ntkit.NystromFeatures(v, 4).fit(X())),
    "features.to_module": (
        values([1.0, 2.0], "a", [float("nan")] * 8),
        lambda v: fitted("features").to_module(v),
    ),
}
