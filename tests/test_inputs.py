"""Batches come in any container; flags stay flags, and targets never reach the network."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ntkit

D = torch.float64
Two = namedtuple("Two", "a b")


@dataclass
class Sample:
    a: Tensor
    b: Tensor | None = None
    flag: bool = True


class Net(nn.Module):
    """Takes two inputs, one of which may be None, and a flag."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, a, b=None, flag=True, how="tanh"):
        h = self.p(a) + (0 if b is None else self.q(b))
        return getattr(torch, how)(h) if flag else h


class OfOne(Net):
    """The same network for a container as its only input."""

    def forward(self, data):
        if isinstance(data, (Sample, Two)):
            return super().forward(data.a, data.b)
        return super().forward(*data)


def setup_function():
    torch.manual_seed(0)


def batch():
    return torch.randn(4, 3, dtype=D), torch.randn(4, 2, dtype=D)


def named(make):
    return lambda a, b: make({"a": a, "b": b})


CONTAINERS = {
    "dict": named(dict),
    "OrderedDict": named(OrderedDict),
    "UserDict": named(UserDict),
    "mapping": named(MappingProxyType),
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "None and flags": lambda a, b: {"a": a, "b": b, "flag": True, "how": "tanh"},
    "positions, None inside": lambda a, b: (a, b, True, "tanh"),
    "arrays": lambda a, b: {"a": a.numpy(), "b": b.numpy()},
    "numbers": lambda a, b: (a.tolist(), b.tolist()),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    model, (a, b) = Net().to(D), batch()
    k, x = ntkit.EmpiricalNTK(model), CONTAINERS[name](a, b)
    truth = mean_kernel(model, (a, b))
    for _ in range(2):
        assert_kernel(k(x), truth)
    assert_kernel(k(CONTAINERS[name](a[:2], b[:2]), x), truth[:2])
    assert_kernel(k.diag(x), truth.diagonal())
    assert_kernel(k.operator(x) @ torch.eye(4, dtype=D), truth)
    assert_kernel(ntkit.ConjugateKernel(model)(x).diagonal() * 0 + 1, torch.ones(4, dtype=D))


@pytest.mark.filterwarnings("ignore:No output depends on the parameter")
def test_flags_and_none_are_part_of_what_the_network_is():
    model, (a, b) = Net().to(D), batch()
    k = ntkit.EmpiricalNTK(model)
    for extra in ({"flag": False}, {"how": "sin"}, {"b": None}, {"b": None, "how": "cos"}, {"flag": True}):
        x = {"a": a, "b": b, **extra}
        assert_kernel(k(x), mean_kernel(model, x_tensors(x), call=lambda m, one, e=extra: m(**{**one, **e})))


def x_tensors(x):
    return {key: value for key, value in x.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("make", [Sample, Two, lambda a, b: ([a, b],)])
def test_containers_that_are_one_input(make):
    model, (a, b) = OfOne().to(D), batch()
    truth = mean_kernel(model, (a, b), call=lambda m, one: m(Sample(*one)))
    if make is Two:  # a named tuple is a tuple: the inputs one after the other
        model = Net().to(D).requires_grad_()
        truth = mean_kernel(model, (a, b))
        assert_kernel(ntkit.EmpiricalNTK(model)((a, b)), truth)
        return
    assert_kernel(ntkit.EmpiricalNTK(model)(make(a, b)), truth)


def test_containers_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    ids = torch.randint(0, 20, (3, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    x = transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask})
    truth = mean_kernel(
        model, {"input_ids": ids, "attention_mask": mask}, call=lambda m, one: m(**one).logits
    )
    with pytest.raises(ntkit.NtkitError, match=r"SequenceClassifierOutput with \['logits'\].*select="):
        ntkit.EmpiricalNTK(model)(x)
    for select in ("logits", 0):
        if select == 0:
            with pytest.raises(ntkit.NtkitError, match="Name one of its parts"):
                ntkit.EmpiricalNTK(model, select="loss")(x)
            continue
        k = ntkit.EmpiricalNTK(model, select=select)
        assert_kernel(k(x), truth)
        assert_kernel(k({"input_ids": ids, "attention_mask": mask, "output_attentions": None}), truth)
        ways = [row.way for row in k.explain(x).rows]
        assert ways.count("contraction") == 0


class Items(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"pixels": self.x[i], "label": self.y[i]}


def test_loaders_and_datasets():
    model, x, y = nn.Linear(3, 2).to(D), torch.randn(7, 3, dtype=D), torch.randn(7, 2, dtype=D)
    truth = mean_kernel(model, x)
    pairs, items = TensorDataset(x, y), Items(x, y)
    for data, inputs in (
        (TensorDataset(x), None),
        (DataLoader(TensorDataset(x), batch_size=3), None),
        (pairs, 0),
        (DataLoader(pairs, batch_size=3), 0),
        (DataLoader(pairs, batch_size=3), lambda item: item[0]),
        (items, "pixels"),
        (DataLoader(items, batch_size=2), "pixels"),
    ):
        assert_kernel(ntkit.EmpiricalNTK(model, inputs=inputs)(data), truth)
        assert_kernel(ntkit.EmpiricalNTK(model, inputs=inputs).diag(data), truth.diagonal())
    two = Net().to(D)
    a, b = batch()
    both = TensorDataset(a, b, torch.zeros(4))
    assert_kernel(ntkit.EmpiricalNTK(two, inputs=[0, 1])(both), mean_kernel(two, (a, b)))
    for data in (pairs, DataLoader(pairs), items, DataLoader(items)):
        with pytest.raises(ValueError, match=r"must not reach the network\. Say with inputs="):
            ntkit.EmpiricalNTK(model)(data)
    with pytest.raises(ValueError, match=r"inputs='image': an item of x1 .*\['pixels', 'label'\]"):
        ntkit.EmpiricalNTK(model, inputs="image")(items)
    with pytest.raises(ValueError, match="inputs=2"):
        ntkit.EmpiricalNTK(model, inputs=2)(pairs)


def test_what_is_ambiguous_is_refused():
    k = ntkit.EmpiricalNTK(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="several inputs of the network, or several samples"):
        k([np.zeros(3), np.zeros(3)])
    for x in (None, (), {}, (None, True)):
        with pytest.raises(TypeError, match="expected a batch"):
            k(x)
    with pytest.raises(ValueError, match="sparse"):
        k(torch.eye(3).to_sparse())


@dataclass
class Scores:
    scores: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("wrap", "select"),
    [
        (lambda y: {"scores": y, "loss": y.sum()}, "scores"),
        (lambda y: (y.sum(), y), 1),
        (lambda y: [y, None], 0),
        (lambda y: Scores(y), "scores"),
        (lambda y: Two(y, y.exp()), 0),
    ],
)
def test_one_of_several_outputs(wrap, select):
    class Several(nn.Linear):
        def forward(self, x):
            return wrap(super().forward(x))

    model, x = Several(3, 2).to(D), torch.randn(4, 3, dtype=D)
    k = ntkit.EmpiricalNTK(model, select=select)
    plain = nn.Linear(3, 2).to(D)
    plain.load_state_dict(model.state_dict())
    assert_kernel(k(x), mean_kernel(plain, x))
    with pytest.raises(TypeError, match="Say with select="):
        ntkit.EmpiricalNTK(model)(x)
    with pytest.raises(ValueError, match="Name one of its parts"):
        ntkit.EmpiricalNTK(model, select="nothing" if isinstance(select, str) else 7)(x)
