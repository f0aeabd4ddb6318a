"""Whether the middle lies between two peaks: a network that found the algorithm, and its features.

All sequences of length p with two peaks, the label being whether p / 2 lies between them; a network p-10-10-1
with GELU, full-batch gradient descent on about half of them (Courtois, Morel, Arias, Section 6.3, Figures 11
and 12). Accuracy is counted on all sequences. The nearest sequences by the normalized tangent kernel are
those that share exactly one peak; a t-SNE of the tangent features shows three groups.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.parity import two_peaks
from ntkit.display.axes import BLUE, ORANGE
from ntkit.studies.figures import Figures, panels
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import mlp, seeded, step

QUICK = {"p": 16, "samples": 60, "steps": 5000, "seeds": 1}


class Config(StudyConfig):
    """The paper's numbers."""

    p: int = option(64, "Length of the sequences.", low=4, high=256)
    samples: int = option(1024, "Sequences to learn from.", low=2)
    steps: int = option(10_000, "Steps of gradient descent.", low=1, high=10**6)
    rate: float = option(0.1, "Learning rate.", low=1e-6, high=1.0)
    width: int = option(10, "Units in each of the two hidden layers.", low=1, high=1000)
    seeds: int = option(3, "Networks that are trained.", low=1, high=100)


def run(config: Config) -> Result:
    """Train, count, look at neighbors and at a map of the features."""
    x, y = (t.to(config.device) for t in two_peaks(config.p))
    models = [_train(config, x, y, config.seed + s) for s in range(config.seeds)]
    with torch.no_grad():
        right = [float(((model(x) > 0.5) == (y > 0.5)).double().mean()) for model in models]
    model = models[int(np.argmax(right))]
    kernel = ntkit.EmpiricalNTK(model)
    cosine = kernel.normalized()(x).fill_diagonal_(-2)
    common = x @ x.T
    nearest = cosine.argmax(1)
    share = float((common.gather(1, nearest[:, None]) == 1).double().mean())
    chance = float((common == 1).double().sum() / (len(x) * (len(x) - 1)))
    features = array(kernel.features(x)[:, 0])
    chart = TSNE(random_state=config.seed, perplexity=min(30.0, len(x) / 4)).fit_transform(features)
    bar = 0.95 if config.changed else 0.999
    claims = (
        Claim(f"accuracy on all {len(x)}, worst of {config.seeds}", min(right), "100 %", low=bar),
        Claim(f"accuracy on all {len(x)}, best of {config.seeds}", max(right), "100 %"),
        Claim("nearest sequences that share exactly one peak", share, "yes", low=0.99),
        Claim("the same for a random sequence", chance),
    )
    arrays = {"chart": chart, "label": y.reshape(-1), "first": x.argmax(1)}
    return Result(config, claims, arrays, {"accuracies": right})


def figure(result: Result) -> Figures:
    """Draw the t-SNE of the tangent features, by label and by the place of the first peak."""
    chart, label, first = (result.arrays[name] for name in ("chart", "label", "first"))
    drawn, (left, right) = panels(9, 4.2, columns=2)
    for value, color in ((1, BLUE), (0, ORANGE)):
        left.scatter(*chart[label == value].T, s=4, color=color, label=f"label {value}")
    left.legend(frameon=False)
    shown = right.scatter(*chart.T, s=4, c=first + 1, cmap="viridis")
    drawn.colorbar(shown, ax=right, label="place of the first peak")
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
    return {"Tangent features of all sequences (t-SNE)": drawn}


def _train(config: Config, x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    with seeded(seed):
        model = mlp(config.p, config.width, config.width, 1, activation=nn.GELU)
        index = torch.randperm(len(x))[: config.samples]
    model.to(config.device, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), config.rate)
    with progress("training (steps)", config.steps) as done:
        for _ in range(config.steps):
            step(optimizer, nn.functional.mse_loss(model(x[index]), y[index]))
            done(1)
    return model
