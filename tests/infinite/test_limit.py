"""What every limit obeys: blocks, inputs that are alike, precision, scales, and its kernels as kernels."""

import math

import pytest
import torch
from sklearn.base import clone
from torch import nn
from wide_networks import CASES, Net, mlp

import ntkit

SIGMAS = {"sigma_w": 1.4, "sigma_b": 0.3}
SAMPLED = {
    "post-activation ResNet block",
    "max pooling",
    "softmax attention",
    "squeeze and excitation",
    "GLU",
}
LAWFUL = [
    "relu MLP",
    "tanh MLP",
    "ELU and Hardtanh",
    "siamese product",
    "concatenation with the input",
    "a skip around a norm",
    "group norm and groups",
    "convolutions with stride, dilation, pooling",
    "class token",
    "embedding",
    *sorted(SAMPLED),
]
VECTORS = ["relu MLP", "tanh MLP", "ELU and Hardtanh", "leaky ReLU and GELU", "post-activation ResNet block"]


def limit_of(name, dtype=torch.float64, **settings):
    case = CASES[name]
    model = case.network(32).to(dtype)
    return ntkit.infinite_width(model, cast(case.inputs(32, 1), dtype), samples=2**10, **SIGMAS, **settings)


def cast(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x


def kernels(limit):
    return limit.nngp, limit.ntk


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=float(tolerance * expected.abs().max()))


@pytest.mark.parametrize("name", LAWFUL)
def test_blocks_are_those_of_one_symmetric_positive_kernel(name):
    x, exact = CASES[name].inputs(32, 7), 1e-8 if name in SAMPLED else 1e-12
    for k in kernels(limit_of(name)):
        whole = k(x)
        close(whole.T, whole, exact)
        assert torch.linalg.eigvalsh(whole).min() > 0
        close(k.diag(x), whole.diagonal(), exact)
        close(k(x[:3], x[3:]), whole[:3, 3:], exact)
        close(k(x[3:], x[:3]).T, whole[:3, 3:], exact)
        order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
        close(k(x[order]), whole[order][:, order], exact)


@pytest.mark.parametrize("name", LAWFUL)
def test_blocks_do_not_depend_on_the_tiles(name):
    x, exact = CASES[name].inputs(32, 7), 1e-8 if name in SAMPLED else 1e-12
    for large, small in zip(kernels(limit_of(name)), kernels(limit_of(name, memory=1000)), strict=True):
        whole = large(x)
        close(small(x), whole, exact)
        close(small.diag(x), large.diag(x), exact)
        close(small(x[:2], x[2:]), whole[:2, 2:], exact)
        # a sample met with itself among others: its correlation of one is rounded
        close(small(x[:2], x), whole[:2], 1e-4 if name in SAMPLED else 1e-7)


@pytest.mark.parametrize("name", LAWFUL)
def test_float32_is_float64_to_rounding(name):
    x = CASES[name].inputs(32, 4)
    limit = limit_of(name)
    for single, double in zip(kernels(limit_of(name, torch.float32)), kernels(limit), strict=True):
        found, expected = single(cast(x, torch.float32)), double(x)
        assert found.dtype == torch.float32
        # rounding moves the sampled points a little
        close(found.double(), expected, 3e-5 + 0.1 * limit.error)


@pytest.mark.parametrize("name", VECTORS)
def test_equal_opposite_and_zero_inputs(name):
    one = CASES[name].inputs(32, 1)
    x = torch.cat([one, one, -one, 3 * one, torch.zeros_like(one), one * (1 + 1e-15)])
    for k in kernels(limit_of(name)):
        whole = k(x)
        scale = float(whole.abs().max())
        assert whole.isfinite().all()
        assert abs(whole[0, 1] - whole[0, 0]) <= 1e-9 * scale  # equal samples are one sample
        assert abs(whole[0, 5] - whole[0, 0]) <= 1e-6 * scale
        close(whole[0, 2:], whole[1, 2:], 1e-9)
    bare = ntkit.infinite_width(CASES[name].network(32), one, sigma_w=1.4, sigma_b=0.0)
    for k in kernels(bare):
        whole = k(x)
        assert whole.isfinite().all()
        assert whole[4].abs().max() <= 1e-7 * whole.abs().max()  # no bias: zero in, zero out


