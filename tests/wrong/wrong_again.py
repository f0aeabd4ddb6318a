"""Wrong arguments of what trains a recorded run again."""

from __future__ import annotations

import torch
from wrong_places import Call
from wrong_setting import a_counterfactual, counterfactual, retrain
from wrong_values import Bad, values

SETS = [
    *values("abc", 3.5),
    Bad("[8]", lambda: [8], "from 8 to 8"),
    Bad("[-1]", lambda: [-1], "from -1 to -1"),
    Bad("[0.5]", lambda: [0.5], "dtype torch.float32"),
    Bad("[[1, 2]]", lambda: [[1, 2]], r"shape \(1, 2\)"),
]

AGAIN: dict[str, tuple[str | list[Bad], Call]] = {
    "retrain folder": ([*values("/nowhere/run", 3.5, None)], lambda v: retrain(folder=v)),
    "retrain model": ("model", lambda v: retrain(model=v)),
    "retrain loss": ("loss", lambda v: retrain(loss=v)),
    "retrain train": ("train", lambda v: retrain(train=v)),
    "retrain without": (SETS, lambda v: retrain(without=v)),
    "retrain weights": (values("abc", [1.0], [[1.0] * 8], [float("nan")] * 8), lambda v: retrain(weights=v)),
    "retrain without_each": (
        [*values("abc", 3, [0.5]), Bad("[[8]]", lambda: [[8]], "from 8 to 8")],
        lambda v: retrain(without_each=v),
    ),
    "retrain dtype": (values("float64", 3, torch.int64), lambda v: retrain(dtype=v)),
    "retrain augment": ("function", lambda v: retrain(augment=v)),
    "Retrained.outputs": ("batch", lambda v: retrain().outputs(v)),
    "counterfactual folder": ([*values("/nowhere/run", 3.5, None)], lambda v: counterfactual(folder=v)),
    "counterfactual model": ("model", lambda v: counterfactual(model=v)),
    "counterfactual loss": ("loss", lambda v: counterfactual(loss=v)),
    "counterfactual train": ("train", lambda v: counterfactual(train=v)),
    "counterfactual queries": ("batch", lambda v: counterfactual(queries=v)),
    "counterfactual memory": ("memory", lambda v: counterfactual(memory=v)),
    "counterfactual target": ("target", lambda v: counterfactual(target=v)),
    "counterfactual total": ("flag", lambda v: counterfactual(total=v)),
    "counterfactual augment": ("function", lambda v: counterfactual(augment=v)),
    "counterfactual keep": (values(3.5, ["keep"]), lambda v: counterfactual(keep=v)),
    "Counterfactual.top": (values(2, -3, 1.5, "0", None), lambda v: a_counterfactual().top(v)),
    "Counterfactual.top k": (values(-1, 1.5, "3", None), lambda v: a_counterfactual().top(0, v)),
    "Counterfactual.leave_out": (SETS, lambda v: a_counterfactual().leave_out(v)),
    "Counterfactual.check sets": (values(0, -1, 1.5, "3", None), lambda v: a_counterfactual().check(v)),
    "Counterfactual.check size": (values(0, 8, 1.5, "3"), lambda v: a_counterfactual().check(2, v)),
    "Counterfactual.smoothness": (values(0, 9, 1.5, "3"), lambda v: a_counterfactual().smoothness(v)),
}
