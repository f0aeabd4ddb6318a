"""Operations of indices, sums and fills, norms and writing in place: against the same written another way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wide_networks import Net

import ntkit

D = torch.float64
WIDTH, TOKENS = 8, 4
relu = torch.relu


def network(of, **parts):
    """A layer at tokens, something, another layer, a ReLU, a mean over what positions are left."""

    def call(s, x, *more):
        h = of(s, s.a(x), *more)
        return s.o(relu(s.b(h)).flatten(1, -2).mean(1))

    layers = {"a": nn.Linear(3, WIDTH), "b": nn.Linear(WIDTH, WIDTH), "o": nn.Linear(WIDTH, 1)}
    return Net(call, **layers, **parts).double().eval()


def limit(of, x, **parts):
    first = tuple(t[:1] for t in x) if isinstance(x, tuple) else x[:1]
    return ntkit.infinite_width(network(of, **parts), first, sigma_w=1.4, sigma_b=0.3, samples=2**10)


def same(one, two, x, rtol=1e-12, **parts):
    first, second = (limit(of, x, **parts) for of in (one, two))
    for kind in ("nngp", "ntk"):
        a, b = (getattr(of, kind)(x) for of in (first, second))
        assert (a - b).abs().max() <= rtol * b.abs().max()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tokens(seed=0):
    return torch.randn(3, TOKENS, 3, generator=seeded(seed), dtype=D)


def hot(index, size=TOKENS):
    return F.one_hot(index, size).to(D)


INDEX = torch.tensor([3, 0, 0, 2, 1])
TABLE = torch.tensor([[1, 3], [0, 2], [2, 2]])
PLACES = torch.tensor([1, 1, 0, 2])
SHOWN = torch.tensor([True, False, True, True])
MATRIX = torch.tensor([[0.5, -1.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.3, -0.2, 0.0]], dtype=D)


def wide(index, h):
    return index[None, :, None].expand(h.shape[0], -1, h.shape[2])


def averaged(index, size):
    sums = hot(index, size).mT
    return sums / sums.sum(1, keepdim=True).clamp(min=1)


LONG = {"scatter_add onto a vector", "scatter_reduce, sum", "index_add of a multiple"}  # seconds each


def few(cases):
    """Return the names of cases, those that take seconds marked as slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in cases]


