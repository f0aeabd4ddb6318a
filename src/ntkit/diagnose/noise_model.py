"""How likely each label is wrong, by predictions that did not use it: a model of classes and flips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from ntkit.compute.threads import threads
from ntkit.diagnose.uncertainty import LEVEL, Measured
from ntkit.network import Floats

_FLOOR = 1e-12
_TRUSTED = 0.99
_SURE = 13.8  # of chi^2 with two degrees of freedom, p = 0.001
_STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4)  # of the prior, in labels of a class
_DECISIVE = 10.0  # nats by which labels must be more likely under another than the first setting
_ROUNDS, _AGAIN, _OFTEN = 30, 8, 5  # of expectation and maximization, and of those on a sample drawn again


@dataclass(frozen=True)
class NoiseModel:
    """P(label y | x) = sum_k q_k T_ky,  q = softmax(t f(x)): classes, then flips of class k to label y.

    f ``[n, C]`` are predictions made without the sample's own label, so that the wrong ones need not be
    known. ``sharpness`` t has the largest likelihood of the labels as they are. ``transitions`` T ``[C, C]``
    have a Dirichlet prior around flips that are equally likely from and to each class, worth ``strength``
    labels of a class; that is the strength under which the labels are most likely (empirical Bayes),
    where that is decisive.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose.noise_model import noise_model
    >>> draw = torch.Generator().manual_seed(0)
    >>> y = torch.randint(0, 4, (2000,), generator=draw)
    >>> f = torch.nn.functional.one_hot(y, 4) + 0.2 * torch.randn(2000, 4, generator=draw).double()
    >>> model = noise_model(f, torch.where(torch.arange(2000) < 200, (y + 1) % 4, y))
    >>> model.transitions.argsort(descending=True)[:, 1].tolist()  # where wrong labels of each class go
    [1, 2, 3, 0]
    """

    predictions: Tensor
    labels: Tensor
    sharpness: float
    transitions: Tensor
    strength: float
    informative: bool
    """Whether the predictions tell more of the labels than chance does (likelihood ratio, p < 0.001)."""

    @property
    def wrong(self) -> Floats:
        """The probability that each label is not its sample's class, ``[n]``."""
        return _wrong(self.predictions, self.labels, self.sharpness, self.transitions)

    @property
    def log_likelihood(self) -> float:
        """The logarithm of P(labels | inputs), in nats, summed over the samples."""
        q = torch.softmax(self.sharpness * self.predictions, 1)
        return float((q * self.transitions.T[self.labels]).sum(1).clamp_min(_FLOOR).log().sum())

    @property
    def rate(self) -> float:
        """The share of labels that are expected to be wrong."""
        return float(self.wrong.mean())

    @threads(1)
    def count(self, chosen: np.ndarray, *, seed: int = 0, draws: int = 100) -> Measured:
        """Return how many of the chosen labels are wrong: what is expected, and an interval.

        The interval draws samples with replacement, fits the model again, and draws which labels are wrong.
        NaN, between none and all, where the predictions tell nothing of the labels.
        """
        if not self.informative:
            return Measured(float("nan"), 0.0, float(len(chosen)))
        generator = np.random.default_rng(seed)
        n, found = len(self.labels), []
        for _ in range(draws):
            index = torch.as_tensor(generator.integers(n, size=n))
            again = _Fit(self.predictions[index], self.labels[index], self.sharpness, self.transitions)
            again.strength = self.strength
            again.sharpen()
            for _ in range(_AGAIN):
                again.expect()
            p = _wrong(self.predictions[chosen], self.labels[chosen], again.sharpness, again.transitions)
            found.append(float((generator.random(len(p)) < p).sum()))
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        value = float(self.wrong[chosen].sum())
        return Measured(value, min(float(low), value), max(float(high), value))


