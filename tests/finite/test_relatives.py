import pytest
import torch
from networks import CASES, build, jacobian
from torch import nn

import ntkit
from ntkit.finite.written_out import WrittenOut

NO_SECOND_DERIVATIVE = {
    "embedding bag, mean",
    "embedding bag, sum",
    "embedding bag, max",
    "a custom backward",
}


def moved(network, size):
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, dtype=p.dtype, generator=g))


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_SECOND_DERIVATIVE))
def test_the_linearized_network_is_its_first_order(name):
    model, x = build(name)
    lazy = ntkit.linearize(model)
    torch.testing.assert_close(lazy(x), model(x), rtol=1e-12, atol=1e-12)
    moved(lazy, 0.1)
    steps = [(q - p).reshape(-1) for p, q in zip(model.parameters(), lazy.network.parameters(), strict=True)]
    expected = model(x).reshape(len(x), -1) + jacobian(model, x) @ torch.cat(steps)
    if name not in ("embedding", "tied embedding and decoder"):  # the padding row moves, but has no gradient
        torch.testing.assert_close(lazy(x).reshape(len(x), -1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["MLP", "MultiheadAttention", "weight norm", "LSTM", "layer norm", "RMS norm"]
)
def test_taylor_polynomials_fall_with_their_order(name):
    model, x = build(name)
    for order in (0, 1, 2, 3):
        errors = []
        for size in (1e-2, 5e-3):
            polynomial = ntkit.taylor(model, order)
            moved(polynomial, size)
            errors.append((polynomial(x) - polynomial.network(x)).abs().max().item())
        ratio = errors[0] / errors[1]
        assert 2 ** (order + 1) * 0.8 < ratio < 2 ** (order + 1) * 1.3, (order, errors)


def test_the_linearized_network_trains_with_its_kernel():
    model, x = build("MLP")
    y = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lazy = ntkit.linearize(model)
    k = ntkit.EmpiricalNTK(model, outputs="full")(x).transpose(1, 2).reshape(12, 12)
    f = model(x).detach().reshape(-1)
    optimizer = torch.optim.SGD(lazy.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * (lazy(x) - y).square().sum() / 4).backward()
        optimizer.step()
        f = f - 0.05 / 4 * k @ (f - y.reshape(-1))
    torch.testing.assert_close(lazy(x).detach().reshape(-1), f, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(lazy.origin, model.parameters(), strict=True))


def test_taylor_refuses():
    for order in (-1, 1.5, True):
        with pytest.raises(ntkit.NtkitError, match="whole number"):
            ntkit.taylor(nn.Linear(2, 2), order)
    with pytest.raises(ntkit.NtkitError, match=r"torch\.nn\.Module"):
        ntkit.linearize(lambda x: x)
    model, x = build("embedding bag, mean")
    with pytest.raises(ntkit.NtkitError, match="without the derivatives"):
        ntkit.taylor(model, 2)(x)


def test_conjugate_kernel_is_the_last_weights_part():
    for name in ("MLP", "conv, circular padding", "a layer used three times"):
        model, x = build(name)
        last = [k for k, _ in model.named_parameters() if k.endswith("weight")][-1]
        part = ntkit.EmpiricalNTK(model, params=last)
        k = ntkit.ConjugateKernel(model)
        torch.testing.assert_close(k(x, x[:2]), part(x, x[:2]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(k.diag(x), part.diag(x), rtol=1e-12, atol=1e-12)
    model, x = build("a branch on the data")
    with pytest.raises(ntkit.NtkitError, match="branches on them"):
        ntkit.ConjugateKernel(model)(x)


def test_ntk_parametrization():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).double()
    state = torch.get_rng_state()
    copy = ntkit.ntk_parametrize(model, sigma_w=1.5, sigma_b=0.3, seed=7)
    again = ntkit.ntk_parametrize(model, sigma_w=1.5, sigma_b=0.3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), again.parameters(), strict=True))
    w = copy[4].parametrizations.weight.original
    torch.testing.assert_close(copy[4].weight, 1.5 / 128**0.5 * w)
    torch.testing.assert_close(copy[0].weight, 1.5 / 27**0.5 * copy[0].parametrizations.weight.original)
    torch.testing.assert_close(copy[4].bias, 0.3 * copy[4].parametrizations.bias.original)
    assert 0.8 < w.std() < 1.2
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    j = jacobian(copy, x)
    k = ntkit.EmpiricalNTK(copy, outputs="full")
    torch.testing.assert_close(k(x), torch.einsum("nop,mqp->nmoq", j, j), rtol=1e-10, atol=1e-10)
    assert {row.way for row in k.explain(x).rows} == {"structure"}
    with pytest.raises(ntkit.NtkitError, match="No sigma is given for '4'"):
        ntkit.ntk_parametrize(model, sigma_w={"0": 1.0}, seed=0)


