"""Rotary embeddings: written in several ways, against draws of a head, and finite draws of many heads."""

import pytest
import torch
import torch.nn.functional as F
from one_head import SIGMA_B, SIGMA_W, heads, joined, limit, network, shape, simulated
from torch.nn import Linear
from wide_networks import Net

import ntkit

D = torch.float64
T, WIDTH, H = 3, 16, 4
SIZE = WIDTH // H  # of a head


def angles(size, t=T):
    return torch.arange(t)[:, None] * 100.0 ** (-torch.arange(0, size, 2) / size) + 0.3


def sines(size, how):
    a = angles(size).double()
    a = torch.cat([a, a], -1) if how == "halves" else a.repeat_interleave(2, -1)
    return {"cos": a.cos(), "sin": a.sin()}


def halves(s, x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * s.cos + torch.cat((-b, a), -1) * s.sin


def chunks(s, x):
    a, b = x.chunk(2, -1)
    cos, sin = s.cos[:, : a.shape[-1]], s.sin[:, : a.shape[-1]]
    return torch.cat([cos * a - b * sin, b * cos + a * sin], -1)


def turns(s, x):
    rotated = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * s.cos + rotated * s.sin


def pairs(s, x):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = s.cos[:, ::2], s.sin[:, ::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def complex_numbers(s, x):
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    z = z * torch.complex(s.cos[:, ::2], s.sin[:, ::2])
    return torch.view_as_real(z).flatten(-2)


def scaled_first(s, x):
    return halves(s, 2.0 * x) * 0.5


FORMS = {
    "halves": (halves, "halves"),
    "chunks": (chunks, "halves"),
    "turns": (turns, "turns"),
    "pairs": (pairs, "turns"),
    "complex numbers": (complex_numbers, "turns"),
    "scaled first": (scaled_first, "halves"),
}


def rotary(turn, repeat=1):
    def of(s, e):
        q, k, v = (heads(s.get_submodule(n)(e), s.h) for n in "qkv")
        return joined(F.scaled_dot_product_attention(turn(s, q), turn(s, k), v))

    return of


def correlation(size):
    """G[ts, t's']: the mean over frequencies of cos((t - s - t' + s') theta), the phases added."""
    theta = angles(size).double()
    theta = theta[1] - theta[0]
    n = torch.arange(T)
    lag = n[:, None] - n
    lag = lag[:, :, None, None] - lag
    return (lag[..., None] * theta).cos().mean(-1)


def turned(turn, how, **options):
    return limit(network(rotary(turn), WIDTH, H, **sines(SIZE, how)), shape(0, T, 3), **options)


@pytest.mark.slow
def test_all_forms_are_one_kernel():
    x = shape(0, T, 3)
    first = turned(*FORMS["halves"], samples=2**8)
    assert "turned" in str(first.program)
    for name, (turn, how) in FORMS.items():
        other = turned(turn, how, samples=2**8)
        for kind in ("nngp", "ntk"):
            one, two = getattr(first, kind)(x), getattr(other, kind)(x)
            torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7, msg=name)


def test_draws_of_a_head_written_out():
    x = shape(0, T, 3)
    found = turned(*FORMS["halves"], samples=2**14)
    wanted = simulated(x, x, turn=correlation(SIZE))
    for kind, kernel in enumerate((found.nngp, found.ntk)):
        k = kernel(x)
        torch.testing.assert_close(k, k.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(kernel.diag(x), k.diagonal(), rtol=1e-12, atol=0)
        for value, (mean, error) in zip((k[0, 0], k[0, 1], k[1, 1]), wanted[:, kind], strict=True):
            assert abs(value - mean) <= 4 * error + 1e-2 * wanted[:, kind, 0].max()


def grouped(repeat):
    """Return attention whose keys and values are shared by groups of heads, repeated in some way."""

    def of(s, e):
        q = heads(s.q(e), s.h)
        k, v = (heads(s.get_submodule(n)(e), s.h // 2) for n in ("k2", "v2"))
        return joined(F.scaled_dot_product_attention(halves(s, q), repeat(halves(s, k)), repeat(v)))

    few = {n: torch.nn.Linear(WIDTH, WIDTH // 2) for n in ("k2", "v2")}
    return network(of, WIDTH, H, **few, **sines(SIZE, "halves"))


REPEATS = {
    "expanded": lambda t: t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2),
    "repeated": lambda t: t.repeat_interleave(2, 1),
}


@pytest.mark.parametrize("name", REPEATS)
def test_keys_shared_by_a_group_of_heads_have_the_kernel_of_heads_of_their_own(name):
    x = shape(0, T, 3)
    own, shared = turned(*FORMS["halves"], samples=2**8), limit(grouped(REPEATS[name]), x, samples=2**8)
    for kind in ("nngp", "ntk"):
        k = getattr(own, kind)(x)
        torch.testing.assert_close(getattr(shared, kind)(x), k, rtol=1e-12, atol=1e-12)


def test_a_part_of_the_channels_is_turned():
    # the rest has the frequency zero
    x = shape(0, T, 3)

    def part(s, q):
        return torch.cat([halves(s, q[..., :2]), q[..., 2:]], -1)

    def zeros(s, q):
        return q * s.cos + torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2) * s.sin

    all_of_it = {k: F.pad(v, (0, 2), value=float(k == "cos")) for k, v in sines(2, "turns").items()}
    one = limit(network(rotary(part), WIDTH, H, **sines(2, "halves")), x, samples=2**8)
    two = limit(network(rotary(zeros), WIDTH, H, **all_of_it), x, samples=2**8)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(one, kind)(x), getattr(two, kind)(x), rtol=1e-7, atol=1e-7)


def test_all_tokens_but_the_first_are_turned():
    # the first one by an angle of zero
    x = shape(0, T, 3)

    def others(s, q):
        return torch.cat([q[:, :, :1], halves(s, q[:, :, 1:])], 2)

    some = {k: v[1:] for k, v in sines(SIZE, "halves").items()}
    every = {
        k: torch.cat([torch.full_like(v[:1], k == "cos"), v[1:]]) for k, v in sines(SIZE, "halves").items()
    }
    one = limit(network(rotary(others), WIDTH, H, **some), x, samples=2**8)
    two = limit(network(rotary(halves), WIDTH, H, **every), x, samples=2**8)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(one, kind)(x), getattr(two, kind)(x), rtol=1e-7, atol=1e-7)


def test_one_head_and_numbers_that_are_all_alike():
    x = shape(0, T, 3)
    alike = {"cos": torch.full((T, SIZE), 0.6).double(), "sin": torch.full((T, SIZE), 0.8).double()}
    plain = limit(network(rotary(lambda s, q: q), WIDTH, H), x, samples=2**8)
    still = limit(network(rotary(halves), WIDTH, H, **alike), x, samples=2**8)
    single = limit(network(rotary(halves), SIZE, 1, **sines(SIZE, "halves")), x, samples=2**8)
    many = turned(*FORMS["halves"], samples=2**8)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(still, kind)(x), getattr(plain, kind)(x), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(getattr(single, kind)(x), getattr(many, kind)(x), rtol=1e-7, atol=1e-7)


def test_numbers_of_the_channels_into_a_linear_layer():
    # means over channels of c_i c'_i K: exactly, without any draw
    c = torch.randn(4, 8, generator=torch.Generator().manual_seed(3), dtype=D)
    model = Net(lambda s, x: s.b(s.a(x) * s.c), a=Linear(3, 8), b=Linear(8, 1), c=c).double()
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(4), dtype=D)
    found = limit(model, x).kernel("nngp", positions=True)(x)
    theta = limit(model, x).kernel("ntk", positions=True)(x)
    k = SIGMA_W**2 * torch.einsum("itd,jsd->ijts", x, x) / 3 + SIGMA_B**2
    inner = SIGMA_W**2 * k * (c @ c.T) / 8
    torch.testing.assert_close(found, inner + SIGMA_B**2)
    torch.testing.assert_close(theta, 2 * inner + SIGMA_B**2)


@pytest.mark.slow
@pytest.mark.parametrize("width", [256, 1024])
def test_many_heads(width):
    x, size = 1.5 * shape(0, T, 3), 16
    how = sines(size, "halves")
    model = network(rotary(halves), width, width // size, **how)
    found = limit(model, x, samples=2**12)
    drawn = ntkit.monte_carlo(model, 24, x, seed=3, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    for kernel, mean, error in (
        (found.nngp(x), drawn.nngp, drawn.nngp_error),
        (found.ntk(x), drawn.ntk, drawn.ntk_error),
    ):
        allowed = 4 * error + (4 / width + 1 / size / 4) * kernel.abs().max()
        assert ((kernel - mean).abs() <= allowed).all()
        assert allowed.max() < 0.3 * kernel.abs().max()


REFUSED = {
    "complex numbers otherwise": (
        lambda s, x: torch.view_as_real(torch.view_as_complex(s.a(x).unflatten(-1, (-1, 2))) ** 2).flatten(
            -2
        ),
        "complex vectors are known in products",
    ),
    "a nonlinear function": (lambda s, x: torch.relu(s.a(x) * s.c), "differ from channel to channel"),
    "numbers of the sample": (lambda s, x: s.a(x) * x.mean(-1, keepdim=True) * x, "differ from channel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    of, words = REFUSED[name]
    model = Net(lambda s, x: s.b(of(s, x)), a=Linear(8, 8), b=Linear(8, 1), c=torch.randn(4, 8).double())
    with pytest.raises(ntkit.NtkitError, match=words):
        limit(model.double(), torch.randn(2, 4, 8, dtype=D))


def test_two_frames_of_rotation_on_shared_weights_are_refused():
    def of(s, e):
        q, k, v = (heads(s.get_submodule(n)(e), s.h) for n in "qkv")
        plain = F.scaled_dot_product_attention(q, k, v)
        return joined(plain + F.scaled_dot_product_attention(halves(s, q), halves(s, k), v))

    x = shape(0, T, 3)
    found = limit(network(of, WIDTH, H, **sines(SIZE, "halves")), x, samples=2**8)
    with pytest.raises(ntkit.NtkitError, match="other rotations of queries and keys"):
        found.nngp(x)


@pytest.mark.parametrize("repeat", [lambda t: t.repeat_interleave(H, 1), lambda t: t.expand(-1, H, -1, -1)])
def test_one_key_and_value_for_all_heads(repeat):
    def of(s, e):
        q = heads(s.q(e), s.h)
        k, v = (s.get_submodule(n)(e).unflatten(-1, (1, -1)).transpose(-2, -3) for n in ("k1", "v1"))
        return joined(F.scaled_dot_product_attention(halves(s, q), repeat(halves(s, k)), repeat(v)))

    few = {n: torch.nn.Linear(WIDTH, SIZE) for n in ("k1", "v1")}
    x = shape(0, T, 3)
    own = turned(*FORMS["halves"], samples=2**8)
    shared = limit(network(of, WIDTH, H, **few, **sines(SIZE, "halves")), x, samples=2**8)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(shared, kind)(x), getattr(own, kind)(x), rtol=1e-12, atol=1e-12)


def test_queries_that_see_nothing_give_zeros():
    # a causal mask and padding on the left, against scores far below the others, taken off by hand
    causal = torch.ones(T, T).tril().bool()

    def hidden(s, e, m):
        q, k, v = (heads(s.get_submodule(n)(e), s.h) for n in "qkv")
        return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=m[:, None, None] & causal))

    def by_hand(s, e, m):
        q, k, v = (heads(s.get_submodule(n)(e), s.h) for n in "qkv")
        seen = (m[:, None, None] & causal).to(D)
        weights = torch.softmax(q @ k.mT / SIZE**0.5 + 1e9 * (seen - 1), -1) * seen.amax(-1, keepdim=True)
        return joined(weights @ v)

    mask = torch.tensor([[False, True, True], [False, False, True]])
    x = (shape(0, T, 3), mask)
    found, wanted = (limit(network(of, WIDTH, H), x, samples=2**8) for of in (hidden, by_hand))
    for kind in ("nngp", "ntk"):
        k = getattr(found, kind)(x)
        assert k.isfinite().all()
        torch.testing.assert_close(k, getattr(wanted, kind)(x), rtol=0.15, atol=0.05)
