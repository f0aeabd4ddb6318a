"""Contributions by passes of the whole batch beside those of each sample, where samples mix or draw."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit
from ntkit.compute.counting import Counting
from ntkit.training.folder.run import Run
from ntkit.training.replay.forward_mode import ForwardMode
from ntkit.training.replay.sample_gradients import Samples
from ntkit.training.replay.steps import Replay

D = torch.float64


class Tokens(nn.Module):
    """An embedding that forward mode gets wrong, and a norm over the batch."""

    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, **options)
        self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.norm(self.embedding(x).flatten(1)).tanh())


class Tied(nn.Module):
    """An embedding whose padding is moved elsewhere: its weights are those of the head."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 4, padding_idx=-7), nn.BatchNorm1d(12)
        self.first = nn.Linear(12, 4)

    def forward(self, x):
        h = self.first(self.norm(self.embedding(x).flatten(1))).tanh()
        return h @ self.embedding.weight[:2].T


class Attending(nn.Module):
    """Attention with dropout of its own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        x = x.unflatten(1, (3, 4))
        return self.head(self.attention(x, x, x)[0].flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer with dropout behind it."""

    def __init__(self):
        super().__init__()
        self.body, self.dropout, self.head = nn.GRU(4, 5, batch_first=True), nn.Dropout(0.3), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.dropout(self.body(x.unflatten(1, (3, 4)))[0][:, -1]))


class Sine(torch.autograd.Function):
    """A function with a backward pass of its own, and no forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(Sine.apply(self.norm(self.first(x))))


class Hooked(nn.Module):
    """A gradient that a hook halves on its way: no derivative any more, which forward mode does not see."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.norm(self.first(x))
        if h.requires_grad:
            h.register_hook(lambda g: 0.5 * g)
        return self.head(h.tanh())


def conv():
    norm = nn.BatchNorm2d(3)
    layers = nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 3, 3, padding=1), norm, nn.GELU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, 2))


def drawn():
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 2))


def grouped():
    layers = nn.Unflatten(1, (4, 3)), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.Flatten()
    return nn.Sequential(nn.Linear(12, 12), *layers, nn.LayerNorm(12), nn.SiLU(), nn.Linear(12, 2))


NETWORKS = {
    "conv, batch norm": (conv, False, "forward mode"),
    "dropout": (drawn, False, "forward mode"),
    "group, layer and batch norm": (grouped, False, "forward mode"),
    "attention with dropout": (Attending, False, "forward mode"),
    "recurrent with dropout": (Recurrent, False, "forward mode"),
    "padding index": (lambda: Tokens(padding_idx=0), True, "forward mode"),
    "padding index, counted from the end, tied": (Tied, True, "forward mode"),
    "gradient by frequency": (lambda: Tokens(scale_grad_by_freq=True), True, "backward passes"),
    "a function of one's own": (Custom, False, "backward twice"),
    "a hook that halves": (Hooked, False, "backward twice"),
}


def recorded(folder, net, tokens, dtype=D, steps=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(7, (20, 3), generator=generator)
    if not tokens:
        x = torch.randn(20, 12, generator=generator, dtype=D).to(dtype)
    else:
        x[::2, 0] = 0  # the padding
    y = torch.arange(20) % 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    with ntkit.record(folder, net, optimizer) as run:
        for _ in range(steps):
            batch = torch.randperm(20, generator=generator)[:8]
            run.batch(batch)
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return x, y


@pytest.mark.filterwarnings("ignore:The account did not reach")  # where gradients are no derivatives
@pytest.mark.parametrize("name", NETWORKS)
def test_contributions_are_those_of_backward_passes(tmp_path, monkeypatch, name):
    build, tokens, way = NETWORKS[name]
    torch.manual_seed(0)
    net = build().double()
    x, y = recorded(tmp_path, net, tokens)

    monkeypatch.setattr(Samples, "_forward_costs_less", lambda *_: True)

    def account():
        return ntkit.account(
            tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:3], target="predicted", tol=1e-6
        )

    found = account()
    monkeypatch.setattr(ForwardMode, "products", lambda *_: None)
    expected = account()
    size = expected.contributions.abs().max()
    assert (found.contributions - expected.contributions).abs().max() <= 1e-9 * size
    assert found.plan.contributions == way
    assert expected.plan.contributions == "backward passes"


@pytest.mark.parametrize(("queries", "way"), [(1, "forward mode"), (20, "backward passes")])
@pytest.mark.parametrize("build", [drawn, conv])
def test_many_rows_take_backward_passes_of_each_sample(tmp_path, build, queries, way):
    torch.manual_seed(0)
    net = build().double()
    x, y = recorded(tmp_path, net, False)
    found = ntkit.account(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:queries], tol=1e-6)
    assert found.plan.contributions == way  # rows are queries times 2 outputs, batches are of 8
    assert found.converged


def test_the_way_is_that_of_the_least_counted_cost(tmp_path):
    torch.manual_seed(0)
    wide = nn.Linear(12, 300), nn.Tanh(), nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 2)
    net, ways = nn.Sequential(*wide).double(), set()
    x, y = recorded(tmp_path, net, False)
    with Run(tmp_path) as run, torch.no_grad():
        replay = Replay(run, net, (x, y), F.cross_entropy)
        w, step = run.weights(0), run.step(0)
        (part,) = replay.parts(step)
        for rows in (1, 2, 5, 9):
            a = torch.randn(rows, len(w), dtype=D)
            samples = Samples(replay, 2**30)
            with Counting() as forward:
                ForwardMode(replay, 2**30)._along("mapped", w, 0, part, a)
            with Counting() as backward:
                torch.cat([product(a) for _, product in samples.apart(w, 0, part)])
            ((_, product),) = samples.products(w, 0, step, False)
            product(a)
            ways.add(samples.way)
            assert samples.way == ("forward mode" if forward.cost < backward.cost else "structure")
    assert ways == {"forward mode", "structure"}


def test_directions_go_one_after_the_other_where_memory_is_short(tmp_path):
    torch.manual_seed(0)
    net = conv().double()
    recorded(tmp_path, net, False)
    x, y = torch.randn(20, 12, dtype=D), torch.arange(20) % 2
    with Run(tmp_path) as run, torch.no_grad():
        replay = Replay(run, net, (x, y), F.cross_entropy)
        w, part = run.weights(1), next(replay.parts(run.step(1)))
        a = torch.randn(3, len(w), dtype=D)
        whole = ForwardMode(replay, 2**30)
        least = 8 * (len(w) + 8 * 3 * 3 * 4)  # a direction, and the pictures behind the convolution
        assert whole._bytes(w, 1, part) >= least
        found, expected = ForwardMode(replay, least).products(w, 1, part, a), whole.products(w, 1, part, a)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
