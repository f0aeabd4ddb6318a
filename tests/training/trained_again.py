"""Runs that are trained again, and the derivatives of their ends by finite differences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn, optim

import ntkit

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
    "Nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 0.01, weight_decay=1e-2),
    "AMSGrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
    "NAdam": lambda p: optim.NAdam(p, 0.01),
    "RAdam": lambda p: optim.RAdam(p, 0.01),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1),
    "Adadelta": lambda p: optim.Adadelta(p, 1.0),
    "Adamax": lambda p: optim.Adamax(p, 0.01),
}
N, STEPS = 30, 8


def network(norm=True):
    first = (nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6)) if norm else (nn.Linear(5, 6),)
    dropout = [nn.Dropout(0.2)] if norm else []
    return nn.Sequential(*first, nn.Tanh(), *dropout, nn.Linear(6, 3))


def recorded(
    folder, make, net=None, clip=None, schedule=True, every=1, dtype=torch.float64, loss=F.cross_entropy
):
    torch.manual_seed(0)
    net = (network() if net is None else net).to(dtype)
    x, y = torch.randn(N, 5, dtype=dtype), torch.arange(N) % 3
    x[:, 0] = 0  # as a border of pictures: no gradient ever
    optimizer = make(net.parameters())
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with ntkit.record(folder, net, optimizer, train=(x, y), every=every) as run:
        for k in range(STEPS):
            batch = torch.randperm(N)[: 10 if k % 3 else 7]
            run.batch(batch)
            optimizer.zero_grad()
            loss(net(x[batch]), y[batch]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            if schedule:
                scheduler.step()
    return net, x, y


def slope(folder, net, x, y, sample, loss=F.cross_entropy, **ask):
    """Return d outputs / d eps of a sample, by Richardson's extrapolation of central differences."""

    def central(h):
        ends = []
        for sign in (1, -1):
            eps = torch.ones(N, dtype=torch.float64)
            eps[sample] += sign * h
            again = ntkit.retrain(folder, net, loss, train=(x, y), weights=eps, **ask)
            ends.append(again.outputs(x[:2]))
        return (ends[0] - ends[1]) / (2 * h)

    return (4 * central(1e-4) - central(2e-4)) / 3
