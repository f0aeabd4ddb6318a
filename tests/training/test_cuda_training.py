"""Runs on a device: their accounts close there, and say the same on the processor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 2, padding=1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    )


def dropped():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))


def trained(folder, build, dtype, optimizer, device="cuda"):
    torch.manual_seed(0)
    net = build().to(dtype)
    x, y = torch.randn(24, 6, dtype=dtype), torch.arange(24) % 3
    net, x, y = net.to(device), x.to(device), y.to(device)
    made = optimizer(net.parameters())
    with ntkit.record(folder, net, made) as run:
        for _ in range(3):
            for batch in torch.randperm(24).split(8):
                run.batch(batch)
                made.zero_grad()
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                made.step()
    return net, x, y


OPTIMIZERS = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", [mlp, conv, dropped])
def test_an_account_on_cuda_closes(tmp_path, build, optimizer):
    net, x, y = trained(tmp_path, build, torch.float64, OPTIMIZERS[optimizer])
    a = ntkit.account(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:3], tol=1e-8)
    assert a.converged
    net.eval()
    torch.testing.assert_close(
        torch.as_tensor(a.prediction).cpu(), net(x[:3]).detach().cpu(), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("build", [mlp, conv])
def test_a_run_on_cuda_is_accounted_for_on_the_processor(tmp_path, build):
    net, x, y = trained(tmp_path, build, torch.float64, OPTIMIZERS["adamw"])
    there = ntkit.account(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:3], tol=1e-8)
    here = ntkit.account(
        tmp_path, net.cpu(), F.cross_entropy, train=(x.cpu(), y.cpu()), queries=x[:3].cpu(), tol=1e-8
    )
    assert here.converged
    assert abs(here.contributions - there.contributions).max() <= 1e-6 * abs(there.contributions).max()


def test_a_float32_run_on_cuda(tmp_path):
    net, x, y = trained(tmp_path, conv, torch.float32, OPTIMIZERS["sgd"])
    a = ntkit.account(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:3], tol=1e-4)
    assert a.converged


def test_a_run_that_mixes_precisions(tmp_path):
    torch.manual_seed(0)
    net = mlp().cuda()
    x, y = torch.randn(24, 6).cuda(), (torch.arange(24) % 3).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ntkit.record(tmp_path, net, optimizer) as run:
        for batch in torch.arange(24).split(8):
            run.batch(batch)
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    a = ntkit.account(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:3], tol=1e-3)
    assert a.converged


def test_a_path_kernel_on_cuda(tmp_path):
    net, x, _ = trained(tmp_path, mlp, torch.float64, OPTIMIZERS["sgd"])
    found = ntkit.PathKernel(tmp_path, net)(x[:4])
    there = ntkit.PathKernel(tmp_path, net.cpu())(x[:4].cpu())
    assert found.is_cuda
    assert (found.cpu() - there).abs().max() <= 1e-8 * there.abs().max()
