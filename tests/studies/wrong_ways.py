"""Ways to make a study wrong: an untrained network, shuffled labels, noise in place of what is measured."""

import types
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ntkit
from ntkit.data.digits import digits
from ntkit.studies import planar_networks

Patch = Callable[[pytest.MonkeyPatch, ModuleType], None]


def put(name: str, value: Any) -> Patch:
    """Replace a name of the study's module."""
    return lambda monkeypatch, study: monkeypatch.setattr(study, name, value)


def both(*patches: Patch) -> Patch:
    """Make several things wrong."""

    def patch(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
        for each in patches:
            each(monkeypatch, study)

    return patch


def as_it_is(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Leave all as it is: the options make the wrong."""


def no_steps(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Leave every network of the study untrained."""
    for place in (study, *(v for v in vars(study).values() if isinstance(v, ModuleType))):
        if place.__name__.startswith("ntkit.studies") and hasattr(place, "step"):
            monkeypatch.setattr(place, "step", lambda optimizer, loss: None)


def untrained_account(config: Any, net: Any, x: Any, y: Any, folder: str) -> None:
    """Record steps of no length: a network that learns nothing."""
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with ntkit.record(folder, net, optimizer, train=(x, y)) as run:
        run.batch(range(8))
        torch.nn.functional.binary_cross_entropy_with_logits(net(x[:8]), y[:8]).backward()
        optimizer.step()


def noisy_account(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Replace what each sample contributed by noise of the same size; the residual is what it then is."""
    true = ntkit.account

    def account(*args: Any, **options: Any) -> Any:
        a = true(*args, **options)
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(a.contributions.shape, generator=draw, dtype=torch.float64)
        noise = noise.abs() * a.contributions.abs().mean()
        left = a.residual + a.contributions.sum(-1) - noise.sum(-1)
        return replace(a, contributions=noise, residual=left)

    monkeypatch.setattr(ntkit, "account", account)


def noisy_kernel(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Take the tangent kernel of another network, drawn anew, each time it is asked for."""
    true, seeds = ntkit.EmpiricalNTK, iter(range(10**6))

    def kernel(model: nn.Module, *args: Any, **options: Any) -> Any:
        other = nn.Sequential(nn.Tanh(), model) if isinstance(model, nn.Linear) else model
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(next(seeds))
            for p in other.parameters():
                p.copy_(torch.randn_like(p))
        return true(other, *args, **options)

    monkeypatch.setattr(ntkit, "EmpiricalNTK", kernel)


def shuffled(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs with labels of others."""
    return x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(5))]


def shuffle(name: str) -> Patch:
    """Shuffle the labels that a function of the study's module gives."""

    def patch(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
        true = getattr(study, name)
        monkeypatch.setattr(study, name, lambda *args, **options: shuffled(*true(*args, **options)))

    return patch


def shuffled_digits(*args: Any, **options: Any) -> Any:
    """Return scikit-learn's digits with labels of others, whatever pictures are asked for."""
    data = digits(150, held_out=150, seed=0)
    return replace(data, train_y=shuffled(data.train_x, data.train_y)[1])


def two_pictures(*args: Any, **options: Any) -> Any:
    """Return digits of ten classes that are only two different pictures."""
    data = digits(150, held_out=150, seed=0)
    turn = torch.arange(150) % 2
    return replace(data, train_x=data.train_x[:2][turn], held_out_x=data.train_x[:2][turn])


def noise_pictures(data: str, samples: int, held_out: int, seed: int) -> Any:
    """Return noise of the size of MNIST's pictures."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 784, generator=draw, dtype=torch.float64)
    return types.SimpleNamespace(train_x=x, train_y=torch.zeros(samples, dtype=torch.int64))


def one_width(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Make all networks equally narrow, whatever width is asked for."""
    true = study.regression.network
    monkeypatch.setattr(
        study.regression, "network", lambda inputs, width, *rest, **options: true(inputs, 4, *rest, **options)
    )


def double_weights(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Draw networks whose weights are twice as large as the limit's."""
    true = study.regression.network

    def network(*args: Any, **options: Any) -> nn.Module:
        model = true(*args, **options)
        with torch.no_grad():
            for p in model.parameters():
                p *= 2
        return model

    monkeypatch.setattr(study.regression, "network", network)


def one_rate(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Descend at the same rate whatever rate is asked for."""
    true = study._descent
    monkeypatch.setattr(
        study, "_descent", lambda config, x, y, q, rate: true(config, x, y, q, config.rates[0])
    )


def no_descent(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Look at networks without training them."""

    def descend(how: Any, model: Any, x: Any, y: Any, steps: int, rate: float, look: Any = None) -> None:
        for made in range(steps + 1 if look else 0):
            look(made)

    monkeypatch.setattr(study.regression, "descend", descend)


def few_features(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Draw 16 features whatever number is asked for, and 8 where the draw is a better one."""
    true = ntkit.RandomFeatures

    def features(kind: str, m: int, seed: int, *, draw: str = "iid", **options: Any) -> Any:
        return true(kind, 16 if draw == "iid" else 4, seed, **options)

    monkeypatch.setattr(ntkit, "RandomFeatures", features)


def other_weights(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Draw networks whose weights are smaller than the limit's."""
    true = ntkit.monte_carlo
    monkeypatch.setattr(
        ntkit, "monte_carlo", lambda *args, sigma_w, **options: true(*args, sigma_w=sigma_w / 2, **options)
    )


def one_scale(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Train at the same scale whatever scale is asked for."""
    true = study._flow
    monkeypatch.setattr(
        study, "_flow", lambda config, model, x, y, alpha, *rest: true(config, model, x, y, 8.0, *rest)
    )


def swapped_needs(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Let the kernel need d samples and the network d squared."""
    turns = iter([1, 2] * 100)
    monkeypatch.setattr(study, "_needed", lambda config, d, *rest: d ** next(turns))


def growing_errors(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Let each error be larger than the one before."""
    count = iter(range(1, 10**6))
    monkeypatch.setattr(study, "_error", lambda *args: float(next(count)))


def erf_for_a_polynomial(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Call a function a polynomial that is none."""
    monkeypatch.setattr(study, "square_and_line", torch.erf)
    monkeypatch.setattr(study, "ACTIVATIONS", {"x² + x": torch.erf})


def noise_of(u: torch.Tensor) -> torch.Tensor:
    """Return noise in place of a function."""
    return torch.randn(u.shape, dtype=u.dtype, generator=torch.Generator().manual_seed(len(u)))


def targets(f: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    """Make all targets of the polynomials one function."""
    return put("TARGETS", dict.fromkeys(("degree 1", "degree 2", "degree 3", "one neuron"), f))


def untrained_planar(config: Any, given: Any) -> nn.Module:
    """Return a network as it is drawn."""
    return planar_networks.build(given.architecture, config.channels).eval()


def even_noise(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Draw noise that is the same on each of 60 samples."""

    def rng(seed: int) -> Any:
        draw = np.random.default_rng(seed)
        return types.SimpleNamespace(
            normal=lambda size: np.ones(60) if size == 60 else draw.normal(size=size)
        )

    theirs = types.SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if name != "random"})
    theirs.random = types.SimpleNamespace(default_rng=rng)
    monkeypatch.setattr(study, "np", theirs)


def zero_labels(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> None:
    """Give all sequences with more peaks the label 0."""
    monkeypatch.setattr(study.more_peaks, "filled", torch.zeros_like)