FIXED = {
    "gather": (lambda s, h: h.gather(1, wide(INDEX, h)), lambda s, h: hot(INDEX) @ h),
    "gather from behind": (lambda s, h: h.gather(-2, wide(INDEX, h)), lambda s, h: hot(INDEX) @ h),
    "index": (lambda s, h: h[:, INDEX], lambda s, h: hot(INDEX) @ h),
    "index by negative numbers": (lambda s, h: h[:, INDEX - 4], lambda s, h: hot(INDEX) @ h),
    "index by a table": (
        lambda s, h: h[:, TABLE],
        lambda s, h: (hot(TABLE.flatten()) @ h).unflatten(1, (3, 2)),
    ),
    "index by booleans": (lambda s, h: h[:, SHOWN], lambda s, h: hot(SHOWN.nonzero()[:, 0]) @ h),
    "index of each sample": (
        lambda s, h: h[torch.arange(h.shape[0])[:, None], INDEX],
        lambda s, h: hot(INDEX) @ h,
    ),
    "scatter_add": (
        lambda s, h: torch.zeros_like(h).scatter_add(1, wide(PLACES, h), h),
        lambda s, h: hot(PLACES).mT @ h,
    ),
    "scatter_add onto a vector": (
        lambda s, h: relu(h).scatter_add(1, wide(PLACES, h), h),
        lambda s, h: relu(h) + hot(PLACES).mT @ h,
    ),
    "scatter_add onto fewer": (
        lambda s, h: h.new_zeros(h.shape[0], 3, h.shape[2]).scatter_add(1, wide(PLACES, h), h),
        lambda s, h: hot(PLACES, 3).mT @ h,
    ),
    "index_add": (
        lambda s, h: h.new_zeros(h.shape[0], 3, h.shape[2]).index_add(1, PLACES, h),
        lambda s, h: hot(PLACES, 3).mT @ h,
    ),
    "index_add of a multiple": (
        lambda s, h: relu(h).index_add(1, PLACES, h, alpha=-0.5),
        lambda s, h: relu(h) - 0.5 * hot(PLACES).mT @ h,
    ),
    "scatter_reduce, sum": (
        lambda s, h: relu(h).scatter_reduce(1, wide(PLACES, h), h, "sum"),
        lambda s, h: relu(h) + hot(PLACES).mT @ h,
    ),
    "scatter_reduce, mean": (
        lambda s, h: h.new_zeros(h.shape[0], 3, h.shape[2]).scatter_reduce(
            1, wide(PLACES, h), h, "mean", include_self=False
        ),
        lambda s, h: averaged(PLACES, 3) @ h,
    ),
    "index_reduce, mean": (
        lambda s, h: h.new_zeros(h.shape[0], 3, h.shape[2]).index_reduce(
            1, PLACES, h, "mean", include_self=False
        ),
        lambda s, h: averaged(PLACES, 3) @ h,
    ),
    "repeat": (lambda s, h: h.repeat(1, 3, 1), lambda s, h: hot(torch.arange(TOKENS).repeat(3)) @ h),
    "repeat in front": (
        lambda s, h: h.repeat(2, 1, 1, 1).transpose(0, 1),
        lambda s, h: torch.stack([h, h], 1),
    ),
    "repeat_interleave": (
        lambda s, h: h.repeat_interleave(2, 1),
        lambda s, h: hot(torch.arange(TOKENS).repeat_interleave(2)) @ h,
    ),
    "a matrix from the left, einsum": (
        lambda s, h: torch.einsum("ts,bsc->btc", MATRIX, h),
        lambda s, h: MATRIX @ h,
    ),
    "a matrix from the right, einsum": (
        lambda s, h: torch.einsum("bsc,ts->btc", h, MATRIX),
        lambda s, h: MATRIX @ h,
    ),
    "a matrix from the right, channels first": (
        lambda s, h: torch.einsum("bsc,ts->bct", h, MATRIX).mT,
        lambda s, h: MATRIX @ h,
    ),
    "a weight, einsum": (lambda s, h: torch.einsum("btc,dc->btd", h, s.w), lambda s, h: h @ s.w.T),
    "a weight transposed, einsum": (lambda s, h: torch.einsum("btc,cd->btd", h, s.w), lambda s, h: h @ s.w),
    "a weight in front, einsum": (lambda s, h: torch.einsum("dc,btc->btd", s.w, h), lambda s, h: h @ s.w.T),
    "a weight in front, channels first": (
        lambda s, h: torch.einsum("dc,btc->bdt", s.w, h).mT,
        lambda s, h: h @ s.w.T,
    ),
    "index of each sample by a table": (
        lambda s, h: h[torch.arange(h.shape[0])[:, None, None], TABLE],
        lambda s, h: (hot(TABLE.flatten()) @ h).unflatten(1, (3, 2)),
    ),
    "a matrix from the right": (lambda s, h: (h.mT @ MATRIX.T).mT, lambda s, h: MATRIX @ h),
    "a row of ones behind": (
        lambda s, h: torch.cat([h, h.new_ones(h.shape[0], 1, WIDTH)], 1),
        lambda s, h: F.pad(h - 1, (0, 0, 0, 1)) + 1,
    ),
    "rows of zeros in front": (
        lambda s, h: torch.cat([h.new_zeros(h.shape[0], 2, WIDTH), h], 1),
        lambda s, h: F.pad(h, (0, 0, 2, 0)),
    ),
    "gather of some channels": (
        lambda s, h: torch.cat([h.gather(1, wide(INDEX, h)[..., :4]), h[:, INDEX, 4:]], -1),
        lambda s, h: hot(INDEX) @ h,
    ),
    "scatter_add of some rows": (
        lambda s, h: torch.zeros_like(h).scatter_add(1, wide(PLACES[:2], h), h),
        lambda s, h: hot(PLACES[:2]).mT @ h[:, :2],
    ),
    "numbers at positions, einsum": (
        lambda s, h: torch.einsum("t,btc->btc", MATRIX[0], h),
        lambda s, h: h * MATRIX[0, :, None],
    ),
    "a scale, einsum": (lambda s, h: torch.einsum("btc,c->btc", h, s.g), lambda s, h: h * s.g),
    "a product of vectors, einsum": (
        lambda s, h: torch.einsum("btc,btc->btc", h, s.b(h)),
        lambda s, h: h * s.b(h),
    ),
    "baddbmm": (
        lambda s, h: torch.baddbmm(h[:, :3], MATRIX.expand(h.shape[0], -1, -1), h, beta=0.5, alpha=2),
        lambda s, h: 0.5 * h[:, :3] + 2 * MATRIX @ h,
    ),
    "zeros_like": (lambda s, h: torch.zeros_like(h) + h, lambda s, h: h),
    "ones_like": (lambda s, h: h - 2 * torch.ones_like(h), lambda s, h: h - 2),
    "full_like": (lambda s, h: torch.full_like(h, 0.7) * h, lambda s, h: 0.7 * h),
    "new_zeros and a row": (
        lambda s, h: torch.cat([h.new_zeros(h.shape[0], 1, WIDTH), h], 1),
        lambda s, h: F.pad(h, (0, 0, 1, 0)),
    ),
    "new_ones": (lambda s, h: h + h.new_ones(TOKENS, 1), lambda s, h: h + 1),
    "new_full": (lambda s, h: h + h.new_full((1, WIDTH), -0.4), lambda s, h: h - 0.4),
    "empty_like, filled": (lambda s, h: h + torch.empty_like(h).fill_(0.3), lambda s, h: h + 0.3),
    "new_empty, filled": (lambda s, h: h * h.new_empty(1).fill_(0.3), lambda s, h: h * 0.3),
    "tensor_split": (
        lambda s, h: torch.cat(h.tensor_split([1, 3], 1)[::-1], 1),
        lambda s, h: h[:, [3, 1, 2, 0]],
    ),
    "type_as": (lambda s, h: h.type_as(h), lambda s, h: h),
    "movedim": (lambda s, h: s.b(h.unflatten(1, (2, 2)).movedim(1, 2)), lambda s, h: s.b(h[:, [0, 2, 1, 3]])),
    "movedim of several": (
        lambda s, h: h.unflatten(1, (2, 2)).movedim((1, 2), (2, 1)).flatten(1, 2),
        lambda s, h: h[:, [0, 2, 1, 3]],
    ),
    "moveaxis": (lambda s, h: h.moveaxis(1, -1).moveaxis((2,), (1,)), lambda s, h: h),
    "swapdims": (lambda s, h: h.swapdims(1, 2).swapdims(-1, -2), lambda s, h: h),
}


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("name", few(FIXED))
def test_fixed_indices_matrices_and_fills(name):
    def weighted(of):
        return lambda s, h: of(s, relu(h))

    for seed in (0, 1):
        same(
            *map(weighted, FIXED[name]),
            tokens(seed),
            w=nn.Parameter(torch.randn(WIDTH, WIDTH)),
            g=nn.Parameter(torch.ones(WIDTH)),
        )


