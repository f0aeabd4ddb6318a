"""Runs as people have them, trained again and differentiated: each once went wrong in silence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from trained_again import N, slope

import ntkit
from ntkit.errors import NotSeparableError, NtkitError, PathMismatchError, RunFolderError

CE = F.cross_entropy


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(N, 5, dtype=dtype), torch.arange(N) % 3


def trained(folder, net, optimizers, loss=CE, steps=6, before=lambda k: None, stepping=None, **options):
    """Record a training; ``before(k)`` is called between the backward pass and the step."""
    x, y = data(next(net.parameters()).dtype)
    with ntkit.record(folder, net, optimizers, train=(x, y), **options) as run:
        for k in range(steps):
            batch = torch.randperm(N)[:12]
            run.batch(batch)
            net.zero_grad()
            loss(net(x[batch]), y[batch]).backward()
            before(k)
            for i, optimizer in enumerate(optimizers):
                if stepping is None or stepping(i, k):
                    optimizer.step()
    return net, x, y


def right(folder, net, x, y, loss=CE, sample=4, tol=1e-7):
    assert ntkit.retrain(folder, net, loss, train=(x, y), without=[]).difference == 0
    c = ntkit.counterfactual(folder, net, loss, train=(x, y), queries=x[:2])
    truth = slope(folder, net, x, y, sample, loss)
    assert (truth + c.effects[..., sample]).abs().max() <= tol * c.effects.abs().max()


def test_momentum_beside_adam_that_steps_each_third_time(tmp_path):
    net = mlp()
    both = [optim.SGD(net[0].parameters(), 0.1, momentum=0.9), optim.Adam(net[2].parameters(), 0.02)]
    right(tmp_path, *trained(tmp_path, net, both, stepping=lambda i, k: i == 0 or k % 3 == 0))


def test_a_rate_of_zero(tmp_path):
    net = mlp()
    optimizer = optim.AdamW(net.parameters(), 0.02)

    def warm_up(k):
        optimizer.param_groups[0]["lr"] = 0.02 * min(1, k / 3)

    right(tmp_path, *trained(tmp_path, net, [optimizer], before=warm_up))


def test_frozen_weights_that_an_optimizer_holds(tmp_path):
    net = mlp()
    net[0].weight.requires_grad_(False)

    def clip(_):
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)

    right(tmp_path, *trained(tmp_path, net, [optim.SGD(net.parameters(), 0.1, momentum=0.5)], before=clip))


class Twice(nn.Module):
    """A batch norm that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.b(torch.tanh(self.norm(torch.tanh(self.norm(self.a(x))))))


def test_a_batch_norm_used_twice(tmp_path):
    net = Twice()
    right(tmp_path, *trained(tmp_path, net, [optim.SGD(net.parameters(), 0.1)]))


@pytest.mark.parametrize("most", [1 / 3, 0.25])
def test_one_clipped_step_of_many(most, tmp_path):
    net = mlp()

    def plain(_):
        nn.utils.clip_grad_norm_(net.parameters(), most)

    right(tmp_path, *trained(tmp_path, net, [optim.SGD(net.parameters(), 0.3)], before=plain))


class Scaled(nn.Module):
    """A parameter without an axis."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(1.3))
        self.double()

    def forward(self, x):
        return self.scale * torch.tanh(self.inner(x))


@pytest.mark.parametrize("kind", [optim.Adagrad, optim.Adam])
def test_a_parameter_without_an_axis(kind, tmp_path):
    net = Scaled()
    right(tmp_path, *trained(tmp_path, net, [kind(net.parameters(), 0.05)]))


def test_gradients_that_are_only_rounding(tmp_path):
    """A bias before a batch norm has none, and Adam divides what rounding leaves by its own size."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    net, x, y = trained(tmp_path, net, [optim.Adam(net.parameters(), 0.01)])
    assert ntkit.retrain(tmp_path, net, CE, train=(x, y), without=[]).difference == 0
    c = ntkit.counterfactual(tmp_path, net, CE, train=(x, y), queries=x[:2])
    check = c.check(sets=5)
    assert c.effects.isfinite().all() and check.rank_correlation > 0.9


def test_a_run_that_was_resumed_with_a_new_optimizer(tmp_path):
    net, x, y = mlp(), *data()
    trained(tmp_path, net, [optim.Adam(net.parameters(), 0.02)])
    trained(tmp_path, net, [optim.Adam(net.parameters(), 0.02)], resume=True)
    right(tmp_path, net, x, y)


