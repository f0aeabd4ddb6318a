"""Only the weights that count are checked; lower precision inside is allowed for, and said."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn
from torch.nn import functional as F

import ntkit

D = torch.float64


def setup_function():
    torch.manual_seed(0)


class Adapted(nn.Module):
    """A frozen layer in any dtype, beside a low-rank one that is trained, as in peft."""

    def __init__(self, dtype, rank=2):
        super().__init__()
        base = torch.randn(6, 4)
        base = (base * 20).round().to(dtype) if dtype == torch.int8 else base.to(dtype)
        self.base = nn.Parameter(base, requires_grad=False)
        self.down, self.up = nn.Linear(4, rank, bias=False), nn.Linear(rank, 6, bias=False)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        w = self.base.real if self.base.is_complex() else self.base
        w = w if w.is_floating_point() else w.to(x.dtype)
        return self.out(torch.tanh(F.linear(x.to(w.dtype), w).to(x.dtype) + self.up(self.down(x))))


@pytest.mark.parametrize(
    "frozen", [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.complex64]
)
@pytest.mark.parametrize("trained", [torch.float32, D])
def test_frozen_parts_in_any_dtype(frozen, trained):
    model = Adapted(frozen)
    for m in (model.down, model.up, model.out):
        m.to(trained)
    x = torch.randn(4, 4, dtype=trained)
    k = ntkit.EmpiricalNTK(model)
    truth = mean_kernel(model, x)
    for _ in range(2):
        assert_kernel(k(x), truth, 1e-4 if trained == torch.float32 or frozen.is_floating_point else 1e-10)
    assert {row.way for row in k.explain(x).rows} == {"structure"}
    assert k(x).dtype == trained


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: complex weights for the lowest modes."""

    def __init__(self, width=3, modes=3):
        super().__init__()
        self.w = nn.Parameter(torch.randn(width, width, modes, dtype=torch.complex128) / width)
        self.v = nn.Conv1d(width, width, 1)

    def forward(self, x):
        f = torch.fft.rfft(x)
        modes = torch.einsum("bix,iox->box", f[..., : self.w.shape[2]], self.w)
        return torch.fft.irfft(F.pad(modes, (0, f.shape[-1] - modes.shape[-1])), n=x.shape[-1]) + self.v(x)


class Phase(nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.l = nn.Parameter(torch.randn(4, dtype=torch.complex128)), nn.Linear(4, 2)

    def forward(self, x):
        return self.l((x * self.p).abs())


class OfComplex(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3, dtype=torch.complex128)

    def forward(self, x):
        y = self.a(x.to(torch.complex128))
        return torch.view_as_real(y * y).flatten(1)


COMPLEX = {
    "a neural operator": (
        lambda: nn.Sequential(Spectral(), nn.GELU(), Spectral(), nn.Flatten(), nn.Linear(24, 2)),
        (3, 8),
    ),
    "phases": (Phase, (4,)),
    "a linear layer": (OfComplex, (4,)),
}


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_complex_weights_are_pairs_of_reals(name, outputs):
    make, shape = COMPLEX[name]
    model = make()
    for p in model.parameters():
        p.data = p.data.to(torch.complex128 if p.is_complex() else D)
    x = torch.randn(3, *shape, dtype=D)
    k = ntkit.EmpiricalNTK(model, outputs=outputs)
    found = k(x)
    if outputs == "full":
        found = found.diagonal(dim1=2, dim2=3).mean(-1)
    assert_kernel(found, mean_kernel(model, x))
    assert_kernel(k.diag(x).diagonal(dim1=1, dim2=2).mean(-1) if outputs == "full" else k.diag(x),
                  mean_kernel(model, x).diagonal())  # fmt: skip
    count = sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
    assert k.features(x).shape[2] == count
    step = {n: (1e-6 * torch.randn_like(p)) for n, p in model.named_parameters()}
    flat = torch.cat([(torch.view_as_real(s) if s.is_complex() else s).reshape(-1) for s in step.values()])
    with torch.no_grad():
        before = model(x)
        for n, p in model.named_parameters():
            p.add_(step[n])
        moved = model(x) - before
        for n, p in model.named_parameters():
            p.sub_(step[n])
    torch.testing.assert_close(k.features(x) @ flat, moved.flatten(1), rtol=1e-4, atol=1e-10)


def test_where_complex_weights_have_no_meaning_they_are_refused(tmp_path):
    model = Phase()
    model.l = nn.Linear(4, 2).double()
    x = torch.randn(3, 4, dtype=D)
    with pytest.raises(ValueError, match=r"'p' has dtype torch.complex128.*real weights"):
        ntkit.infinite_width(model, x[:1])
    with pytest.raises(ValueError, match="real weights"):
        ntkit.record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), 0.1))


class Inside(nn.Module):
    """A network in float64 that computes in a lower precision between."""

    def __init__(self, low):
        super().__init__()
        self.a, self.o, self.low = nn.Linear(4, 8), nn.Linear(8, 2), low

    def forward(self, x):
        return self.o(torch.softmax(self.a(x).to(self.low), -1).to(x.dtype))


@pytest.mark.parametrize(
    ("low", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)]
)
def test_lower_precision_inside(low, rtol):
    model, x = Inside(low).double(), torch.randn(4, 4, dtype=D)
    k = ntkit.EmpiricalNTK(model)
    assert_kernel(k(x), mean_kernel(model, x), rtol)
    assert str(low).removeprefix("torch.") in str(k.explain(x))


@pytest.mark.parametrize("out", [torch.float32, D])
def test_outputs_of_another_dtype(out):
    class Raised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.o(torch.tanh(self.a(x))).to(out)

    for dtype, rtol in ((torch.bfloat16, 3e-2), (torch.float16, 5e-3), (torch.float32, 1e-5)):
        model, x = Raised().to(dtype), torch.randn(4, 4).to(dtype)
        k = ntkit.EmpiricalNTK(model)(x)
        assert k.dtype == dtype
        assert_kernel(k.double(), mean_kernel(model, x).double(), rtol)
    with pytest.raises(TypeError, match="real floating-point outputs"):
        ntkit.EmpiricalNTK(nn.Sequential(nn.Linear(3, 2), nn.Flatten(), Sign()))(torch.randn(3, 3))


class Sign(nn.Module):
    def forward(self, x):
        return (x > 0).long()