@threads(1)  # many operations on few numbers
def noise_model(predictions: Tensor, labels: Tensor) -> NoiseModel:
    """Fit the sharpness and the flips to labels ``[n]`` and predictions ``[n, C]`` made without them.

    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> y = torch.randint(0, 4, (2000,), generator=draw)
    >>> f = torch.nn.functional.one_hot(y, 4) + 0.2 * torch.randn(2000, 4, generator=draw).double()
    >>> flipped = torch.where(torch.arange(2000) < 200, (y + 1) % 4, y)
    >>> model = noise_model(f, flipped)
    >>> abs(model.rate - 0.1) < 0.01, bool(model.wrong[:200].mean() > 0.9)
    (True, True)
    """
    c = predictions.shape[1]
    sharpness, rate = _uniform(predictions, labels)
    fit = _Fit(predictions, labels, sharpness, _flips(rate, c))
    better = 2 * float((fit.likelihood(sharpness) * c).clamp_min(_FLOOR).log().sum())
    for number in range(_ROUNDS):
        if number % _OFTEN == _OFTEN - 1:
            fit.sharpen()
        fit.expect(choose=number > 2)
    return NoiseModel(predictions, labels, fit.sharpness, fit.transitions, fit.strength, better > _SURE)


class _Fit:
    """Expectation and maximization: which class each sample has, then the flips and the sharpness."""

    def __init__(self, f: Tensor, y: Tensor, sharpness: float, transitions: Tensor) -> None:
        self.y, self.sharpness, self.transitions = y, sharpness, transitions
        self.by_class = f.T.contiguous()  # [C, n]: a softmax over rows is several times faster
        self.given = torch.nn.functional.one_hot(y, f.shape[1]).to(f)
        self.strength = 100.0

    def likelihood(self, sharpness: float) -> Tensor:
        """Return P(label) of each sample."""
        return self._joint(sharpness).sum(0)

    def _joint(self, sharpness: float) -> Tensor:
        """Return P(class, label) of each sample, ``[C, n]``."""
        return torch.softmax(sharpness * self.by_class, 0) * self.transitions[:, self.y]

    def sharpen(self) -> None:
        """Move the sharpness to where the labels are most likely."""

        def objective(logarithm: float) -> float:
            return -float(self.likelihood(np.exp(logarithm)).clamp_min(_FLOOR).log().sum())

        at = float(np.log(self.sharpness))
        best = minimize_scalar(
            objective, bounds=(at - 1.5, at + 1.5), method="bounded", options={"maxiter": 15, "xatol": 1e-3}
        )
        self.sharpness = float(np.exp(best.x))  # pyright: ignore[reportAttributeAccessIssue]

    def expect(self, choose: bool = False) -> None:
        """Count flips as they are expected, and take the transitions from these counts and their prior."""
        both = self._joint(self.sharpness)
        counts = (both / both.sum(0).clamp_min(_FLOOR)) @ self.given
        rate = 1 - float(counts.diagonal().sum() / counts.sum())
        prior = _flips(max(rate, 1e-4), len(counts))
        if choose:
            evidence = {strength: _evidence(counts, strength * prior) for strength in reversed(_STRENGTHS)}
            self.strength = more_likely(evidence)
        made = counts + self.strength * prior
        self.transitions = made / made.sum(1, keepdim=True)


def more_likely(candidates: Mapping[float, float]) -> float:
    """Return which of some settings has the largest log-likelihood where that is decisive, else the first.

    >>> more_likely({0.5: -1300.0, 0.1: -1295.0}), more_likely({0.5: -1300.0, 0.1: -1270.0})
    (0.5, 0.1)
    """
    first, *_ = candidates
    best = max(candidates, key=candidates.__getitem__)
    return best if candidates[best] > candidates[first] + _DECISIVE else first


def _evidence(counts: Tensor, prior: Tensor) -> float:
    """Return the logarithm of the probability of counts ``[C, C]`` under Dirichlet priors."""
    rows = torch.lgamma(prior.sum(1)) - torch.lgamma((prior + counts).sum(1))
    return float(rows.sum() + (torch.lgamma(prior + counts) - torch.lgamma(prior)).sum())


def _flips(rate: float, c: int) -> Tensor:
    """Return transitions from each class to every other with the same probability."""
    made = torch.full((c, c), rate / (c - 1), dtype=torch.float64)
    made.fill_diagonal_(1 - rate)
    return made


def _wrong(f: Tensor, y: Tensor, t: float, transitions: Tensor) -> Floats:
    both = torch.softmax(t * f, 1) * transitions.T[y]
    return (1 - both.gather(1, y[:, None])[:, 0] / both.sum(1).clamp_min(_FLOOR)).numpy()