class Detached(nn.Module):
    """A gate that derivatives do not see."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        h = self.a(x)
        return self.b(h * torch.sigmoid(h).detach())


def focal(o, t):
    each = CE(o, t, reduction="none")
    return ((1 - (-each).exp().detach()) ** 2 * each).mean()


@pytest.mark.parametrize(("make", "loss"), [(Detached, CE), (mlp, focal)])
def test_what_is_detached_is_refused(make, loss, tmp_path):
    net = make()
    net, x, y = trained(tmp_path, net, [optim.SGD(net.parameters(), 0.1)], loss)
    with pytest.raises(NtkitError, match=r"does not see.*ntkit\.retrain"):
        ntkit.counterfactual(tmp_path, net, loss, train=(x, y), queries=x[:2])
    assert ntkit.retrain(tmp_path, net, loss, train=(x, y), without=[]).difference == 0


def ranking(o, t):
    return torch.relu(1 - (o[0::2] - o[1::2])).mean() + 0 * t.sum()


def hardest(o, t):
    return CE(o, t, reduction="none").topk(3).values.mean()


def of_the_batch(o, t):
    each = CE(o, t, reduction="none")
    return (torch.softmax(each.detach(), 0) * each).sum()


@pytest.mark.parametrize("loss", [ranking, hardest, of_the_batch])
def test_losses_that_mix_samples_are_refused(loss, tmp_path):
    net = mlp()
    net, x, y = trained(tmp_path, net, [optim.SGD(net.parameters(), 0.1)], loss)
    with pytest.raises(NotSeparableError):
        ntkit.retrain(tmp_path, net, loss, train=(x, y), without=[1])


def test_other_data_another_loss_and_kept_rows_of_another_cut_are_refused(tmp_path):
    net = mlp()
    folder = tmp_path / "run"
    net, x, y = trained(folder, net, [optim.SGD(net.parameters(), 0.1)])
    with pytest.raises(PathMismatchError, match="sha256"):
        ntkit.retrain(folder, net, CE, train=(x + 1, y), without=[3])
    with pytest.raises(PathMismatchError, match="Step 0"):
        ntkit.retrain(folder, net, nn.CrossEntropyLoss(reduction="sum"), train=(x, y), without=[3])
    ask = {"train": (x, y), "queries": x[:4], "keep": tmp_path / "kept"}
    ntkit.counterfactual(folder, net, CE, **ask, memory="10KiB")
    with pytest.raises(RunFolderError, match="memory"):
        ntkit.counterfactual(folder, net, CE, **ask, memory="1MiB")
    for nothing in ([], torch.tensor([]), slice(0, 0), torch.zeros(N, dtype=torch.bool)):
        assert ntkit.retrain(folder, net, CE, train=(x, y), without=nothing).difference == 0


class Steps(nn.Module):
    """Outputs with the step of a sequence first, of which there are as many as samples in a batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 12 * 3)

    def forward(self, x):
        return self.layer(x).view(-1, 12, 3).transpose(0, 1)


def test_outputs_whose_first_axis_is_another(tmp_path):
    def loss(outputs, y):
        return F.cross_entropy(outputs[-1], y)

    torch.manual_seed(0)
    net = Steps().double()
    net, x, y = trained(tmp_path, net, [optim.SGD(net.parameters(), 0.1)], loss)
    with pytest.raises(NtkitError, match=r"first axis must be the sample"):
        ntkit.counterfactual(tmp_path, net, loss, train=(x, y), queries=x[:2])
    with pytest.raises(NtkitError, match=r"begin with 12 by chance"):
        ntkit.retrain(tmp_path, net, loss, train=(x, y), without=[1])


def test_a_weight_norm_has_no_second_derivative_of_its_own(tmp_path):
    torch.manual_seed(0)
    first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(6, 3)).double()
    run = trained(tmp_path, net, [optim.SGD(net.parameters(), 0.1)])
    try:
        right(tmp_path, *run)
    except NtkitError as error:
        assert "weight_norm" in str(error)


def test_norms_that_average_all_batches_with_accumulation(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    x, y = data()
    optimizer = optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with ntkit.record(tmp_path, net, optimizer, train=(x, y)) as run:
        for _ in range(5):
            net.zero_grad()
            for batch in torch.randperm(N)[:14].split(7):
                run.batch(batch, weight=0.5)
                (0.5 * CE(net(x[batch]), y[batch])).backward()
            optimizer.step()
    right(tmp_path, net, x, y)


class TiedTokens(nn.Module):
    """An embedding with a padding index, whose weight is the last layer's too."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6, padding_idx=0)

    def forward(self, x):
        return F.linear(self.table(x).mean(1).tanh(), self.table.weight)


def test_a_tied_embedding_with_padding_is_right_or_refused(tmp_path):
    torch.manual_seed(0)
    net = TiedTokens().double()
    x = torch.randint(0, 7, (N, 4), generator=torch.Generator().manual_seed(3))
    y, optimizer = torch.arange(N) % 7, optim.SGD(net.parameters(), 0.5)
    with ntkit.record(tmp_path, net, optimizer, train=(x, y)) as run:
        for _ in range(5):
            batch = torch.randperm(N)[:12]
            run.batch(batch)
            net.zero_grad()
            CE(net(x[batch]), y[batch]).backward()
            optimizer.step()
    try:
        right(tmp_path, net, x, y)
    except NtkitError as error:
        assert "padding_idx" in str(error)
