"""Random networks as a prior, and networks whose last layer is trained as draws from its posterior.

Wide random networks are draws from a Gaussian process with the kernel K of the NNGP, and the Bayesian
predictor given noisy labels is

    mean(x) = K(x, X) (K(X, X) + s^2)^-1 y,   cov(x, x') = K(x, x') - K(x, X) (K(X, X) + s^2)^-1 K(X, x')

(Ravikumar, Section 4, after Lee et al.). A network whose last layer alone is trained from where it was drawn,
on labels with noise drawn anew, kept near its start as strongly as the noise says, is a draw from this
posterior as its width grows (Matthews et al., 2017). A network of which all is trained is not.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, INK, ORANGE
from ntkit.studies import regression
from ntkit.studies.figures import Figures, above, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, array, option
from ntkit.studies.training import loss_of, optimizer_of, step

QUICK = {"widths": (16, 256), "networks": 40, "steps": 400, "all_layers": 2}
HIDDEN = 2


class Config(regression.DescentConfig):
    """Six points on the circle with labels x1 x2, and networks with two hidden layers."""

    widths: tuple[int, ...] = option((16, 64, 512), "Widths of the networks.", low=2, least=2)
    networks: int = option(200, "Networks of each width.", low=10, high=10_000)
    all_layers: int = option(10, "Networks of the largest width of which all layers are trained.", low=2)
    steps: int = option(2000, "Steps of gradient descent.", low=1, high=10**6)
    rate: float = option(1.0, "Learning rate.", low=1e-6, high=10.0)
    noise: float = option(0.1, "Standard deviation s of the labels' noise.", above=0.0, high=10.0)
    angles: int = option(60, "Points on the circle where the functions are compared.", low=2, high=10_000)


def run(config: Config) -> Result:
    """Draw, train, and compare with prior and posterior."""
    angles = torch.tensor([0.3, 0.9, 1.6, 2.6, 3.9, 5.2], dtype=torch.float64)
    x = regression.circle(angles)
    y = x[:, 0] * x[:, 1]
    grid = torch.linspace(-torch.pi, torch.pi, config.angles, dtype=torch.float64)
    points = regression.circle(grid)
    kernel = regression.limit(2, HIDDEN).nngp
    posterior = ntkit.GaussianProcess(kernel, config.noise**2, amplitude=1.0, normalize_y=False)
    mean, cov = posterior.fit(array(x), array(y)).predict(array(points), return_cov=True)
    prior = array(kernel(points))
    std = np.sqrt(np.diag(cov))
    functions: dict[int, np.ndarray] = {}
    drawn: dict[int, np.ndarray] = {}
    with progress("training (networks)", len(config.widths) * config.networks + config.all_layers) as done:
        for width in config.widths:

            def ensemble(width=width) -> tuple[np.ndarray, np.ndarray]:
                return _last_layers(config, width, x, y, points)

            drawn[width], functions[width] = part(f"width {width}", ensemble)
            done(config.networks)

        def whole() -> np.ndarray:
            found = []
            for s in range(config.all_layers):
                model = regression.network(
                    2, config.widths[-1], HIDDEN, config.seed + s, "cpu", torch.float64
                )
                regression.descend(
                    config,
                    model.to(config.device),
                    x.to(config.device),
                    y[:, None].to(config.device),
                    config.steps,
                    config.rate,
                )
                with torch.no_grad():
                    found.append(array(model(points.to(config.device))[:, 0]))
                done(1)
            return np.stack(found)

        full = part("all layers", whole)
    claims = []
    for width in config.widths:
        wide = width == config.widths[-1]
        off = _standard_errors(drawn[width], prior)
        share = _inside(functions[width], mean, std)
        shift = np.abs(functions[width].mean(0) - mean) / (std / config.networks**0.5)
        spread = functions[width].std(0, ddof=1) / std
        claims += [
            Claim(
                f"width {width}: covariance before training off the prior's, in standard errors",
                off,
                high=4.0 if wide else None,
            ),
            Claim(
                f"width {width}: share inside the posterior's 10-90 % band (0.80 there)",
                share,
                low=0.7 if wide else None,
                high=0.9 if wide else None,
            ),
            Claim(
                f"width {width}: mean off the posterior's, root mean square, in standard errors",
                float(np.sqrt(np.mean(shift**2))),
                high=3.0 if wide else None,
            ),
            Claim(
                f"width {width}: deviation over the posterior's, mean",
                float(spread.mean()),
                low=0.85 if wide else None,
                high=1.15 if wide else None,
            ),
        ]
    claims.append(
        Claim(
            f"all layers trained, width {config.widths[-1]}: deviation over the posterior's, mean",
            float((full.std(0, ddof=1) / std).mean()),
        )
    )
    low, high = (mean + norm.ppf(q) * std for q in (0.1, 0.9))
    arrays = {"angles": grid, "mean": mean, "low": low, "high": high, "prior": np.sqrt(np.diag(prior))}
    arrays |= {"x": torch.atan2(x[:, 1], x[:, 0]), "y": y, "all layers": full}
    arrays |= {f"width {w}": f for w, f in functions.items()} | {f"start {w}": f for w, f in drawn.items()}
    return Result(config, claims, arrays)


def figure(result: Result) -> Figures:
    """Draw the quantiles of the ensembles beside prior and posterior."""
    a, widths = result.arrays, result.config.widths
    drawn, axes = panels(3.1 * len(widths), 5.8, 2, len(widths), sharey="row", sharex=True, squeeze=False)
    angles, band = a["angles"], {"color": BLUE, "alpha": 0.25, "lw": 0}
    prior = norm.ppf(0.9) * a["prior"]
    for column, width in zip(axes.T, widths, strict=True):
        for ax, name, low, high, middle in (
            (column[0], "start", -prior, prior, 0 * prior),
            (column[1], "width", a["low"], a["high"], a["mean"]),
        ):
            ax.fill_between(angles, low, high, label="Gaussian process, 10-90 %", **band)
            ax.plot(angles, middle, color=BLUE, label="Gaussian process, mean")
            for q, style in ((0.1, ":"), (0.5, "-"), (0.9, ":")):
                label = "networks, 10, 50, 90 %" if q == 0.5 else None
                ax.plot(
                    angles,
                    np.quantile(a[f"{name} {width}"], q, axis=0),
                    style,
                    color=ORANGE,
                    lw=1.3,
                    label=label,
                )
            ax.grid(alpha=0.3)
        column[0].set_title(f"width {width}")
        column[1].plot(a["x"], a["y"], "o", color=INK, ms=5, label="training points")
        column[1].set_xlabel("angle")
    axes[0][0].set_ylabel("f(x) before training")
    axes[1][0].set_ylabel("f(x), last layer trained")
    above(drawn, axes[1][0], 2)
    return {"Random and trained networks beside prior and posterior": drawn}


def _last_layers(
    config: Config, width: int, x: Tensor, y: Tensor, points: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return the functions at the points of networks as they are drawn, and with their last layers trained.

    (1 / 2n) (|f(X) - y - s e|^2 + s^2 |theta - theta_0|^2), e ~ N(0, 1), by gradient descent on the last
    layer, theta; f(x) = phi(x) . theta, with the tangent features phi of that layer.
    """
    both = torch.cat([x, points]).to(config.device)
    features, drawn = [], []
    for s in range(config.networks):
        model = regression.network(2, width, HIDDEN, config.seed + s, config.device, torch.float64)
        assert isinstance(model, nn.Sequential)
        features.append(ntkit.EmpiricalNTK(model, params=model[-1]).features(both)[:, 0])
        drawn.append(torch.cat([p.detach().reshape(-1) for p in model[-1].parameters()]))
    phi, first = torch.stack(features), torch.stack(drawn)
    draw = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.networks, len(y), generator=draw, dtype=torch.float64)
    target = (y + config.noise * noise).to(config.device)
    inputs, asked = phi[:, : len(x)], phi[:, len(x) :]
    theta = nn.Parameter(first.clone())
    optimizer = optimizer_of(config.optimizer, [theta], config.rate)
    loss = loss_of(config.loss)
    for _ in range(config.steps):
        apart = target.numel() * loss(torch.einsum("snp,sp->sn", inputs, theta), target)
        step(optimizer, (apart + config.noise**2 * (theta - first).square().sum()) / (2 * len(y)))
    with torch.no_grad():
        start, end = (array(torch.einsum("snp,sp->sn", asked, w)) for w in (first, theta))
    return start, end


def _standard_errors(functions: np.ndarray, exact: np.ndarray) -> float:
    """Return how far the second moments of N draws are from S, over sqrt((|S|^2 + tr(S)^2) / N), in norms.

    That is the root of the mean of the squared distance, when the draws are Gaussian with covariance S.
    """
    off = np.linalg.norm(functions.T @ functions / len(functions) - exact)
    return float(off / np.sqrt((np.linalg.norm(exact) ** 2 + np.trace(exact) ** 2) / len(functions)))


def _inside(functions: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Return the share of values within the 10 % and the 90 % quantile of a normal law."""
    return float((np.abs(functions - mean) <= norm.ppf(0.9) * std).mean())