BY_DATA = {
    "gather": (lambda h, i: h.gather(1, i[..., None].expand(-1, -1, WIDTH)), lambda h, i: hot(i) @ h),
    "index": (lambda h, i: h[torch.arange(h.shape[0])[:, None], i], lambda h, i: hot(i) @ h),
    "the last of each": (
        lambda h, i: h[torch.arange(h.shape[0]), i[:, 0]][:, None],
        lambda h, i: hot(i[:, :1]) @ h,
    ),
    "scatter_add": (
        lambda h, i: torch.zeros_like(h).scatter_add(1, i[..., None].expand(-1, -1, WIDTH), h),
        lambda h, i: hot(i).mT @ h,
    ),
    "scatter_add onto a vector": (
        lambda h, i: relu(h).scatter_add(1, i[..., None].expand(-1, -1, WIDTH), h),
        lambda h, i: relu(h) + hot(i).mT @ h,
    ),
    "a graph's messages, there and back": (
        lambda h, i: torch.zeros_like(h).scatter_add(
            1,
            i[..., None].expand(-1, -1, WIDTH),
            relu(h.gather(1, i.flip(1)[..., None].expand(-1, -1, WIDTH))),
        ),
        lambda h, i: hot(i).mT @ relu(hot(i.flip(1)) @ h),
    ),
    "einsum with a matrix of the sample": (
        lambda h, i: torch.einsum("bts,bsc->btc", hot(i) - 0.2, h),
        lambda h, i: (hot(i) - 0.2) @ h,
    ),
}


