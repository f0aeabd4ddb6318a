"""What can be wrong with an argument, by its kind: shapes, dtypes, devices, NaN, names, types, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from wrong_setting import D, Iterable, Thing, Whole, X, data, lazy, net, spoil, trainee, two_dtypes, y

import ntkit
import ntkit.report
import ntkit.testing


@dataclass(frozen=True)
class Bad:
    """A bad value, made anew for each case; ``says``: what the refusal must name, beyond what can be told."""

    label: str
    make: Callable[[], Any]
    says: str | None = None


def values(*given: Any) -> list[Bad]:
    """Return bad values that are told by their own text."""
    return [Bad(repr(v)[:24], partial(lambda v: v, v)) for v in given]


def sized(value: list[Any]) -> Bad:
    """Return a list that is told by its shape."""
    return Bad(repr(value), lambda: value, rf"\({len(value)},\)")


def counted(value: list[Any]) -> Bad:
    """Return a list that is told by how many it holds."""
    return Bad(f"{len(value)} entries", lambda: value, f"has {len(value)} entries")


def rows(row: int, value: float) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        x = torch.ones(4, 3, dtype=D)
        x[row, 1] = value
        return x

    return make


def spoiled(change: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    def make() -> Any:
        weights = {k: w.detach().clone() for k, w in net().named_parameters()}
        return change(weights) or weights

    return make


def near(right: str, *others: Any) -> list[Bad]:
    """Return wrong values of an option: with a letter left out the refusal names what was meant."""
    typos = [right[:-1], right[0] + right[2:], right[:-2] + right[-1] + right[-2]]
    typos = [t for t in dict.fromkeys(typos) if t != right]
    bad = [Bad(f"typo {t}", partial(str, t), f"Did you mean '{right}'") for t in typos]
    return bad[:2] + values("qzx", 7.5, ["qzx"], b"qzx", *others)


KINDS: dict[str, list[Bad]] = {
    "batch": [
        Bad("NaN in the first row", rows(0, torch.nan), r"NaN.*\[0\]"),
        Bad("NaN in the last row", rows(3, torch.nan), r"NaN.*\[3\]"),
        Bad("inf in row 2", rows(2, torch.inf), r"infinite.*\[2\]"),
        Bad("-inf in row 1", rows(1, -torch.inf), r"infinite.*\[1\]"),
        Bad("too many columns", lambda: torch.zeros(4, 5, dtype=D), r"5"),
        Bad("one axis", lambda: torch.zeros(4, dtype=D), r"\(4,?\)|\[\d\]|\[\]|\(\)|\(2,\)"),
        Bad("a number", lambda: 3.0, "single number"),
        Bad("no sample", lambda: torch.zeros(0, 3, dtype=D), r"\(0, 3\)"),
        Bad("float32", lambda: torch.zeros(4, 3), "float32"),
        Bad("float16", lambda: torch.zeros(4, 3, dtype=torch.float16), "float16"),
        Bad("whole numbers", lambda: torch.zeros(4, 3, dtype=torch.int64), "int64"),
        Bad("complex", lambda: torch.zeros(4, 3, dtype=torch.complex128), "complex"),
        Bad("meta", lambda: torch.zeros(4, 3, dtype=D, device="meta"), "meta"),
        Bad("sparse", lambda: torch.eye(4, 3, dtype=D).to_sparse(), "sparse"),
        Bad("text", lambda: "rows", "str"),
        Bad("texts", lambda: [["a", "b", "c"]], "list"),
        Bad("ragged", lambda: [[1.0, 2.0, 3.0], [1.0]], "list"),
        Bad("a thing", Thing, "Thing"),
        Bad("None", lambda: None, "None"),
        Bad("empty list", lambda: [], r"\(0,\)"),
        Bad("empty dict", dict, "tensor"),
        Bad("arrays in a list", lambda: [np.zeros(3), np.zeros(3)], "list"),
        Bad("two inputs", lambda: (torch.zeros(4, 3, dtype=D),) * 2, r"(\[\d, 3\].*){2}|(\[3\].*){2}"),
        Bad("an unknown name", lambda: {"pixels": torch.zeros(4, 3, dtype=D)}, "pixels|dict"),
        Bad("two sizes", lambda: (torch.zeros(4, 3, dtype=D), torch.zeros(2, 3, dtype=D)), r"\[2, 4\]"),
        Bad("a dataset with targets", lambda: TensorDataset(torch.zeros(4, 3), torch.zeros(4)), "2 parts"),
    ],
    "model": [
        *values(None, 3, "network", [1]),
        Bad("a class", lambda: nn.Linear, "Linear|type"),
        Bad("a thing", Thing, "Thing"),
        Bad("compiled", lambda: torch.jit.trace(net(), torch.zeros(1, 3, dtype=D)), "torch.jit"),
        Bad("no parameters", nn.Tanh, "no parameters"),
        Bad("lazy", lazy, "UninitializedParameter|not initialized|0.weight"),
        Bad("two dtypes", two_dtypes, "float32.*float64"),
        Bad("whole weights", lambda: Whole(), "int64"),
        Bad("parameters", lambda: list(net().parameters()), "list"),
    ],
    "weights": [
        *values(3, "weights", [1]),
        Bad("one missing", spoiled(lambda w: {k: v for k, v in w.items() if k != "0.bias"}), "0.bias"),
        Bad("one renamed", spoiled(lambda w: w.update({"0.baas": w.pop("0.bias")})), "0.baas"),
        Bad("a shape", spoiled(lambda w: w.update({"0.bias": torch.zeros(7, dtype=D)})), r"\(7,\)"),
        Bad("whole numbers", spoiled(lambda w: w.update({"0.bias": torch.zeros(4, dtype=int)})), "int64"),
        Bad("no tensor", spoiled(lambda w: w.update({"0.bias": [0.0] * 4})), "list"),
        Bad("empty", dict, "no parameters|missing|0.bias"),
    ],
    "params": [
        Bad("typo", lambda: "0.wieght", "Did you mean '0.weight'"),
        Bad("typo in a list", lambda: ["0.weight", "2.bais"], "Did you mean '2.bias'"),
        *values("qzx", 3, []),
        Bad("a number in a list", lambda: [3], "int"),
        Bad("a thing", Thing, "Thing"),
        Bad("another module", lambda: nn.Linear(2, 2), "Linear"),
        Bad("another parameter", lambda: nn.Parameter(torch.zeros(2)), "Parameter|2"),
    ],
    "memory": values("a lot", 0, -5, "", None, "2 furlongs", [], float("nan"), "2GiBs"),
    "count": values(0, -1, 1.5, "3", float("nan"), [1], True),
    "number": values("1", None, float("nan"), float("inf"), [1.0], Thing()),
    "positive": values(0.0, -1.0, "1", float("nan"), [1.0], Thing()),
    "fraction": values(0.0, 1.0, -0.1, 2.0, "half", float("nan")),
    "size": values(-1.0, "1", float("nan"), float("inf"), [1.0], Thing()),
    "seed": values(1.5, "a", None, [1]),
    "flag": values("yes", 3, [], "no", Thing()),
    "sigma": [*values("1", float("nan"), float("inf"), [1.0]), Bad("by no path", lambda: {"9": 1.0}, "'0'")],
    "function": values(3, "qzx", [1], 1.5),
    "path": values(3.5, None, ["runs"]),
    "op": [
        *values(None, 3, "aten.mm.default", [1]),
        Bad("a function", lambda: torch.mm, "mm"),
        Bad("a packet", lambda: torch.ops.aten.mm, "mm"),
        Bad("a module", lambda: nn.Linear, "Linear"),
    ],
    "kernel": [
        *values(3, [1], Thing()),
        Bad("a network", net, "Sequential"),
        Bad("a class", lambda: ntkit.EmpiricalNTK, "EmpiricalNTK|ABCMeta"),
        Bad("an array", lambda: np.eye(4), "ndarray|array"),
        Bad("None", lambda: None, "None"),
    ],
    "train": [
        *values(3, "data", None),
        Bad("inputs alone", lambda: torch.zeros(8, 3, dtype=D), "Tensor|pair"),
        Bad("three parts", lambda: (data()[0], data()[1], data()[1]), "3|pair"),
        Bad("fewer targets", lambda: (data()[0], data()[1][:5]), "8 inputs but 5"),
        Bad("NaN in a target", lambda: (data()[0], data()[1].clone().fill_(torch.nan)), "NaN"),
        Bad("NaN in row 7", lambda: (spoil(data()[0], 7), data()[1]), r"\[7\]"),
        Bad("float32", lambda: (data()[0].float(), data()[1]), "float32"),
        Bad("empty", lambda: (data()[0][:0], data()[1][:0]), r"\(0, 3\)"),
        Bad("another shape", lambda: (torch.zeros(8, 5, dtype=D), data()[1]), r"\[8, 5\]|sha256"),
    ],
    "loss": [
        *values(None, 3, "mean_squared"),
        Bad("a class", lambda: nn.MSELoss, "MSELoss"),
        Bad("a loss for each sample", lambda: nn.MSELoss(reduction="none"), r"shape|\[\d|\(\d"),
        Bad("NaN", lambda: lambda y, t: (y - t).sum() * torch.nan, "nan|NaN|finite"),
        Bad("no gradient", lambda: lambda y, t: torch.zeros(()), "differ|grad|depend"),
        Bad("a number", lambda: lambda y, t: 1.0, "float"),
        Bad("it raises", lambda: lambda y, t: y @ t, "mat|shape|size"),
    ],
    "loader": [
        *values(None, 3, [1]),
        Bad("a dataset", lambda: TensorDataset(torch.zeros(3)), "TensorDataset"),
        Bad("iterable", lambda: DataLoader(Iterable()), "IterableDataset"),
        Bad("no batches", lambda: DataLoader(TensorDataset(torch.zeros(3)), batch_size=None), "batch_size"),
    ],
    "optimizer": [
        *values(None, 3, "SGD", []),
        Bad("a class", lambda: torch.optim.SGD, "SGD|type"),
        Bad("another network's", lambda: torch.optim.SGD(net().parameters(), 0.1), "parameter"),
        Bad("LBFGS", lambda: torch.optim.LBFGS(trainee()[0].parameters()), "LBFGS"),
        Bad("one twice", lambda: [torch.optim.SGD(trainee()[0].parameters(), 0.1)] * 2, "twice|weight"),
        Bad("a scheduler", lambda: torch.optim.lr_scheduler.StepLR(trainee()[1], 3), "StepLR"),
    ],
    "indices": [
        *values([8], [-1], "abc", None, 3, {"a": 1}),
        Bad("nothing", list, "is empty"),
        Bad("halves", lambda: [0.5], r"\(1,\), dtype torch.float32"),
        Bad("two axes", lambda: [[0, 1]], r"\(1, 2\)"),
        Bad("a mask of another size", lambda: torch.ones(5, dtype=torch.bool), r"\(5,\)"),
        Bad("floats", lambda: torch.zeros(3), "float32"),
        Bad("no sample of a slice", lambda: slice(8, 9), "empty"),
        Bad("a thing", Thing, "Thing"),
    ],
    "X": [
        Bad("NaN in the first row", lambda: spoil(X(), 0), "NaN"),
        Bad("NaN in the last row", lambda: spoil(X(), 11), "NaN"),
        Bad("inf", lambda: spoil(X(), 5, np.inf), "infinity"),
        Bad("-inf", lambda: spoil(X(), 5, -np.inf), "infinity"),
        Bad("one axis", lambda: X()[:, 0], "1D array"),
        Bad("a number", lambda: 3.0, "scalar array|3.0"),
        Bad("no sample", lambda: X()[:0], r"\(0, 3\)"),
        Bad("no column", lambda: X()[:, :0], r"\(12, 0\)"),
        Bad("text", lambda: "rows", "rows"),
        Bad("texts", lambda: [["a", "b", "c"]] * 12, "'a'"),
        Bad("complex", lambda: X() * 1j, "[Cc]omplex"),
        Bad("a thing", Thing, "thing|Thing"),
        Bad("None", lambda: None, "None|scalar array"),
        Bad("ragged", lambda: [[1.0, 2.0, 3.0], [1.0]], "inhomogeneous|sequence|list"),
        Bad("sparse", lambda: torch.as_tensor(X()).to_sparse(), "[Ss]parse"),
    ],
    "y": [
        Bad("NaN", lambda: spoil(y(), 3), "NaN"),
        Bad("inf", lambda: spoil(y(), 3, np.inf), "infinity"),
        Bad("fewer", lambda: y()[:5], "12, 5"),
        Bad("None", lambda: None, "None"),
        Bad("three axes", lambda: np.zeros((12, 2, 2)), "dim 3|3"),
        Bad("a number", lambda: 3.0, "scalar|0d|shape \\(\\)|3.0"),
        Bad("texts", lambda: ["a"] * 12, "'a'"),
    ],
    "sample_weight": [
        Bad("negative", lambda: -np.ones(12), "[Nn]egative"),
        Bad("all zero", lambda: np.zeros(12), "zero"),
        Bad("fewer", lambda: np.ones(5), r"\(5,\)"),
        Bad("two axes", lambda: np.ones((12, 2)), "1D array|2"),
        Bad("NaN", lambda: np.full(12, np.nan), "NaN"),
        Bad("text", lambda: "balanced", "balanced"),
    ],
    "covariance": [
        *values("one", None, [[0.1], [0.2, 0.3]]),
        Bad("NaN", lambda: float("nan"), "3 of 3 entries are NaN"),
        Bad("inf", lambda: float("inf"), "3 of 3 entries are NaN or inf"),
        Bad("no broadcast", lambda: torch.ones(5, dtype=D), r"\(5,\)"),
        Bad("complex", lambda: torch.ones(3, dtype=torch.complex128), "complex"),
        Bad("a thing", Thing, "[Tt]hing"),
    ],
    "times": [
        *values(-1.0, "soon", float("nan"), [], [[1.0]], [1.0, -2.0], None),
        Bad("a thing", Thing, "thing"),
    ],
    "transform": values(3, "g", None),
    "target": [
        Bad("typo", lambda: "predictd", "Did you mean 'predicted'"),
        Bad("typo 2", lambda: "margn", "Did you mean 'margin'"),
        *values(5, -3, [], ("margin", 0, 7), None, 1.5, True, [0, 9]),
        Bad("loss without labels", lambda: "loss", "labels="),
    ],
    "summand": [
        *values(3, "k", None),
        Bad("a network", net, "Sequential"),
        Bad("array", lambda: np.eye(2), "ndarray"),
    ],
    "factor": [
        *values(-1.0, float("nan"), float("inf"), "2", None, [2.0]),
        Bad("array", lambda: np.eye(2), "ndarray"),
    ],
}
