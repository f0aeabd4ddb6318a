"""Limits estimated from finite draws: against hand-written recursions, and what must stay as it is."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import ntkit


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mlp(width, outputs=1):
    sizes = (4, width, width, outputs)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def recursion(x1, x2, depth, weight, bias):
    """Return NNGP and NTK of a ReLU network by the arc-cosine recursion; arguments are squared sigmas."""
    d = x1.shape[1]
    h, hd1, hd2 = x1 @ x2.T / d, x1.square().sum(1) / d, x2.square().sum(1) / d
    slope, theta = torch.zeros(()), torch.zeros(())
    for _ in range(depth + 1):
        k, d1, d2 = weight * h + bias, weight * hd1 + bias, weight * hd2 + bias
        theta = k + weight * slope * theta
        norm = (d1[:, None] * d2).sqrt()
        angle = torch.arccos((k / norm).clamp(-1, 1))
        h = norm * (torch.sin(angle) + (math.pi - angle) * k / norm) / (2 * math.pi)
        hd1, hd2, slope = d1 / 2, d2 / 2, (math.pi - angle) / (2 * math.pi)
    return k, theta


def within(found, error, expected, z=4.0, bias=0.0):
    assert ((found - expected).abs() <= z * error + bias * expected.abs().max()).all(), (
        found - expected
    ) / error


def test_a_wide_mlp_agrees_with_the_arc_cosine_recursion():
    x1, x2 = inputs(4, 4), inputs(3, 4).flip(1)
    limit = ntkit.monte_carlo(mlp(768), 24, x1, x2, sigma_w=1.4, sigma_b=0.3)
    nngp, ntk = recursion(x1, x2, 2, 1.4**2, 0.3**2)
    assert limit.nngp.shape == limit.ntk_error.shape == (4, 3) and limit.samples == 24
    within(limit.nngp, limit.nngp_error, nngp)
    within(limit.ntk, limit.ntk_error, ntk)
    assert limit.nngp_error.max() < 0.05 * nngp.max()  # one output: averaging alone would give 0.3


def test_the_standard_parameterization_is_that_of_the_network_as_torch_draws_it():
    x = inputs(3, 4)
    width = 512
    limit = ntkit.monte_carlo(mlp(width), 20, x, parameterization="standard")
    # Var(W) = Var(b) = 1 / (3 fan_in); the gradients of W carry no factor
    h, hd = x @ x.T, x.square().sum(1)
    theta, fans = torch.zeros(()), (4, width, width)
    slope = torch.zeros(())
    for fan in fans:
        k, d = (h + 1) / (3 * fan), (hd + 1) / (3 * fan)
        theta = h + 1 + slope * theta
        norm = d.outer(d).sqrt()
        angle = torch.arccos((k / norm).clamp(-1, 1))
        h = width * norm * (torch.sin(angle) + (math.pi - angle) * k / norm) / (2 * math.pi)
        hd, slope = width * d / 2, width / (3 * width) * (math.pi - angle) / (2 * math.pi)
    within(limit.ntk, limit.ntk_error, theta, bias=0.1)  # four inputs: the first layer is not Gaussian
    within(limit.nngp, limit.nngp_error, k, bias=0.1)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_the_last_layer_integrated_out_is_the_mean_over_its_draws(parameterization):
    class Skip(nn.Module):  # not linear in its last layer: outputs are averaged
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + 1e-12 * self.inner(x) ** 2 + 1e-300 + 0 * self.inner[0].weight.sum()

    x, model = inputs(3, 4), mlp(16, outputs=300)
    options = {"sigma_b": 0.5, "parameterization": parameterization, "seed": 5}
    exact = ntkit.monte_carlo(model, 2, x, **options)
    plain = ntkit.monte_carlo(Skip(model), 2, x, **options)
    assert not torch.equal(exact.nngp, plain.nngp)
    torch.testing.assert_close(exact.nngp, plain.nngp, rtol=0, atol=0.3 * exact.nngp.max().item())
    torch.testing.assert_close(exact.ntk, plain.ntk, rtol=1e-6, atol=1e-6)


def test_a_readout_averaged_over_time_is_integrated_out():
    class Recurrent(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.rnn, self.out, self.first = nn.RNN(3, 64, batch_first=True), nn.Linear(64, 1), first

        def forward(self, x):
            h = self.rnn(x)[0]
            return self.out(h.mean(1)) if self.first else self.out(h).mean(1)

    x = inputs(3, 4, 3)
    a, b = (ntkit.monte_carlo(Recurrent(first).double(), 3, x, sigma_b=0.1) for first in (True, False))
    torch.testing.assert_close(a.nngp, b.nngp)
    torch.testing.assert_close(a.ntk, b.ntk)
    assert a.nngp_error.max() < 0.3 * a.nngp.max()


def test_seeds_decide_and_nothing_else_changes():
    model = nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    ).double()
    model(inputs(6, 2, 5))  # running statistics that are not the initial ones
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, state = inputs(3, 2, 5), torch.get_rng_state()
    for parameterization in ("ntk", "standard"):
        options = {"parameterization": parameterization}
        a, b, c = (ntkit.monte_carlo(model, 3, x, seed=s, **options) for s in (1, 1, 2))
        assert torch.equal(a.nngp, b.nngp) and torch.equal(a.ntk, b.ntk)
        assert torch.equal(a.ntk_error, b.ntk_error) and not torch.equal(a.ntk, c.ntk)
        more = ntkit.monte_carlo(model, 4, x, seed=1, **options)
        last = 4 * more.ntk - 3 * a.ntk  # the fourth draw alone: the first three were the same
        assert (torch.linalg.eigvalsh(last) > -1e-9).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())


def test_the_statistics_of_batch_norm_are_the_models():
    def made(mean):
        norm = nn.BatchNorm1d(4, affine=False).double().eval()
        norm.running_mean.fill_(mean)
        return nn.Sequential(norm, nn.Linear(4, 2, bias=False)).double().eval()

    x = inputs(3, 4)
    for parameterization in ("ntk", "standard"):
        zero, one = (ntkit.monte_carlo(made(m), 2, x, parameterization=parameterization) for m in (0.0, 1.0))
        h = x / (1 + 1e-5) ** 0.5
        factor = 2 / 4 if parameterization == "ntk" else 1
        torch.testing.assert_close(zero.ntk, factor * h @ h.T)
        shifted = (x - 1) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(one.ntk, factor * shifted @ shifted.T)


def test_tied_weights_and_attention_run():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 16)
            self.positions = nn.Parameter(0.02 * torch.randn(5, 16))
            self.layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
            self.decoder = nn.Linear(16, 9, bias=False)
            self.decoder.weight = self.embedding.weight

        def forward(self, x):
            return self.decoder(self.layer(self.embedding(x) + self.positions).mean(1))

    x = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(0))
    limit = ntkit.monte_carlo(Network().double().eval(), 4, x, sigma_b=0.1)
    assert torch.isfinite(limit.ntk).all() and (limit.ntk_error >= 0).all()
    assert torch.allclose(limit.nngp, limit.nngp.T)
    with pytest.raises(ntkit.NtkitError, match=r"the model \(Network\) has the parameter 'positions'"):
        ntkit.monte_carlo(Network().double().eval(), 4, x, parameterization="standard")


def test_the_repr_says_what_it_is_worth():
    text = repr(ntkit.monte_carlo(mlp(8), 3, inputs(2, 4)))
    assert text.startswith("Estimate from 3 draws, 2 x 2 pairs: nngp up to ")
    assert text.count("standard error up to") == 2


def test_refusals():
    model, x = mlp(8), inputs(2, 4)
    for samples in (1, 2.5, True, x):
        with pytest.raises(ntkit.NtkitError, match="at least 2"):
            ntkit.monte_carlo(model, samples, x)
    with pytest.raises(ntkit.NtkitError, match="expected 'ntk' or 'standard'"):
        ntkit.monte_carlo(model, 2, x, parameterization="mup")
    with pytest.raises(ntkit.NtkitError, match=r"Expected a torch\.nn\.Module"):
        ntkit.monte_carlo(lambda w, x: x, 2, x)
    with pytest.raises(ntkit.NtkitError, match="No sigma is given for '2'"):
        ntkit.monte_carlo(model, 2, x, sigma_w={"0": 1.0})
    with pytest.raises(ntkit.NtkitError, match="Bilinear"):
        ntkit.monte_carlo(nn.Bilinear(2, 2, 2), 2, (x[:, :2].float(), x[:, 2:].float()))
    with pytest.raises(ntkit.NtkitError, match="not initialized"):
        ntkit.monte_carlo(nn.LazyLinear(3), 2, x, parameterization="standard")
    with pytest.raises(ntkit.NtkitError, match="NaN"):
        ntkit.monte_carlo(model, 2, x * torch.nan)
    with pytest.raises(ntkit.NtkitError, match="training mode"):
        ntkit.monte_carlo(nn.Sequential(model, nn.BatchNorm1d(1)).double(), 2, x)
