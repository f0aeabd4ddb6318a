"""The studies by name: where each comes from and what it shows. Light enough for the command line's help."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from ntkit.errors import NtkitError

EXTRAPOLATE = 'Courtois, Morel, Arias, "Can neural networks extrapolate?" (2022)'
TOPOLOGY = 'Morel, Courtois, Arias, "Can a neural network learn planar topology?" (2021)'
CONVOLUTIONAL = 'Cappelletti, "Convolutional Neural Tangent Kernel" (2020)'
NOTES = 'Giancola, "Notes on the Neural Tangent Kernel" (2023)'
VIEWPOINT = 'Ravikumar, "Deep Neural Networks: A Kernel Viewpoint"'

STUDIES: dict[str, tuple[str, str]] = {
    "ball-sphere": (f"{EXTRAPOLATE}, Section 5.1", "A network tells a circle from the disk inside it"),
    "half-plane": (f"{EXTRAPOLATE}, Section 5.2", "A network tells the two sides of a line apart"),
    "linear-regression": (
        f"{EXTRAPOLATE}, Section 4.1",
        "The discrete theorem is exact for a linear network",
    ),
    "parity-1d": (
        f"{EXTRAPOLATE}, Section 6.1",
        "A network with the structure of the parity algorithm, trained",
    ),
    "two-peaks": (
        f"{EXTRAPOLATE}, Section 6.3",
        "A network that finds an algorithm, seen through its kernel",
    ),
    "linear-head": (f"{EXTRAPOLATE}, Section 4.2", "A network lies in the span of its tangent features"),
    "kernel-drift": (
        f"{NOTES}, Section V.1",
        "How far the tangent kernel moves in training, narrow and wide",
    ),
    "gaussian-limit": (f"{NOTES}, Section V.2", "Trained networks as draws from a Gaussian process"),
    "kernel-pca": (f"{NOTES}, Section V.3", "Training along one principal component of the kernel"),
}


def module(name: str) -> ModuleType:
    """Return the module of a study: ``Config``, ``QUICK``, ``run`` and ``figure``.

    Raises
    ------
    NtkitError
        When there is no study of that name.
    """
    if name not in STUDIES:
        raise NtkitError(f"There is no study {name!r}. There are: {', '.join(STUDIES)}.")
    return import_module(f"ntkit.studies.{name.replace('-', '_')}")


def configure(name: str, *, quick: bool = False, **given: Any) -> Any:
    """Return the configuration of a study: its defaults, those of ``--quick``, then what is given."""
    study = module(name)
    return study.Config(**{**(study.QUICK if quick else {}), **given})
