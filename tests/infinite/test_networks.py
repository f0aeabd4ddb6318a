"""Limits of networks of many kinds against finite draws of the same networks."""

import pytest
import torch
from torch.func import functional_call, jacrev, vmap
from wide_networks import CASES, Net, mlp, resnet18, rnn

import ntkit

SIGMAS = {"sigma_w": 1.4, "sigma_b": 0.3}
NINE = [name for name, case in CASES.items() if case.issue]


def pair(case, width, samples=2**11):
    x = case.inputs(width)
    limit = ntkit.infinite_width(case.network(width), x[:1], samples=samples, **SIGMAS)
    return x, limit


def misses(found, mean, error, z, bias):
    """Return by how much the allowed distance is exceeded, and that distance, in units of the kernel."""
    scale = found.abs().max()
    allowed = z * error + bias * scale
    return float(((found - mean).abs() - allowed).max() / scale), float(allowed.max() / scale)


SLOW = ("ResNet", "RNN", "GRU", "LSTM", "GRUCell", "transformer layer", "group norm and groups", "U-Net")
SLOW += ("squeeze and excitation", "depthwise convolution")  # golden kernels, other cells, the zoo have these


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_the_limit_is_met_by_finite_draws(name):
    # allowed: four standard errors, and 4 / width of the kernel for the bias of finite width
    width, case = 192, CASES[name]
    x, limit = pair(case, width)
    drawn = ntkit.monte_carlo(case.network(width), 20, x, seed=1, **SIGMAS)
    for found, mean, error in (
        (limit.nngp(x), drawn.nngp, drawn.nngp_error),
        (limit.ntk(x), drawn.ntk, drawn.ntk_error),
    ):
        over, allowed = misses(found, mean, error, 4, 4 / width)
        assert over <= 0
        assert allowed < 0.4  # a factor of 2 that is wrong is seen


@pytest.mark.slow
@pytest.mark.parametrize("name", NINE)
def test_the_limit_is_met_at_width_2048(name):
    width, case = 2048, CASES[name]
    x, limit = pair(case, width, 2**14)
    drawn = ntkit.monte_carlo(case.network(width), 48, x, seed=1, **SIGMAS)
    assert misses(limit.nngp(x), drawn.nngp, drawn.nngp_error, 3, 0)[0] <= 0
    assert misses(limit.ntk(x), drawn.ntk, drawn.ntk_error, 3, 0)[0] <= 0


@pytest.mark.slow
def test_resnet_18_on_small_pictures():
    x = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limit = ntkit.infinite_width(resnet18(16).double().eval(), x[:1], samples=2**12, **SIGMAS)
    nngp, ntk = limit.nngp(x), limit.ntk(x)
    drawn = ntkit.monte_carlo(resnet18(64).double().eval(), 12, x, seed=1, **SIGMAS)
    assert misses(nngp, drawn.nngp, drawn.nngp_error, 4, 8 / 64)[0] <= 0
    assert misses(ntk, drawn.ntk, drawn.ntk_error, 4, 8 / 64)[0] <= 0
    assert (drawn.ntk_error / ntk).max() < 0.2  # else a wrong factor could pass


