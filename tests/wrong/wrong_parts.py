"""Where a wrong value can be given for what of the data goes in, and which of several outputs counts."""

from __future__ import annotations

from torch.utils.data import TensorDataset
from wrong_places import Call
from wrong_setting import Parts, account, data, net
from wrong_values import Bad, values

import ntkit

PARTS: dict[str, tuple[str | list[Bad], Call]] = {
    "infinite_width select": (
        values("logit", 3, ["logits"], 1.5),
        lambda v: ntkit.infinite_width(Parts(3, 2).double(), data()[0], select=v),
    ),
    "infinite_width inputs": (
        values("pixels", 5, 1.5, [0, 7]),
        lambda v: ntkit.infinite_width(net(), TensorDataset(*data()), inputs=v),
    ),
    "TensorProgram lines": (
        values("y = v @", "y", ["y = tanh(x)"], ["y = x @ x"], "y = v @ x[0]", ""),
        lambda v: ntkit.TensorProgram(v, {"x": 3}),
    ),
    "TensorProgram width": (
        values(0, -3, 1.5, "64"),
        lambda v: ntkit.TensorProgram("y = v @ x", {"x": 3}, width=v),
    ),
    "expect lines": (
        values(["g9"], ["x"], [3]),
        lambda v: ntkit.infinite_width(net(), data()[0]).expect(lambda g: g, data()[0], v),
    ),
    "coordinates line": (
        values("g9", "x", 3, None),
        lambda v: ntkit.infinite_width(net(), data()[0]).coordinates(v, data()[0]),
    ),
    "account select": (values("logits", 3, ["logits"], 1.5), lambda v: account(select=v)),
    "account inputs": (
        values("pixels", 5, 1.5, [0, 7]),
        lambda v: account(train=TensorDataset(*data()), inputs=v),
    ),
    "account targets": (
        values("label", 5, 1.5, [0, 7]),
        lambda v: account(train=TensorDataset(*data()), targets=v),
    ),
}