def _uniform(f: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the sharpness and rate of the largest likelihood where flips go to each class alike.

    They are fewer than C - 1 of C labels.
    """
    most = 1 - 1 / f.shape[1]
    columns = f.shape[1] - 1
    column, above = torch.arange(len(y)), (f - f.gather(1, y[:, None])).T.contiguous()

    def parameters(p: Tensor) -> tuple[Tensor, Tensor]:
        return p[0].exp(), most * torch.sigmoid(p[1])

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(p, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            t, e = parameters(leaf)
            q = torch.softmax(t * above, 0)[y, column]
            loss = -((1 - e) * q + e / columns * (1 - q)).clamp_min(_FLOOR).log().mean()
            (slope,) = torch.autograd.grad(loss, leaf)
        return loss.item(), slope.numpy()

    share = 0.1 / most
    begin = np.array([np.log(10.0), np.log(share / (1 - share))])
    best = minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=[(-7, 9), (-12, 12)])
    t, e = parameters(torch.tensor(best.x))
    return float(t), float(e)


def leave_one_out(gram: Tensor, targets: Tensor, alpha: float, weights: Tensor | None = None) -> Tensor:
    """Return what kernel ridge regression predicts for each sample without it, ``[n, o]``.

        f_-n(x_n) = y_n - c_n / G_nn,    c = G y,    G = (K + alpha W^-1)^-1

    >>> import torch
    >>> leave_one_out(torch.ones(3, 3).double(), torch.tensor([[0.0], [2.0], [4.0]]).double(), 1e-6).round()
    tensor([[3.],
            [2.],
            [1.]], dtype=torch.float64)
    """
    matrix = gram.clone()
    matrix.diagonal().add_(alpha if weights is None else alpha / weights)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return targets - (inverse @ targets) / inverse.diagonal()[:, None]


class Regression:
    """Ridge regression on one kernel matrix, whose samples' weights change: what each round costs little.

    With G = (K + alpha)^-1 and D = alpha (1/w - 1) on the samples S whose weight is not one,

        (K + alpha W^-1)^-1 = G - G_:S (D^-1 + G_SS)^-1 G_S:
    """

    def __init__(self, gram: Tensor, targets: Tensor, alpha: float) -> None:
        matrix = gram.clone()
        matrix.diagonal().add_(alpha)
        self.alpha, self.targets = alpha, targets
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        self.coefficients = self.inverse @ targets

    def leave_one_out(self, weights: Tensor | None = None) -> Tensor:
        """Return what is predicted for each sample without it, ``[n, o]``; see `leave_one_out`."""
        c, diagonal = self.coefficients, self.inverse.diagonal()
        some = torch.empty(0) if weights is None else (weights < 1).nonzero()[:, 0]
        if weights is not None and len(some):
            columns = self.inverse[:, some]
            small = columns[some].clone()
            small.diagonal().add_(weights[some] / (self.alpha * (1 - weights[some])))
            both = torch.cat([c[some], columns.T], 1)
            solved = torch.cholesky_solve(both, torch.linalg.cholesky(small))
            c = c - columns @ solved[:, : c.shape[1]]
            diagonal = diagonal - (columns * solved[:, c.shape[1] :].T).sum(1)
        return self.targets - c / diagonal[:, None]


def robust(
    gram: Tensor,
    targets: Tensor,
    labels: Tensor,
    alphas: Sequence[float],
    rounds: int,
    done: Callable[[int], None],
) -> tuple[NoiseModel, float]:
    """Fit the model to leave-one-out predictions, in rounds that weight samples by 1 - P(wrong).

    Weights above 0.99 count as one. Of several ridges the first is taken, or another under which the labels
    are decisively more likely in the last round; it is returned, too.
    """
    models: dict[float, NoiseModel] = {}
    for alpha in alphas:
        regression, weights = Regression(gram, targets - targets.mean(0), alpha), None
        for _ in range(rounds):
            models[alpha] = noise_model(regression.leave_one_out(weights), labels)
            right = torch.as_tensor(1 - models[alpha].wrong).clamp_min(1e-3)
            weights = torch.where(right > _TRUSTED, 1.0, right)
            done(1)
    best = more_likely({alpha: model.log_likelihood for alpha, model in models.items()})
    return models[best], best