def test_correlations_of_one_and_minus_one_are_exact():
    one = CASES["relu MLP"].inputs(32, 1)
    x = torch.cat([one, one, -one, 2 * one])
    limit = ntkit.infinite_width(mlp(32, nn.ReLU, depth=1).double(), x[:1], sigma_w=2**0.5)
    size = float(one.square().sum() / 4)  # h = relu(g), E[g^2] = 2 |x|^2 / d, and relu(g) relu(-g) = 0
    nngp, ntk = limit.nngp(x), limit.ntk(x)
    torch.testing.assert_close(
        nngp[0], 2 * size * torch.tensor([1.0, 1.0, 0.0, 2.0]).double(), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        ntk[0], 4 * size * torch.tensor([1.0, 1.0, 0.0, 2.0]).double(), rtol=1e-12, atol=1e-12
    )


def arc_cosine(x1, x2, depth, w2, b2):
    """Return NNGP and NTK of a ReLU network by the arc-cosine recursion."""
    d = x1.shape[1]
    h, left, right = x1 @ x2.T / d, x1.square().sum(1) / d, x2.square().sum(1) / d
    theta = torch.zeros_like(h)
    slope = torch.zeros_like(h)
    for _ in range(depth + 1):
        k, v1, v2 = w2 * h + b2, w2 * left + b2, w2 * right + b2
        theta = k + w2 * slope * theta
        norm = (v1[:, None] * v2).sqrt()
        angle = torch.arccos((k / norm).clamp(-1, 1))
        h = norm * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
        left, right, slope = v1 / 2, v2 / 2, (math.pi - angle) / (2 * math.pi)
    return k, theta


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_relu_networks_obey_the_arc_cosine_recursion(depth):
    x1, x2 = CASES["relu MLP"].inputs(32, 4), CASES["relu MLP"].inputs(32, 6).flip(0)[:3]
    limit = ntkit.infinite_width(mlp(32, nn.ReLU, depth=depth).double(), x1[:1], **SIGMAS)
    nngp, ntk = arc_cosine(x1, x2, depth, 1.4**2, 0.3**2)
    torch.testing.assert_close(limit.nngp(x1, x2), nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(limit.ntk(x1, x2), ntk, rtol=1e-12, atol=0)


def test_scales_are_also_given_by_module_path():
    x = CASES["relu MLP"].inputs(32, 3)
    model = mlp(32, nn.ReLU, depth=1).double()
    limit = ntkit.infinite_width(model, x[:1], sigma_w={"0": 2.0, "": 1.0}, sigma_b={"2": 0.5, "": 0.0})
    first = ntkit.infinite_width(model, x[:1], sigma_w=2.0)  # sigma_w^2 = 4 in both layers
    torch.testing.assert_close(limit.nngp(x), first.nngp(x) / 4 + 0.25, rtol=1e-12, atol=0)
    torch.testing.assert_close(limit.ntk(x), first.ntk(x) / 4 + 0.25, rtol=1e-12, atol=0)


def test_the_model_is_left_as_it_is_and_its_weights_do_not_count():
    x = CASES["group norm and groups"].inputs(32, 3)
    model, other = (CASES["group norm and groups"].network(32, seed) for seed in (0, 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    limit = ntkit.infinite_width(model, x[:1], **SIGMAS)
    found = limit.ntk(x)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    torch.testing.assert_close(ntkit.infinite_width(other, x[:1], **SIGMAS).ntk(x), found, rtol=1e-12, atol=0)


# the kernels of a limit are kernels like any other


def test_the_kernels_have_parameters_and_are_cloned_without_a_copy_of_the_model():
    x = CASES["relu MLP"].inputs(32, 3)
    model = CASES["relu MLP"].network(32)
    k = ntkit.infinite_width(model, x[:1], sigma_w=1.4).ntk
    assert k.get_params()["sigma_w"] == 1.4 and k.get_params()["model"] is model
    copy = clone(k)
    assert copy is not k and copy.model is model
    torch.testing.assert_close(copy(x), k(x), rtol=0, atol=0)
    copy.set_params(sigma_w=2.0, kind="nngp")
    expected = ntkit.infinite_width(model, x[:1], sigma_w=2.0).nngp(x)
    torch.testing.assert_close(copy(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(k(x), ntkit.infinite_width(model, x[:1], sigma_w=1.4).ntk(x), rtol=0, atol=0)
    both = (k + 2.0 * copy).set_params(first__sigma_w=2.0)
    torch.testing.assert_close(
        both(x), ntkit.infinite_width(model, x[:1], sigma_w=2.0).ntk(x) + 2 * expected, rtol=1e-12, atol=0
    )


def test_the_kernels_have_an_algebra():
    x = CASES["relu MLP"].inputs(32, 3)
    model = CASES["relu MLP"].network(32)
    limit = ntkit.infinite_width(model, x[:1])
    cosine = limit.ntk.normalized()
    torch.testing.assert_close(cosine(x).diagonal(), torch.ones(3).double(), rtol=1e-12, atol=0)
    total = limit.nngp * 0.5 + limit.ntk * ntkit.EmpiricalNTK(model)
    expected = limit.nngp(x) / 2 + limit.ntk(x) * ntkit.EmpiricalNTK(model)(x)
    torch.testing.assert_close(total(x), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(total.diag(x), expected.diagonal(), rtol=1e-9, atol=0)
    moved = limit.ntk.compose(lambda x: 2 * x)
    torch.testing.assert_close(moved(x), limit.ntk(2 * x), rtol=0, atol=0)


def test_layers_are_the_lines_of_the_program_with_their_kernels():
    x = CASES["relu MLP"].inputs(32, 3)
    limit = ntkit.infinite_width(CASES["relu MLP"].network(32), x[:1], **SIGMAS)
    assert list(limit.layers) == ["g1", "h1", "g2", "h2", "g3"]
    assert [layer.path for layer in limit.layers.values()] == ["0", "1", "2", "3", "4"]
    assert [layer.kind for layer in limit.layers.values()] == ["MatMul", "Nonlin"] * 2 + ["MatMul"]
    torch.testing.assert_close(limit.layers["g3"].ntk(x, x[:2]), limit.ntk(x, x[:2]), rtol=0, atol=0)
    torch.testing.assert_close(limit.layers["g1"].nngp(x), 1.96 * x @ x.T / 4 + 0.09, rtol=1e-12, atol=0)
    g2, h1 = limit.layers["g2"].nngp(x), limit.layers["h1"].nngp(x)
    torch.testing.assert_close(g2, 1.96 * h1 + 0.09, rtol=1e-12, atol=0)
    assert "h1: Nonlin relu(g1)" in repr(limit.layers["h1"])
    one = clone(limit.layers["h1"].nngp)
    torch.testing.assert_close(one(x), h1, rtol=0, atol=0)


def test_the_program_shows_lines_modules_and_how_expectations_are_taken():
    text = str(limit_of("post-activation ResNet block").program)
    assert "a.weight x + a.bias" in text and "# a" in text and "[sampling]" in text
    assert "[closed form]" in str(limit_of("relu MLP").program)
    assert "heads goes to infinity" in str(limit_of("softmax attention").program)


def test_the_standard_error_of_sampling_is_reported_after_an_evaluation():
    limit = limit_of("softmax attention")
    assert limit.error == 0 and "standard errors" not in repr(limit)
    limit.ntk(CASES["softmax attention"].inputs(32, 3))
    assert 0 < limit.error < 0.8 and "sampled at 1024 points, with four standard errors of up to" in repr(
        limit
    )


@pytest.mark.parametrize("name", ["softmax attention", "max pooling", "GLU", "squeeze and excitation"])
def test_more_points_and_other_seeds_agree_within_the_reported_error(name):
    case = CASES[name]
    x, model = case.inputs(32, 3), case.network(32)
    few, other, many = (
        ntkit.infinite_width(model, x[:1], samples=n, seed=seed, **SIGMAS)
        for n, seed in ((2**10, 0), (2**10, 1), (2**14, 2))
    )
    expected = many.ntk(x)
    for limit in (few, other):
        found = limit.ntk(x)
        assert (found - expected).abs().max() <= max(6 * limit.error, 1e-9) * expected.abs().max()
    again = ntkit.infinite_width(model, x[:1], samples=2**10, seed=0, **SIGMAS).ntk(x)
    assert torch.equal(again, few.ntk(x))


def test_several_inputs_and_dicts():
    model = Net(
        lambda s, a, b: s.o(torch.relu(s.a(a) + s.b(b))),
        a=nn.Linear(3, 8),
        b=nn.Linear(2, 8),
        o=nn.Linear(8, 1),
    )
    model.double()
    x = (torch.randn(3, 3).double(), torch.randn(3, 2).double())
    limit = ntkit.infinite_width(model, x, **SIGMAS)
    whole = Net(lambda s, a: s.o(torch.relu(s.a(a))), a=nn.Linear(5, 8), o=nn.Linear(8, 1)).double()
    joined = torch.cat([x[0] * (5 / 3) ** 0.5, x[1] * (5 / 2) ** 0.5], 1)
    expected = ntkit.infinite_width(whole, joined, sigma_w=1.4, sigma_b={"a": 0.3 * 2**0.5, "o": 0.3})
    torch.testing.assert_close(limit.nngp(x), expected.nngp(joined), rtol=1e-9, atol=0)
    torch.testing.assert_close(limit.ntk(x), expected.ntk(joined), rtol=1e-9, atol=0)
    assert limit.ntk(x, tuple(v[:2] for v in x)).shape == (3, 2)


def test_compiled_tiles_are_those_of_eager():
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    plain = ntkit.infinite_width(model, x[:1], compile=False)
    compiled = ntkit.infinite_width(model, x[:1], compile=True)
    for kernel, other in ((plain.nngp, compiled.nngp), (plain.ntk, compiled.ntk)):
        torch.testing.assert_close(other(x), kernel(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other(x[:4], x[2:]), kernel(x[:4], x[2:]), rtol=1e-5, atol=1e-3)


def test_without_a_compiler_limits_are_eager(monkeypatch):
    def none(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", none)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    limit = ntkit.infinite_width(model, x[:1], compile=True)
    with pytest.warns(RuntimeWarning, match="no compiler"):
        found = limit.ntk(x)
    torch.testing.assert_close(found, ntkit.infinite_width(model, x[:1], compile=False).ntk(x))
    limit.ntk(x)  # the warning comes once


WAYS = {
    "nngp": lambda limit, x: limit.nngp(x),
    "a second batch": lambda limit, x: limit.ntk(x.detach(), x),
    "the diagonal": lambda limit, x: limit.ntk.diag(x),
    "the plan": lambda limit, x: limit.ntk.plan(x),
    "a layer": lambda limit, x: limit.layers["h1"].nngp(x),
    "positions": lambda limit, x: limit.kernel("ntk", "h1", positions=True)(x),
    "a sum": lambda limit, x: (limit.ntk + limit.nngp)(x),
    "normalized": lambda limit, x: limit.ntk.normalized()(x),
    "an expectation": lambda limit, x: limit.expect(lambda h1: h1[:, 0], x),
    "coordinates": lambda limit, x: limit.coordinates("h1", x),
    "the example": lambda limit, x: ntkit.infinite_width(limit.net.module, x),
    "draws": lambda limit, x: ntkit.monte_carlo(limit.net.module, 2, x),
}


@pytest.mark.parametrize("way", WAYS)
def test_inputs_that_require_a_gradient_are_refused(way):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limit = ntkit.infinite_width(model, x)
    with pytest.raises(ntkit.NtkitError, match=r"requires a gradient.*detach\(\)"):
        WAYS[way](limit, x.clone().requires_grad_())
    with torch.no_grad():
        assert WAYS[way](limit, x.clone().requires_grad_()) is not None


@pytest.mark.parametrize("name", ["sigma_w", "sigma_b"])
def test_scales_that_require_a_gradient_are_refused_by_name(name):
    model, sigma = nn.Linear(3, 1), torch.tensor(1.4, requires_grad=True)
    for value in (sigma, {"": sigma}):
        with pytest.raises(ntkit.NtkitError, match=rf"^{name} requires a gradient.*{name}\.item\(\)"):
            ntkit.infinite_width(model, torch.ones(1, 3), **{name: value})