def test_the_ntk_of_a_wide_network_tends_to_its_limit():
    width, x = (
        4096,
        torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))),
    )
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))
    k = torch.stack(
        [ntkit.EmpiricalNTK(ntkit.ntk_parametrize(model, 2**0.5, 0.0, seed=s))(x) for s in range(8)]
    )
    cos = (x @ x.T).clamp(-1, 1).double()
    angle = torch.arccos(cos)
    nngp = (torch.sin(angle) + (torch.pi - angle) * cos) / torch.pi / 2  # arc-cosine kernel of degree 1
    expected = 2 / 4 * (nngp * 2) + 2 / 4 * cos * (torch.pi - angle) / torch.pi
    error = (k.double().mean(0) - expected).abs()
    assert (error <= 4 * k.double().std(0) / 8**0.5 + 1e-4).all()


@pytest.mark.parametrize("kind", ["rademacher", "sparse"])
def test_projections_are_unbiased(kind):
    model, x = build("conv, zero padding")
    k = ntkit.EmpiricalNTK(model, outputs="full")
    exact = k(x)
    draws = []
    for seed in range(60):
        z = k.features(x, 64, seed=seed, kind=kind)
        assert z.shape == (3, 2, 64)
        draws.append(torch.einsum("nom,kpm->nkop", z, z))
    draws = torch.stack(draws)
    z_score = (draws.mean(0) - exact).abs() / (draws.std(0) / 60**0.5)
    assert z_score.max() < 4
    assert (draws.std(0) / exact.abs().max()).max() < 0.3
    small = ntkit.EmpiricalNTK(model, outputs="full", memory=2000)
    torch.testing.assert_close(
        small.features(x, 64, seed=5, kind=kind), k.features(x, 64, seed=5, kind=kind), rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ntkit.NtkitError, match="project=0"):
        k.features(x, 0)


def test_written_out_operations_are_torchs_own():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, generator=g)
    for layer in (
        nn.LayerNorm([5, 5]),
        nn.GroupNorm(2, 4),
        nn.RMSNorm([5]),
        nn.RMSNorm([5], eps=0.1),
        nn.BatchNorm2d(4).eval(),
        nn.BatchNorm2d(4),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 3)),
    ):
        layer = layer.double()
        with torch.no_grad():
            for p in [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]:
                p.add_(torch.rand(p.shape, dtype=p.dtype, generator=g))
        expected = layer(x)
        with WrittenOut():
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_wrong_higher_derivative_is_found():
    class Wrong(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.slope = 3 * inputs[0].detach() ** 2

        @staticmethod
        def jvp(ctx, t):
            return ctx.slope * t

    class Cubic(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x):
            return Wrong.apply(self.linear(x))

    polynomial = ntkit.taylor(Cubic(), 2)
    moved(polynomial, 0.1)
    with pytest.raises(ntkit.NtkitError, match="differs from finite differences"):
        polynomial(torch.randn(4, 3, dtype=torch.float64))
