"""Limits of networks of many kinds against finite draws of the same networks."""

import pytest
import torch
from wide_networks import CASES, Net, rnn

import ntkit

SIGMAS = {"sigma_w": 1.4, "sigma_b": 0.3}
NINE = [name for name, case in CASES.items() if case.issue]
SMOOTH = ["tanh MLP", "RNN", "GRU"]


def pair(case, width, samples=2**12):
    x = case.inputs(width)
    limit = ntkit.infinite_width(case.network(width), x[:1], samples=samples, **SIGMAS)
    return x, limit


def misses(found, mean, error, z, bias):
    """Return by how much the allowed distance is exceeded, and the allowed distance, in units of the kernel."""
    scale = found.abs().max()
    allowed = z * error + bias * scale
    return float(((found - mean).abs() - allowed).max() / scale), float(allowed.max() / scale)


@pytest.mark.parametrize("name", CASES)
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
    drawn = ntkit.monte_carlo(case.network(width), 24, x, seed=1, **SIGMAS)
    assert misses(limit.nngp(x), drawn.nngp, drawn.nngp_error, 3, 0)[0] <= 0
    assert misses(limit.ntk(x), drawn.ntk, drawn.ntk_error, 3, 0)[0] <= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_the_bias_falls_like_one_over_width(name):
    case = CASES[name]
    x, limit = pair(case, 16, 2**15)
    ntk, bias, error = limit.ntk(x), {}, {}
    for width in (16, 32, 64):
        drawn = ntkit.monte_carlo(case.network(width), 128_000 // width, x, seed=3, **SIGMAS)
        bias[width], error[width] = drawn.ntk - ntk, drawn.ntk_error
    at = (bias[16] / error[16]).abs().argmax()  # the entry in which the bias is seen best
    b, e = ({w: v.flatten()[at].item() for w, v in d.items()} for d in (bias, error))
    assert abs(b[16]) > 6 * e[16]
    for width in (32, 64):
        assert abs(width * b[width] - 16 * b[16]) < 3 * (width * e[width] + 16 * e[16]) + 0.25 * 16 * abs(b[16])
    assert abs(b[64]) < 0.5 * abs(b[16])


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
