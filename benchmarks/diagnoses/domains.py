"""Who tells pictures from elsewhere, and whose scores go with the error as pictures shift by degrees."""

from __future__ import annotations

import time

import numpy as np
import torch
from diagnoses.sets import Pair, pairs, trained
from scipy import ndimage, stats
from torch import Tensor

import ntkit
from ntkit.data.mnist import mnist
from ntkit.diagnose import Detectors, novelty, ood_report, shift_report
from ntkit.diagnose.extrapolation import MEASURES, Known, p_value
from ntkit.files import hash_data
from ntkit.kernel import Kernel

NETWORKS = 5
SEEDS = range(3)  # the networks whose own scores are reported; all five are the ensemble
ALPHA = 1e-2  # as in `novelty`


class Remembered(Kernel):
    """A kernel that computes each block once: that of a limit is the same for networks of all seeds."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._blocks: dict[str, Tensor] = {}

    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Return the block, an earlier one where the samples are the same."""
        key = hash_data(x1) + ("" if x2 is None else hash_data(x2))
        if key not in self._blocks:
            self._blocks[key] = self.kernel(x1, x2)
        return self._blocks[key]

    def diag(self, x: Tensor) -> Tensor:
        """Return the diagonal."""
        return self.kernel.diag(x)


def nngp(model: torch.nn.Module, x: Tensor) -> Kernel:
    """Return the NNGP of a network's architecture."""
    return ntkit.infinite_width(model, x[:1], sigma_w=2**0.5, sigma_b=0.1).nngp


def kernels(model: torch.nn.Module, limit: Kernel) -> dict[str, Kernel]:
    """Return the tangent, the conjugate and the NNGP kernel of a network."""
    return {
        "tangent": ntkit.EmpiricalNTK(model),
        "conjugate": ntkit.ConjugateKernel(model),
        "NNGP": limit,
    }


def measure(name: str) -> dict:
    """Return AUROC and FPR95 of each score, the mean over three networks, and tests of the p-values."""
    pair, begin = pairs()[name](), time.perf_counter()
    networks = [trained(pair.network, pair.x, pair.y, seed, rate=_rate(name)) for seed in range(NETWORKS)]
    found, tests, limit = [], [], Remembered(nngp(networks[0], pair.x))
    for seed in SEEDS:
        model = networks[seed]
        others = [m for m in networks if m is not model]
        detectors = Detectors(
            model, (pair.x, pair.y), kernels=kernels(model, limit), ensemble=others, alpha=ALPHA
        )
        found.append(ood_report(detectors, inside=pair.inside, outside=pair.outside))
        tests += _uniform(detectors, pair, seed)
        print(f"  {pair.name}, network {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    first = found[0]
    values = {
        key: np.stack([getattr(r, key)[:, 0] for r in found]) for key in ("auroc", "fpr95", "low", "high")
    }
    with torch.no_grad():
        right = [float((m(pair.inside).argmax(1) == pair.inside_y).double().mean()) for m in networks]
    return {
        "set": name,
        "title": pair.name,
        "train": len(pair.x),
        "accuracy": float(np.mean(right)),
        "methods": list(first.methods),
        "of_kernels": first.of_kernels.tolist(),
        **{key: v.mean(0).tolist() for key, v in values.items()},
        "auroc_each": values["auroc"].tolist(),
        "uniform": tests,
        "seconds": time.perf_counter() - begin,
    }


def _rate(name: str) -> float:
    return 0.05 if name == "cifar" else 0.1


def _uniform(detectors: Detectors, pair: Pair, seed: int) -> list[dict]:
    """Return the Kolmogorov-Smirnov test of the p-values of held-out queries, for each kernel and measure."""
    rows = []
    for name, known in detectors.known.items():
        known: Known
        own, among = known.scores(pair.calibration), known.scores(pair.inside)
        for measure in MEASURES:
            p = p_value(getattr(own, measure), getattr(among, measure))
            levels = np.arange(1, len(pair.calibration) + 2) / (len(pair.calibration) + 1)
            test = float(stats.ks_2samp(p, levels).pvalue)
            rows.append({"kernel": name, "measure": measure, "seed": seed, "p": test})
    return rows


def shifts(count: int = 500) -> dict:
    """Return how scores of an MNIST network go with its error, as digits turn, blur and fade."""
    pair = pairs()["mnist"]()
    x, y = (t[:count] for t in (pair.inside, pair.inside_y))
    networks = [trained(pair.network, pair.x, pair.y, seed) for seed in range(NETWORKS)]
    found, limit = [], Remembered(nngp(networks[0], pair.x))
    for seed in SEEDS:
        model = networks[seed]
        others = [m for m in networks if m is not model]
        detectors = Detectors(model, (pair.x, pair.y), kernels=kernels(model, limit), ensemble=others)
        found.append(shift_report(detectors, graded(x), y))
        print(f"  shifts, network {seed}", flush=True)
    first = found[0]
    return {
        "methods": list(first.methods),
        "of_kernels": first.of_kernels.tolist(),
        "shifts": list(first.shifts),
        "correlation": np.mean([r.correlation for r in found], 0).tolist(),
        "error": np.mean([r.error for r in found], 0).tolist(),
    }


def graded(x: Tensor) -> dict[str, list[Tensor]]:
    """Return digits turned by 0 to 60 degrees, blurred by up to two pixels, and faded to a tenth."""
    pictures = x.reshape(-1, 28, 28).numpy()

    def each(change) -> Tensor:
        return torch.tensor(np.stack([change(p) for p in pictures])).reshape(len(x), -1).float()

    return {
        "rotation (0 to 60 degrees)": [
            each(lambda p, a=a: ndimage.rotate(p, a, reshape=False, order=1)) for a in (0, 15, 30, 45, 60)
        ],
        "blur (0 to 2 pixels)": [
            each(lambda p, s=s: ndimage.gaussian_filter(p, s)) for s in (0, 0.5, 1, 1.5, 2)
        ],
        "contrast (1 to 0.1)": [x * c for c in (1, 0.7, 0.4, 0.2, 0.1)],
    }


def costs(n: int = 5000, q: int = 10_000) -> list[dict]:
    """Return the seconds that the novelty of q queries takes for n training samples."""
    data = mnist(n, held_out=q, dtype=torch.float32)
    model = trained(lambda: pairs()["mnist"]().network(), data.train_x, data.train_y, 0, epochs=2)
    rows = []
    for name, kernel in kernels(model, nngp(model, data.train_x)).items():
        begin = time.perf_counter()
        novelty(kernel, data.train_x, data.held_out_x, labels=data.train_y, alpha=ALPHA)
        rows.append({"kernel": name, "n": n, "queries": q, "seconds": time.perf_counter() - begin})
    return rows
