"""For each study: what is made wrong, the bars that must then be missed, and small options."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from small_options import (
    DESCENT,
    EXTRAPOLATION,
    FLOW,
    KERNEL_ONLY,
    PARITY,
    PEAKS,
    PLANAR,
    PLANE,
    POLYNOMIALS,
    POSTERIOR,
)
from wrong_ways import (
    Patch,
    as_it_is,
    both,
    double_weights,
    erf_for_a_polynomial,
    even_noise,
    few_features,
    growing_errors,
    no_descent,
    no_steps,
    noise_of,
    noise_pictures,
    noisy_account,
    noisy_kernel,
    one_rate,
    one_scale,
    one_width,
    other_weights,
    put,
    shuffle,
    shuffled_digits,
    swapped_needs,
    targets,
    two_pictures,
    untrained_account,
    untrained_planar,
    zero_labels,
)

import ntkit
from ntkit.data.parity import two_peaks
from ntkit.data.toy import half_plane
from ntkit.studies import parity_1d
from ntkit.studies.kernel_pca import power_iteration


@dataclass(frozen=True)
class Wrong:
    """Something wrong, the bars that it misses (by the beginning or a part of their texts), and options."""

    what: str
    patch: Patch
    misses: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False


WRONG: dict[str, list[Wrong]] = {
    "path-kernel": [
        Wrong("noise", noisy_account, ("gradient descent: error of the exact",), FLOW, long=True),
        Wrong("other kernel", noisy_kernel, ("flow: error",), FLOW, long=True),
        Wrong("one rate", one_rate, (".*slope in the rate",), FLOW, long=True),
    ],
    "still-weights": [
        Wrong(
            "one width",
            one_width,
            ("(hidden|last) matrix: slope",),
            {"widths": (32, 256), "seeds": 1, "steps": 10},
        ),
    ],
    "nngp-posterior": [
        Wrong("untrained", no_steps, (r"width \d+: (share|mean|deviation)",), POSTERIOR, long=True),
        Wrong("other weights", double_weights, (r"width \d+: covariance",), POSTERIOR, long=True),
    ],
    "ball-sphere": [
        Wrong(
            "shuffled",
            shuffle("ball_sphere"),
            (
                "accuracy, worst",
                "linear SVM on tangent",
                "SVM with",
                "radius of the network",
                "distance of the two",
            ),
            PLANE,
            long=True,
        ),
        Wrong("noise", noisy_account, ("slope", "error of the exact"), PLANE),
        Wrong("a line", put("ball_sphere", half_plane), ("linear SVM on inputs",), PLANE),
    ],
    "half-plane": [
        Wrong(
            "shuffled", shuffle("half_plane"), ("accuracy", "accuracy on new", "linear SVM"), PLANE, long=True
        ),
        Wrong("noise", noisy_account, ("slope", "error of the exact"), PLANE),
    ],
    "linear-regression": [
        Wrong("noise", noisy_account, ("error of Eq. 9",), {"samples": 20, "steps": 5}),
        Wrong("other kernel", noisy_kernel, ("largest",), {"samples": 20, "steps": 5}),
    ],
    "parity-1d": [
        Wrong(
            "untrained",
            no_steps,
            (r".* peaks: best of", r".* peaks: the same on", r"w\* \+ 0.1", "p = "),
            PARITY,
        ),
        Wrong(
            "drawn",
            put("by_hand", lambda p, r=2: parity_1d.Structure(p, r)),
            ("error of the structure",),
            PARITY,
        ),
        Wrong(
            "set by hand",
            put("_train", lambda config, setting, seed: parity_1d.by_hand(setting.p)),
            (r"w\* \+ 0.5",),
            PARITY,
        ),
    ],
    "planar-topology": [
        Wrong(
            "untrained",
            put("train_network", untrained_planar),
            ("U-Net: IoU in domain", "U-Net: mean IoU out", "the same, of shapes drawn"),
            PLANAR,
            long=True,
        ),
    ],
    "two-peaks": [
        Wrong(
            "untrained",
            no_steps,
            ("accuracy on all", ".*nearest by kernel, right", "3 peaks, Adam: accuracy on the unseen"),
            PEAKS,
            long=True,
        ),
        Wrong(
            "one label",
            put("two_peaks", lambda p: (two_peaks(p)[0], torch.ones(p * (p - 1) // 2, 1).double())),
            (".*nearest by distance, right",),
            PEAKS,
            long=True,
        ),
        Wrong("one label for more", zero_labels, (r"\d peaks, plain descent",), PEAKS, long=True),
        Wrong("noise", noisy_account, ("account of Adam's run",), PEAKS, long=True),
    ],
    "planar-account": [
        Wrong(
            "noise",
            noisy_account,
            ("the account: residual",),
            {"shapes": 16, "spirals": 4, "epochs": 1, "channels": 1, "batch": 8},
            long=True,
        ),
        Wrong(
            "untrained",
            put("_train", untrained_account),
            ("IoU of held-out", "IoU of spirals"),
            long=True,
        ),
    ],
    "extrapolation": [
        Wrong(
            "novelty is noise",
            put(
                "unexplained",
                lambda kernel, train, queries, held_out, alpha: noise_of(queries.flatten(1)[:, 0]).numpy(),
            ),
            ("shapes: rank correlation of novelty",),
            EXTRAPOLATION,
            long=True,
        ),
    ],
    "linear-head": [
        Wrong(
            "noise",
            put("_product", lambda model, head, x: noise_of(x[:, 0, 0, :1])),
            ("largest", "accuracy of the plane"),
            {"samples": 40, "steps": 5},
        ),
        Wrong("untrained", no_steps, ("accuracy of the trained",), {"samples": 40, "steps": 1}),
    ],
    "superposition": [
        Wrong(
            "noise",
            noisy_account,
            ("residual", "digits of the predicted", "strongest six", "sum of"),
            {"samples": 100, "epochs": 1, "queries": 4},
        ),
    ],
    "optimizers": [
        Wrong(
            "noise", noisy_account, (".*exact account",), {"samples": 16, "steps": 5, "queries": 2}, long=True
        ),
    ],
    "mnist-table": [
        Wrong(
            "shuffled",
            both(no_steps, put("pictures", shuffled_digits)),
            ("MLP, network: ", "MLP, (limit|trained kernel): test"),
            {"architectures": ("MLP",)},
            long=True,
        ),
        Wrong(
            "two pictures",
            both(no_steps, put("pictures", two_pictures)),
            ("MLP, (network|limit|trained kernel): training",),
            {"architectures": ("MLP",)},
            long=True,
        ),
    ],
    "kernel-drift": [
        Wrong(
            "one width",
            one_width,
            ("ratio", "distance to the limit"),
            {"widths": (100, 1000), "seeds": 2, "steps": 5},
        ),
    ],
    "gaussian-limit": [
        Wrong(
            "untrained",
            no_descent,
            ("share inside the limit's",),
            {"widths": (300,), "networks": 3, "steps": 300},
        ),
    ],
    "kernel-pca": [
        Wrong(
            "noise",
            both(put("pictures", noise_pictures), no_descent),
            (r"eigenvalue \d of K / N, over",),
            KERNEL_ONLY,
            long=True,
        ),
        Wrong(
            "one step",
            put("power_iteration", partial(power_iteration, steps=1)),
            ("power iteration",),
            {**KERNEL_ONLY, "data": "digits", "samples": 60},
            long=True,
        ),
        Wrong(
            "untrained",
            no_descent,
            ("part along",),
            {**KERNEL_ONLY, "data": "digits", "samples": 60, "time": 400.0},
            long=True,
        ),
        Wrong(
            "one width", one_width, ("leak of the widest",), {**KERNEL_ONLY, "data": "digits", "samples": 60}
        ),
    ],
    "lazy": [
        Wrong(
            "one scale",
            one_scale,
            ("distance", "test error", "training error"),
            {"alphas": (8.0, 16.0), "rich_alphas": (0.1, 64.0), "steps": 20, "rich_steps": 20, "samples": 20},
        ),
    ],
    "two-coordinates": [
        Wrong(
            "swapped",
            both(swapped_needs, put("_four_relus", lambda x: x[:, 0])),
            ("four ReLUs", "samples of"),
            {"dimensions": (6, 8, 10, 12)},
        ),
    ],
    "beyond-linear": [
        Wrong(
            "never leaves",
            lambda m, study: m.setattr(ntkit, "linearize", copy.deepcopy),
            ("time until",),
            {"steps": 10, "width": 16, "samples": 20},
            long=True,
        ),
        Wrong(
            "linear twice",
            lambda m, study: m.setattr(ntkit, "taylor", lambda model, order: ntkit.linearize(model)),
            ("the same for the quadratic",),
            {"steps": 40, "width": 16, "samples": 20},
            long=True,
        ),
    ],
    "positive-definite": [
        Wrong(
            "lines",
            put("ACTIVATIONS", {"ReLU": lambda x: 2 * x, "erf": lambda x: 2 * x}),
            ("ReLU: smallest eigenvalue / rounding", "erf: smallest eigenvalue / rounding"),
            {"points": 30},
        ),
        Wrong(
            "no polynomial", erf_for_a_polynomial, ("x² \\+ x: rank", "x² \\+ x: smallest"), {"points": 30}
        ),
    ],
    "early-stopping": [
        Wrong(
            "hardly any noise",
            as_it_is,
            ("test error at the best", "stopped by validation"),
            {"samples": 60, "repeats": 1, "noise": 1e-3},
        ),
        Wrong("even noise", even_noise, ("part of the noise",), {"samples": 60, "repeats": 1}),
        Wrong(
            "shuffled",
            put("_function", lambda x, direction: np.random.default_rng(len(x)).normal(size=len(x))),
            ("part of the function",),
            {"samples": 60, "repeats": 1},
        ),
    ],
    "random-features": [
        Wrong(
            "few features",
            few_features,
            (
                ".*iid: slope",
                "error of",
                "ridge on",
                "risk above the least, .*: slope",
                "what the features leave",
            ),
            {
                "sizes": (64, 256),
                "repeats": 2,
                "samples": 20,
                "risk_sizes": (32, 128),
                "risk_samples": (1000, 4000),
                "risk_repeats": 2,
            },
        ),
    ],
    "width-limit": [
        Wrong(
            "one width", one_width, (".*slope",), {"widths": (32, 64), "seeds": 1, "steps": 5, "samples": 10}
        ),
    ],
    "master-theorem": [
        Wrong(
            "other weights",
            other_weights,
            (".*slope of a draw", ".*off by standard errors"),
            {"widths": (32, 128), "draws": 8, "inputs": 2},
            long=True,
        ),
    ],
    "polynomials": [
        Wrong(
            "noise",
            targets(noise_of),
            (
                "random features, degree 1",
                "tangent features, degree [12]",
                "one neuron: trained",
                "whole kernel, d = 20, n = (60|400|2500), degree 1",
                "whole kernel, d = 20, n = (400|2500), degree 2",
            ),
            POLYNOMIALS,
            long=True,
        ),
        Wrong(
            "lines",
            targets(lambda u: u),
            (
                "random features, degree 2",
                "tangent features, degree 3",
                "whole kernel, d = 20, n = 60, degree [23]",
                "whole kernel, d = 20, n = (400|2500), degree 3",
            ),
            POLYNOMIALS,
            long=True,
        ),
    ],
    "descent": [
        Wrong(
            "all zero", as_it_is, (".*error at the peak", "one curve"), {"ridge": 1e9, **DESCENT}, long=True
        ),
        Wrong("growing", growing_errors, (".*width at the peak",), DESCENT, long=True),
    ],
}


def missed(bars: list[str], study: str) -> set[str]:
    """Return those bars of a study that something wrong misses."""
    patterns = [pattern for wrong in WRONG[study] for pattern in wrong.misses]
    return {text for text in bars if any(re.match(pattern, text) for pattern in patterns)}
