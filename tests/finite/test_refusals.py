import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ntkit
from ntkit.errors import NotPerSampleError

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Mixing(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(3, 2), how

    def forward(self, x):
        return self.how(self.linear(x))


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Mixing(lambda h: F.dropout(h, 0.5))

    def forward(self, x):
        return self.inner(x)


NOT_PER_SAMPLE = {
    "norm": (
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        r"1 \(BatchNorm1d\).*training mode.*eval\(\)",
    ),
    "no statistics": (
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
        r"1 \(BatchNorm1d\).*no running statistics",
    ),
    "functional norm": (Mixing(lambda h: F.batch_norm(h, None, None, training=True)), "not one sample alone"),
    "dropout": (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.3)), r"1 \(Dropout\).*p=0.3"),
    "functional dropout": (FunctionalDropout(), "two different outputs"),
    "mean over the batch": (Mixing(lambda h: h - h.mean(0)), "other samples"),
    "softmax over the batch": (Mixing(lambda h: h.softmax(0)), "other samples"),
    "noise": (Mixing(lambda h: h + torch.randn_like(h)), "two different outputs"),
    "spectral norm": (
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))).train(),
        r"0.*spectral norm.*training mode",
    ),
}


@pytest.mark.parametrize("name", NOT_PER_SAMPLE)
def test_networks_without_a_function_of_one_sample(name):
    model, message = NOT_PER_SAMPLE[name]
    with pytest.raises(NotPerSampleError, match=message):
        ntkit.EmpiricalNTK(model)(X)


def test_dropout_without_probability_is_no_randomness():
    model = nn.Sequential(Mixing(lambda h: F.dropout(h, 0.0)), nn.Dropout(0.0))
    assert ntkit.EmpiricalNTK(model)(X).shape == (4, 4)


def test_inputs_that_are_wrong():
    k = ntkit.EmpiricalNTK(nn.Linear(3, 2))
    bad = X.clone()
    bad[2, 1] = torch.nan
    for x, message in [
        (bad, r"NaN or infinite.*\[2\]"),
        (X.double(), r"float64.*float32.*to\(torch.float32\)"),
        (X[:0], "empty batch"),
        (torch.tensor(1.0), "single number"),
        ("text", "cannot read"),
        ((X, X[:2]), "disagree"),
    ]:
        with pytest.raises(ntkit.NtkitError, match=message):
            k(x)
    with pytest.raises(ntkit.NtkitError, match="alike"):
        k(X, torch.randn(4, 5))


def test_models_that_are_wrong():
    for model, options, message in [
        (nn.ReLU(), {}, "no parameters"),
        (nn.LazyLinear(3), {}, "lazy"),
        ("model", {}, "Expected a torch.nn.Module"),
        (lambda w, x: x, {}, "needs its weights"),
        (lambda w, x: x, {"weights": {"a": torch.ones(2, dtype=torch.int64)}}, "need floating-point"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()), {}, "mixed dtypes"),
        (nn.Linear(3, 2), {"weights": {"weight": torch.ones(2, 3)}}, r"missing: \['bias'\]"),
        (nn.Linear(3, 2), {"outputs": "sum"}, "'full', 'diagonal', 'trace' or 'mean'"),
        (nn.Linear(3, 2), {"params": "nothing.*"}, "no parameter is called"),
        (nn.Linear(3, 2), {"params": nn.Linear(2, 2)}, "holds no parameter"),
        (nn.Linear(3, 2), {"memory": "two GB"}, "not a size"),
    ]:
        with pytest.raises(ntkit.NtkitError, match=message):
            ntkit.EmpiricalNTK(model, **options)


def test_outputs_that_are_wrong():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x), x

    with pytest.raises(ntkit.NtkitError, match="one tensor"):
        ntkit.EmpiricalNTK(Two())(X)
    with pytest.raises(ntkit.NtkitError, match="one output row per sample"):
        ntkit.EmpiricalNTK(Mixing(lambda h: h.sum(0)[:1]))(X)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = torch.inf
    with pytest.raises(ntkit.NtkitError, match="NaN or infinite outputs"):
        ntkit.EmpiricalNTK(model)(X)
