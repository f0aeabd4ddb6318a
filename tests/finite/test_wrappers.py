"""Networks that come wrapped, adapted, checkpointed or compiled: unwrapped, or refused by name."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ntkit

D = torch.float64


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2)).to(D)


X = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel moves the network to a device")
def test_wrappers_for_several_devices(group):
    truth = mean_kernel(plain(), X)
    for wrap in (DataParallel, DistributedDataParallel, lambda m: DistributedDataParallel(DataParallel(m))):
        model = wrap(plain())
        assert_kernel(ntkit.EmpiricalNTK(model)(X), truth)
        assert_kernel(ntkit.ConjugateKernel(model).diag(X), ntkit.ConjugateKernel(plain()).diag(X))
        torch.testing.assert_close(ntkit.linearize(model)(X), model(X))
        torch.testing.assert_close(
            ntkit.infinite_width(model, X[:1]).ntk(X), ntkit.infinite_width(plain(), X[:1]).ntk(X)
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel moves the network to a device")
def test_a_wrapper_inside_a_network():
    model = nn.Sequential(plain(), nn.Tanh(), DataParallel(nn.Linear(2, 2).to(D)))
    assert_kernel(ntkit.EmpiricalNTK(model)(X), mean_kernel(model, X))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.net, self.o, self.reentrant = plain(), nn.Linear(2, 2).to(D), reentrant

    def forward(self, x):
        return self.o(checkpoint(self.net, x, use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints():
    model = Checkpointed(False)
    k = ntkit.EmpiricalNTK(model)
    assert_kernel(k(X), mean_kernel(model, X))
    assert {row.way for row in k.explain(X).rows} == {"structure"}
    inside = nn.Sequential(nn.Linear(3, 3).to(D), Checkpointed(True), nn.Tanh())
    with pytest.raises(TypeError, match=r"^1 uses reentrant checkpoints.*use_reentrant=False"):
        ntkit.EmpiricalNTK(inside)(X)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_networks_of_jit_are_refused_by_name():
    scripted = torch.jit.script(plain())
    part = nn.Sequential(nn.Linear(3, 3).to(D), torch.jit.trace(plain(), X))
    for call in (ntkit.EmpiricalNTK, ntkit.ConjugateKernel, ntkit.linearize):
        with pytest.raises(TypeError, match=r"the model is compiled by torch.jit .*Give the torch.nn.Module"):
            call(scripted)
        with pytest.raises(TypeError, match=r"^1 is compiled by torch.jit"):
            call(part)
    with pytest.raises(TypeError, match="compiled by"):
        ntkit.infinite_width(scripted, X[:1])


class LoRA(nn.Module):
    """A low-rank adapter that can be switched off, scaled and merged, as peft's."""

    def __init__(self, base, dora=False):
        super().__init__()
        self.base, self.dora = base.requires_grad_(False), dora
        self.a, self.b = (
            nn.Linear(base.in_features, 2, False).to(D),
            nn.Linear(2, base.out_features, False).to(D),
        )
        self.size = nn.Parameter(base.weight.norm(dim=1).detach().clone()) if dora else None
        self.scaling, self._disabled, self.merged = {"default": 2.0}, False, []

    def merge(self):
        with torch.no_grad():
            self.base.weight += self.scaling["default"] * self.b.weight @ self.a.weight
        self.merged.append("default")

    def forward(self, x):
        y = self.base(x)
        if self._disabled or self.merged:
            return y
        update = self.scaling["default"] * self.b(self.a(x))
        if not self.dora:
            return y + update
        w = self.base.weight + self.scaling["default"] * self.b.weight @ self.a.weight
        scale = self.size / w.norm(dim=1).detach()
        return scale * (y - self.base.bias + update) + self.base.bias


@pytest.mark.filterwarnings("ignore:No output depends on the parameter")
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_switched_scaled_and_merged(dora):
    torch.manual_seed(0)
    model = nn.Sequential(LoRA(nn.Linear(3, 6).to(D), dora), nn.GELU(), LoRA(nn.Linear(6, 4).to(D), dora))
    model.append(nn.Linear(4, 2).to(D))
    k = ntkit.EmpiricalNTK(model)

    def holds():
        for _ in range(2):
            assert_kernel(k(X), mean_kernel(model, X))

    holds()
    assert {row.way for row in k.explain(X).rows} <= {"structure", "formed"}
    model[0].scaling["default"] = 0.5
    holds()
    model[0]._disabled = True
    holds()
    model[0]._disabled = False
    holds()
    model[2].merge()
    holds()