def draws(model, x, count, sigma_w, sigma_b):
    """Return the kernels of many draws of a network of linear layers, ``[count, n, n]`` each."""
    generator = torch.Generator().manual_seed(1)
    parameters = dict(model.named_parameters())
    factors = {k: sigma_w / w.shape[1] ** 0.5 if w.ndim == 2 else sigma_b for k, w in parameters.items()}

    def outputs(weights):
        return functional_call(model, {k: factors[k] * w for k, w in weights.items()}, (x,))

    nngp, ntk = [], []
    for _ in range(count // 500):
        weights = {
            k: torch.randn(500, *w.shape, generator=generator, dtype=w.dtype) for k, w in parameters.items()
        }
        jacobians = vmap(jacrev(outputs))(weights)
        grams = [torch.einsum("saop,sbop->sab", j, j) / j.shape[2] for j in map(flat, jacobians.values())]
        nngp.append(grams[-1] + grams[-2])  # the last layer, integrated out
        ntk.append(sum(grams))
    return torch.cat(nngp), torch.cat(ntk)


def flat(jacobian):
    return jacobian.flatten(3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh MLP", "RNN"])
def test_the_bias_of_smooth_networks_falls_like_one_over_width(name):
    # K(width) = K + a / width, fitted to widths 8, 16, 32: it meets K, and a is seen
    build = {"tanh MLP": lambda w: mlp(w, torch.nn.Tanh, depth=3), "RNN": rnn}[name]
    x = CASES[name].inputs(8, 2)[:, :3] if name == "RNN" else CASES[name].inputs(8, 2)
    limit = ntkit.infinite_width(build(8).double(), x[:1], sigma_w=2.0, sigma_b=0.3, samples=2**14)
    widths, counts = torch.tensor([8.0, 16.0, 32.0], dtype=torch.float64), (40_000, 40_000, 20_000)
    drawn = [draws(build(int(w)).double(), x, n, 2.0, 0.3) for w, n in zip(widths, counts, strict=True)]
    slopes = []
    for kernel, found in zip((limit.nngp(x), limit.ntk(x)), zip(*drawn, strict=True), strict=True):
        means = torch.stack([k.mean(0) for k in found]).flatten(1)
        errors = torch.stack([k.std(0) / len(k) ** 0.5 for k in found]).flatten(1)
        for i, expected in enumerate(kernel.flatten()):
            design = torch.stack([torch.ones(3), 1 / widths], 1).double() / errors[:, i, None]
            covariance = torch.linalg.inv(design.T @ design)
            fit = covariance @ design.T @ (means[:, i] / errors[:, i])
            error = covariance.diagonal().sqrt()
            curved = means[:, i] - fit[0] - fit[1] / widths
            assert abs(fit[0] - expected) < 4 * error[0] + 2e-3 * kernel.max()  # 1 / width^2 is left out
            assert (curved.abs() < 4 * errors[:, i] + 2e-3 * kernel.max()).all()
            slopes.append(abs(fit[1] / error[1]))
    assert max(slopes) > 5


# the sharing of weights, which the end of a sequence alone cannot see


def linear_rnn(x, w2, b2):
    """Return NNGP and NTK of h_t = V x_t + W h_(t-1), read out as the mean over time: closed sums."""
    n, steps, d = x.shape
    gram = torch.einsum("itd,jsd->ijts", x, x) / d
    k = torch.zeros(n, n, steps, steps, dtype=x.dtype)
    theta = torch.zeros_like(k)
    for t in range(steps):
        for s in range(steps):
            before, trained = (k[:, :, t - 1, s - 1], theta[:, :, t - 1, s - 1]) if t and s else (0, 0)
            own = w2 * (gram[:, :, t, s] + before) + 2 * b2
            own = own if t and s else w2 * gram[:, :, t, s] + 2 * b2
            k[:, :, t, s], theta[:, :, t, s] = own, own + w2 * trained
    k, theta = k.mean((2, 3)), theta.mean((2, 3))
    return w2 * k + b2, w2 * k + b2 + w2 * theta


def test_a_linear_rnn_with_shared_weights_is_a_closed_sum():
    x = CASES["RNN"].inputs(8)
    limit = ntkit.infinite_width(rnn(64, lambda h: h).double(), x[:1], **SIGMAS)
    nngp, ntk = linear_rnn(x, 1.4**2, 0.3**2)
    torch.testing.assert_close(limit.nngp(x), nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(limit.ntk(x), ntk, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_weights_of_their_own_at_each_step_are_another_network():
    x = CASES["RNN"].inputs(8)

    def of(s, x):
        h, states = x.new_zeros(len(x), 64), []
        for t in range(x.shape[1]):
            h = torch.tanh(s.get_submodule(f"i{t}")(x[:, t]) + s.get_submodule(f"h{t}")(h))
            states.append(h)
        return s.o(torch.stack(states, 1).mean(1))

    layers = {f"{k}{t}": torch.nn.Linear(3 if k == "i" else 64, 64) for t in range(5) for k in "ih"}
    apart = ntkit.infinite_width(Net(of, **layers, o=torch.nn.Linear(64, 1)).double(), x[:1], **SIGMAS)
    shared = ntkit.infinite_width(CASES["RNN"].network(64), x[:1], samples=2**12, **SIGMAS)
    drawn = ntkit.monte_carlo(CASES["RNN"].network(192), 20, x, seed=1, **SIGMAS)
    assert misses(shared.ntk(x), drawn.ntk, drawn.ntk_error, 4, 0.02)[0] <= 0
    assert misses(apart.ntk(x), drawn.ntk, drawn.ntk_error, 4, 0.02)[0] > 0.2
