"""The studies by name: where each comes from and what it shows. Light enough for the command line's help."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from types import ModuleType
from typing import Any

from ntkit.errors import BadValueError, nearest

_E = 'Courtois, Morel, Arias, "Can neural networks extrapolate?" (2022)'
_T = 'Morel, Courtois, Arias, "Can a neural network learn planar topology?" (2021)'
_C = 'Cappelletti, "Convolutional Neural Tangent Kernel" (2020)'
_N = 'Giancola, "Notes on the Neural Tangent Kernel" (2023)'
_V = 'Ravikumar, "Deep Neural Networks: A Kernel Viewpoint"'

PAPERS = (_E, _T, _C, _N, _V)
LONG = (
    "planar-topology",
    "ball-sphere",
    "half-plane",
    "parity-1d",
)  # which take a quarter of an hour or more

STUDIES: dict[str, tuple[str, str]] = {
    "ball-sphere": (f"{_E}, Section 5.1", "A network tells a circle from the disk inside it"),
    "half-plane": (f"{_E}, Section 5.2", "A network tells the two sides of a line apart"),
    "path-kernel": (
        f"{_E}, Section 3",
        "A trained network as a sum over training samples: the coefficients and kernels of Theorem 1",
    ),
    "linear-regression": (f"{_E}, Section 4.1", "The discrete theorem is exact for a linear network"),
    "parity-1d": (
        f"{_E}, Section 6.1",
        "A network with the structure of the parity algorithm: by hand, disturbed, trained",
    ),
    "planar-topology": (f"{_E}, Section 6.2; {_T}", "A U-Net fills in shapes, until they are others"),
    "planar-account": (
        f"{_E}, Section 6.3; {_T}",
        "Which training shapes made a U-Net fill in one pixel, and which are near it by its kernel",
    ),
    "two-peaks": (
        f"{_E}, Section 6.3",
        "A network that finds an algorithm, seen through its kernel; and more than two peaks",
    ),
    "extrapolation": (
        f"{_E}, Sections 5.1, 6.2 and 6.3",
        "What is new to a trained network's kernel, and whether the network is wrong there",
    ),
    "linear-head": (f"{_E}, Section 4.2", "A network lies in the span of its tangent features"),
    "superposition": (_T, "A prediction as a superposition of training examples, through training"),
    "optimizers": (f"{_E}, Section 7", "The exact account for the optimizers that the theorem leaves out"),
    "mnist-table": (f"{_C}, Section 4", "A network and the kernel machines of its tangent kernels"),
    "kernel-drift": (f"{_N}, Section V.1", "How far the tangent kernel moves in training, narrow and wide"),
    "still-weights": (f"{_N}, Section III.2", "Weights that stay near their start, as the network widens"),
    "gaussian-limit": (f"{_N}, Section V.2", "Trained networks as draws from a Gaussian process"),
    "nngp-posterior": (
        f"{_V}, Section 4",
        "Random networks as a prior, and their trained last layers as its posterior",
    ),
    "kernel-pca": (f"{_N}, Section V.3", "Training along one principal component of the kernel"),
    "lazy": (f"{_V}, Section 5.3", "Lazy training by scale, and what it costs"),
    "two-coordinates": (
        f"{_N}, Section VI",
        "A product of two coordinates: many samples for a kernel, few for a network",
    ),
    "beyond-linear": (f"{_N}, Section VI.1", "A network in training beside its Taylor polynomials"),
    "positive-definite": (
        f"{_N}, Section III.3",
        "Which activations make the tangent kernel positive definite",
    ),
    "early-stopping": (f"{_N}, Section IV.2", "Why stopping early helps: what is learned when"),
    "random-features": (f"{_V}, Section 2", "How fast random features tend to their kernel"),
    "width-limit": (f"{_C}, Theorem 2.4", "A trained network against kernel regression, as it widens"),
    "master-theorem": (f"{_C}, Theorem 2.2", "The vectors of a tensor program as its widths grow"),
    "polynomials": (f"{_V}, Section 6", "What kernels and networks make of polynomials on the sphere"),
    "descent": (f"{_N}, Section VI.1", "Two peaks of the test error in one curve"),
}


DEMO = ("scikit-learn's digits", "A network learns handwritten digits and is explained by them")


def about(name: str) -> tuple[str, str]:
    """Return where a study (or the demo) comes from, and what it shows."""
    return DEMO if name == "demo" else STUDIES[name]


def places(name: str) -> list[tuple[str, str]]:
    """Return the papers that a study is from, each with the section, which is empty where it is all of it."""
    found = []
    for source in about(name)[0].split("; "):
        paper = next((p for p in PAPERS if source.startswith(p)), source)
        found.append((paper, source.removeprefix(paper).removeprefix(", ")))
    return found


def kind(name: str) -> str:
    """Return what the folder of a study says that it is."""
    return f"ntkit study {name}" if name in STUDIES else f"ntkit {name}"


def declared(name: str) -> ModuleType:
    """Return the module that declares ``Config`` and ``QUICK``: that of the study, or a light one."""
    return import_module("ntkit.studies.demo_config") if name == "demo" else module(name)


def module(name: str) -> ModuleType:
    """Return the module of a study: ``Config``, ``QUICK``, ``run`` and ``figure``, and maybe ``leave``.

    Raises
    ------
    NtkitError
        When there is no study of that name.
    """
    if name not in STUDIES and name != "demo":
        raise BadValueError(
            f"There is no study {name!r}. There are: {', '.join(STUDIES)}.{nearest(name, STUDIES)}"
        )
    return import_module(f"ntkit.studies.{name.replace('-', '_')}")


def configure(name: str, *, quick: bool = False, **given: Any) -> Any:
    """Return the configuration of a study: its defaults, those of ``--quick``, then what is given."""
    study = declared(name)
    known = [each.name for each in fields(study.Config)]
    for key in (k for k in given if k not in known):
        raise BadValueError(f"{name} has no option {key!r}; it has {', '.join(known)}.{nearest(key, known)}")
    return study.Config(**{**(study.QUICK if quick else {}), **given})
