"""The orders of summation give the same kernel, symmetric or not."""

import pytest
import torch
from networks import build, jacobian
from torch import nn

import ntkit
from ntkit.compute.gemm import gram
from ntkit.finite import products
from ntkit.finite.kinds import FULL, TRACE


@pytest.mark.parametrize("order", ["features", "one-sided", "gram"])
@pytest.mark.parametrize(
    "name",
    [
        "conv, groups, 'same', dilation",
        pytest.param("transposed conv", marks=pytest.mark.slow),
        "tied embedding and decoder",
        "embedding",
        "TransformerEncoderLayer",
        "LSTM",
    ],
)
def test_every_order_gives_the_kernel(monkeypatch, name, order):
    chosen = products.cheapest

    def forced(a, b, kind, item):
        found, flops = chosen(a, b, kind, item)
        return (found, flops) if found == "direct" else (order, flops)

    monkeypatch.setattr(products, "cheapest", forced)
    model, x = build(name)
    j = jacobian(model, x)
    full = torch.einsum("nop,mqp->nmoq", j, j)
    diagonal = torch.diagonal(full, dim1=2, dim2=3)
    for outputs, expected in (("full", full), ("diagonal", diagonal), ("trace", diagonal.sum(-1))):
        for memory in ("1GiB", "20kB") if outputs == "full" else ("1GiB",):
            k = ntkit.EmpiricalNTK(model, outputs=outputs, memory=memory)
            for found, wanted in ((k(x), expected), (k(x[:2], x), expected[:2])):
                assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def test_large_symmetric_products_are_done_by_half():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 5),
    ).double()  # fmt: skip
    x = torch.randn(20, 3, 8, 8, dtype=torch.float64)
    for outputs in ("full", "trace"):
        k = ntkit.EmpiricalNTK(model, outputs=outputs)
        torch.testing.assert_close(k(x), k(x, x.clone()), rtol=1e-11, atol=1e-12)
    a = torch.randn(301, 1000, dtype=torch.float64)
    torch.testing.assert_close(gram(a), a @ a.T, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("groups", "channels", "size"), [(2, 4, 3), (4, 8, 1), (3, 3, 2)])
def test_grouped_convolutions_to_one_pixel(groups, channels, size):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(groups, channels * groups, size, groups=groups), nn.Tanh(), nn.Flatten(),
        nn.Linear(channels * groups, 3),
    ).double()  # fmt: skip
    x = torch.randn(5, groups, size, size, dtype=torch.float64)
    j = jacobian(model, x)
    full = torch.einsum("nop,mqp->nmoq", j, j)
    for outputs, wanted in (("full", full), ("trace", torch.diagonal(full, dim1=2, dim2=3).sum(-1))):
        for memory in ("1GiB", "2kB"):
            k = ntkit.EmpiricalNTK(model, outputs=outputs, memory=memory)
            assert (k(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max()
            assert (k(x[:2], x) - wanted[:2]).abs().max() <= 1e-10 * wanted.abs().max()
            assert "conv" in str(k.explain(x))


def test_the_cheapest_order_follows_the_shapes():
    few, many = (16, 10, 1, 1024, 64, 576), (16, 10, 1, 16, 512, 4608)
    assert products.cheapest(few, few, FULL, 4)[0] == "features"
    assert products.cheapest(many, many, FULL, 4)[0] == "one-sided"
    assert products.cheapest(many, many, TRACE, 4)[0] == "gram"


def test_factors_taken_in_another_thread_as_on_a_device(monkeypatch):
    """On a device autograd runs hooks in a thread of its own, which knows no level of vmap."""
    from threading import Thread

    from ntkit.finite.jacobian import recipe

    handing, ran = recipe._handing, []

    def elsewhere(*args):
        hook = handing(*args)

        def threaded(g):
            found = []
            thread = Thread(target=lambda: found.append(hook(g)))
            thread.start()
            thread.join()
            ran.append(found[0])
            return found[0]

        return threaded

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(40, 3)).double().eval()
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    expected = ntkit.EmpiricalNTK(model)(x)
    monkeypatch.setattr(recipe, "_handing", elsewhere)
    torch.testing.assert_close(ntkit.EmpiricalNTK(model)(x), expected, rtol=1e-12, atol=1e-12)
    assert ran