@pytest.mark.parametrize("name", few(BY_DATA))
def test_indices_of_the_sample(name):
    one, two = (lambda s, h, i, of=of: of(relu(h), i) for of in BY_DATA[name])
    for seed in (0, 1, 2):
        index = torch.randint(0, TOKENS, (3, TOKENS), generator=seeded(seed))
        same(one, two, (tokens(seed), index))


def test_attention_by_einsum_is_attention_by_products():
    def heads(s, h):
        return ((s.get_submodule(n)(h)).unflatten(2, (2, WIDTH // 2)) for n in "qkv")

    def by_einsum(s, h):
        q, k, v = heads(s, h)
        a = torch.softmax(torch.einsum("bthd,bshd->bhts", q, k) / (WIDTH // 2) ** 0.5, -1)
        return torch.einsum("bhts,bshd->bthd", a, v).flatten(2)

    def by_products(s, h):
        q, k, v = (t.transpose(1, 2) for t in heads(s, h))
        a = torch.softmax(q @ k.mT / (WIDTH // 2) ** 0.5, -1)
        return (a @ v).transpose(1, 2).flatten(2)

    for seed in (0, 1, 2):
        same(by_einsum, by_products, tokens(seed), **{n: nn.Linear(WIDTH, WIDTH) for n in "qkv"})


def centered(h, dims=-1):
    return h - h.mean(dims, keepdim=True)


def affine(s, h):
    return s.n.weight * h + s.n.bias


EPS = 1e-5
LAYER_NORMS = {
    "by var": lambda s, h: affine(s, centered(h) / (h.var(-1, keepdim=True, unbiased=False) + EPS).sqrt()),
    "by var, the number of them less one": lambda s, h: affine(
        s, centered(h) / torch.sqrt(h.var(-1, keepdim=True) + EPS)
    ),
    "by torch.var": lambda s, h: affine(
        s, centered(h) * torch.rsqrt(torch.var(h, -1, correction=0, keepdim=True) + EPS)
    ),
    "by a mean of squares": lambda s, h: affine(
        s, centered(h) * (centered(h).pow(2).mean(-1, keepdim=True) + EPS).rsqrt()
    ),
    "by squares less the square": lambda s, h: affine(
        s,
        centered(h) / ((h * h).mean(-1, keepdim=True) - h.mean(-1, keepdim=True) ** 2 + EPS) ** 0.5,
    ),
    "by unsqueezed means": lambda s, h: affine(
        s, (h - h.mean(-1)[..., None]) / (h.var(-1, correction=0)[..., None] + EPS).sqrt()
    ),
    "by var_mean": lambda s, h: affine(
        s, (lambda v, m: (h - m) / (v + EPS).sqrt())(*torch.var_mean(h, -1, correction=0, keepdim=True))
    ),
    "by std": lambda s, h: affine(s, centered(h) / (h.std(-1, keepdim=True, correction=0) ** 2 + EPS).sqrt()),
}
RMS_NORMS = {
    "by a mean of squares": lambda s, h: (
        s.n.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS))
    ),
    "by square": lambda s, h: s.n.weight * (h / torch.sqrt(h.square().mean(-1, keepdim=True) + EPS)),
    "by a product": lambda s, h: h * s.n.weight / ((h * h).mean(-1, keepdim=True) + EPS) ** 0.5,
    "by a power": lambda s, h: s.n.weight * h * (EPS + (h**2).mean(dim=-1, keepdim=True)) ** -0.5,
    "by norm": lambda s, h: s.n.weight * h / (h.norm(dim=-1, keepdim=True) ** 2 / WIDTH + EPS).sqrt(),
}
NORMALIZED = {
    "F.normalize": lambda s, h: s.n.weight * F.normalize(h, dim=-1) * WIDTH**0.5,
    "expanded": lambda s, h: s.n.weight * (h / h.square().mean(-1, keepdim=True).sqrt().expand_as(h)),
}
BEFORE = {"a product": lambda h: h, "a ReLU": relu, "a shifted tanh": lambda h: torch.tanh(h) + 0.5}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norms_by_hand(name, before):
    one = lambda s, h: LAYER_NORMS[name](s, BEFORE[before](h))  # noqa: E731
    same(one, lambda s, h: s.n(BEFORE[before](h)), tokens(), n=nn.LayerNorm(WIDTH, EPS))


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", RMS_NORMS)
def test_rms_norms_by_hand(name, before):
    one = lambda s, h: RMS_NORMS[name](s, BEFORE[before](h))  # noqa: E731
    same(one, lambda s, h: s.n(BEFORE[before](h)), tokens(), n=nn.RMSNorm(WIDTH, EPS))


@pytest.mark.parametrize("name", NORMALIZED)
def test_lengths_of_one_by_hand(name):
    same(NORMALIZED[name], lambda s, h: s.n(h), tokens(), n=nn.RMSNorm(WIDTH, 0.0))
    same(
        lambda s, h: NORMALIZED[name](s, relu(h)),
        lambda s, h: s.n(relu(h)),
        tokens(1),
        n=nn.RMSNorm(WIDTH, 0.0),
    )


def test_a_norm_over_positions_by_hand():
    def by_hand(s, h):
        h = relu(h)
        return centered(h, (1, 2)) / (h.var((1, 2), keepdim=True, correction=0) + EPS).sqrt()

    same(by_hand, lambda s, h: F.layer_norm(relu(h), h.shape[1:]), tokens())
    same(by_hand, lambda s, h: F.group_norm(relu(h).mT, 1).mT, tokens(1))


def row(h, value):
    h = h.clone()
    h[:, 1] = value(h)
    return h


def added(h):
    h = h.clone()
    h[:, 1:] += relu(h[:, :1])
    return h


def view_of(h):
    h = h.clone()
    h.view(h.shape[0], 2, 2, WIDTH)[:, 1].mul_(2.0)
    return h


def several(h):
    h = relu(h)
    h.add_(1.0).mul_(0.5)
    h -= 0.25
    return h.clamp_(min=0.1)


def filled(h):
    h = h.clone()
    h[:, 2].zero_()
    return h


def halves(h):
    h = h.clone()
    h[:, :2].add_(h[:, 2:])
    return h


def into_zeros(h):
    out = torch.zeros_like(h)
    out[:, 1:] = h[:, :-1]
    return out


def copied(h):
    out = torch.empty_like(h)
    out.copy_(relu(h))
    return out


def by_rows(h):
    out = h.new_zeros(h.shape)
    for t in range(TOKENS):
        out[:, t] = relu(h[:, t]) * (t + 1)
    return out


ONE = torch.tensor([0.0, 1, 0, 0], dtype=D)[:, None]
LATER = torch.tensor([0.0, 1, 1, 1], dtype=D)[:, None]
IN_PLACE = {
    "a row is set": (
        lambda h: row(h, lambda h: relu(h[:, 0])),
        lambda h: h * (1 - ONE) + relu(h[:, :1]) * ONE,
    ),
    "rows are added to": (added, lambda h: h + relu(h[:, :1]) * LATER),
    "a view is multiplied": (view_of, lambda h: torch.cat([h[:, :2], 2 * h[:, 2:]], 1)),
    "one after the other": (several, lambda h: (((relu(h) + 1) * 0.5) - 0.25).clamp(min=0.1)),
    "a row is zero": (filled, lambda h: h * torch.tensor([1.0, 1, 0, 1], dtype=D)[:, None]),
    "halves": (halves, lambda h: torch.cat([h[:, :2] + h[:, 2:], h[:, 2:]], 1)),
    "shifted into zeros": (into_zeros, lambda h: F.pad(h[:, :-1], (0, 0, 1, 0))),
    "copied": (copied, relu),
    "row by row": (by_rows, lambda h: torch.stack([relu(h[:, t]) * (t + 1) for t in range(TOKENS)], 1)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_writing_in_place(name):
    one, two = IN_PLACE[name]
    try:
        same(lambda s, h: one(h), lambda s, h: two(h), tokens())
    except ntkit.NoRuleError as error:
        assert "shares its memory" in str(error)  # refused, never wrong


def parameters(value):
    return nn.Parameter(torch.full((WIDTH,), value, dtype=D))


def test_a_number_may_be_added_to_a_weight():
    scaled = lambda of: lambda s, h: F.rms_norm(h, (WIDTH,)) * of(s)  # noqa: E731
    parts = {"g": parameters(0.0), "unit": parameters(1.0), "less": parameters(-0.5)}
    same(scaled(lambda s: 1.0 + s.g), scaled(lambda s: s.unit), tokens(), **parts)
    same(scaled(lambda s: 3 - 2 * (s.g + 1)), scaled(lambda s: -2 * s.less), tokens(), **parts)
    same(scaled(lambda s: s.g - 0.5), scaled(lambda s: s.less), tokens(), **parts)


def test_a_number_added_to_a_matrix_is_refused():
    square = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=seeded(1), dtype=D))
    with pytest.raises(ntkit.NoRuleError, match="added to the weight 'w' before a product"):
        limit(lambda s, h: h @ (s.w + 0.5), tokens(), w=square)


def shuffled(h):
    both = torch.cat([relu(h), torch.tanh(h)], -1)
    return both.reshape(*h.shape[:2], 2, WIDTH).mT.reshape(*h.shape[:2], 2 * WIDTH)[..., :WIDTH]


REFUSED = {
    "a table that is resized": (
        lambda s, h: h + F.interpolate(s.table, TOKENS).mT,
        "computes a weight from 'table'",
    ),
    "a table that is repeated": (
        lambda s, h: h + s.table.repeat(1, 1, 2).mT,
        "computes a weight from 'table'",
    ),
    "channels of two vectors in turns": (lambda s, h: shuffled(h), "takes a permutation of concatenated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_in_words(name):
    of, words = REFUSED[name]
    table = nn.Parameter(torch.randn(1, WIDTH, 2, generator=seeded(1), dtype=D))
    with pytest.raises(ntkit.NoRuleError, match=words) as found:
        limit(of, tokens(), table=table)
    assert "raised" not in str(found.value)


def test_parameters_go_through_a_layer_as_vectors_do():
    parts = {"c": nn.Linear(WIDTH, WIDTH), "table": nn.Parameter(torch.randn(1, TOKENS, WIDTH, dtype=D))}
    same(lambda s, h: h + s.c(s.table), lambda s, h: h + s.c(0 * relu(h) + s.table), tokens(), **parts)


def test_parameters_of_the_channels_of_heads():
    heads = (2, WIDTH // 2)
    parts = {"flat": nn.Parameter(torch.randn(WIDTH, generator=seeded(1), dtype=D))}
    split = lambda s, h: (relu(h).unflatten(-1, heads) + s.flat.view(heads)).flatten(-2)  # noqa: E731
    turned = lambda s, h: (  # noqa: E731
        (relu(h).unflatten(-1, heads).transpose(1, 2) + s.flat.view(1, *heads).transpose(0, 1))
        .transpose(1, 2)
        .flatten(-2)
    )
    for one in (split, turned):
        same(one, lambda s, h: relu(h) + s.flat, tokens(), **parts)
