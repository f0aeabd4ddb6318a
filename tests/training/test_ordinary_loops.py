"""Loops as people write them: who is called, when, and where the optimizer is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit
from ntkit.errors import PathMismatchError

D = torch.float64


class Wrapped(nn.Module):
    """A network that a loop may leave aside, calling what it wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


class Halves(nn.Module):
    """A body and a head that a loop may call one after the other."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def forward(self, x):
        return self.head(self.body(x))


def data(n=12, d=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator, dtype=D), torch.arange(n) % 2


def batches(steps=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(12, generator=generator)[:4] for _ in range(steps)]


def accounted(folder, net, x, y):
    found = ntkit.account(folder, net, F.cross_entropy, train=(x, y), queries=x[:2], tol=1e-8)
    assert found.converged
    return found


def wrapped(net):
    return Wrapped(net), net


def halves(net):
    return net, lambda x: net.head(net.body(x))


def parallel(net):
    return nn.DataParallel(net), net


@pytest.mark.parametrize("way", [wrapped, halves, parallel])
@pytest.mark.parametrize("every", [1, 2])
def test_the_recorded_network_is_never_called_itself(tmp_path, way, every):
    torch.manual_seed(0)
    x, y = data()
    net, called = way(Halves().double())
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.5)
    with ntkit.record(tmp_path / "run", net, optimizer, train=(x, y), every=every) as run:
        for i in batches():
            run.batch(i)
            optimizer.zero_grad()
            F.cross_entropy(called(x[i]), y[i]).backward()
            optimizer.step()
            net(x)  # a look at the network in between, with gradients
    accounted(tmp_path / "run", net, x, y)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_batch_is_announced_behind_its_forward_pass(tmp_path, parts):
    torch.manual_seed(0)
    x, y = data()
    net = Halves().double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with ntkit.record(tmp_path / "run", net, optimizer, train=(x, y)) as run:
        for i in batches():
            optimizer.zero_grad()
            for part in i.chunk(parts):
                loss = F.cross_entropy(net(x[part]), y[part]) / parts
                run.batch(part, weight=1 / parts)
                loss.backward()
            optimizer.step()
    accounted(tmp_path / "run", net, x, y)


def test_random_numbers_that_nobody_saw_are_refused(tmp_path):
    torch.manual_seed(0)
    x, y = data()
    net = Halves().double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    losses = [(i, F.cross_entropy(net(x[i]), y[i])) for i in batches(1)]
    with ntkit.record(tmp_path / "run", net, optimizer, train=(x, y)) as run:
        for i, loss in losses:
            run.batch(i)
            loss.backward()
            optimizer.step()
    with pytest.raises(PathMismatchError, match="recording saw none"):
        accounted(tmp_path / "run", net, x, y)


class Attending(nn.Module):
    """Attention with a dropout of its own, or of the layers beside it."""

    def __init__(self, inside, beside):
        super().__init__()
        self.inside = inside
        self.embed, self.qkv, self.out = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 2)
        self.drop = nn.Dropout(beside)

    def forward(self, x):
        h = self.drop(self.embed(x.unflatten(-1, (4, 3))))
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=self.inside if self.training else 0.0)
        return self.out(self.drop(h.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize(("inside", "beside"), [(0.0, 0.2), (0.2, 0.0), (0.2, 0.2)])
def test_attention_in_single_precision(tmp_path, inside, beside):
    torch.manual_seed(0)
    x, y = data(d=12)
    net = Attending(inside, beside)
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    with ntkit.record(tmp_path / "run", net, optimizer, train=(x.float(), y)) as run:
        for i in batches(3):
            run.batch(i)
            optimizer.zero_grad()
            F.cross_entropy(net(x[i].float()), y[i]).backward()
            optimizer.step()
    found = ntkit.account(
        tmp_path / "run", net, F.cross_entropy, train=(x.float(), y), queries=x[:2].float(), tol=1e-5
    )
    assert found.converged


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.01),
    ],
)
def test_optimizers_in_the_backward_pass(tmp_path, make):
    torch.manual_seed(0)
    x, y = data()
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    apart = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    apart.load_state_dict(net.state_dict())
    optimizers = {p: make([p]) for p in net.parameters()}
    together = make(apart.parameters())

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    with ntkit.record(tmp_path / "run", net, list(optimizers.values()), train=(x, y)) as run:
        for i in batches():
            run.batch(i)
            F.cross_entropy(net(x[i]), y[i]).backward()
            together.zero_grad()
            F.cross_entropy(apart(x[i]), y[i]).backward()
            together.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), apart.parameters(), strict=True))
    accounted(tmp_path / "run", net, x, y)
