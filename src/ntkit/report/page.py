"""A trained network explained on one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ntkit.display import plots
from ntkit.display.svg import inline_svg
from ntkit.report.templating import environment

if TYPE_CHECKING:
    from ntkit.report.explorer import Explorer

_SHORT = 3  # letters below a bar
TERMS = ("initial", "contributions", "decay", "start", "buffers", "rounding", "residual", "prediction")


@dataclass(frozen=True)
class Push:
    """A training sample and what it added to one output of one query (in the unit of the output)."""

    name: str
    label: str
    contribution: float
    picture: np.ndarray | None = None
    effect: float | None = None  # the predicted change of the output if the sample is left out
    index: int | None = None


@dataclass(frozen=True)
class PushSide:
    """All that pushed one way: the strongest few, the total of all, and of how many samples."""

    shown: tuple[Push, ...]
    total: float
    count: int

    @property
    def share(self) -> float:
        """The share of the total that the shown samples make up."""
        return sum(push.contribution for push in self.shown) / self.total if self.total else 0.0


@dataclass(frozen=True)
class Query:
    """A prediction and its account: one output of the network at one input.

    ``terms`` has the keys of `TERMS`; ``probabilities`` may be empty (a regression); ``by_label`` sums the
    contributions of the training samples of each label; ``over_time`` is the running sum of the contributions
    through training, from the initial output on, at equal distances.
    """

    name: str
    verdict: str
    output: str
    terms: Mapping[str, float]
    towards: PushSide
    against: PushSide
    truth: str = ""
    probabilities: tuple[tuple[str, float], ...] = ()
    by_label: tuple[tuple[str, float], ...] = ()
    picture: np.ndarray | None = None
    over_time: tuple[float, ...] = ()

    @property
    def long_names(self) -> bool:
        """Whether names of outputs or labels are too long to stand below bars."""
        return any(len(name) > _SHORT for name, _ in (*self.probabilities, *self.by_label))


@dataclass(frozen=True)
class Kernels:
    """The tangent kernel of the same samples before and after training, ordered by label.

    ``before`` and ``after`` are drawn as cosines ``[n, n]``; ``scale_before`` and ``scale_after``, the means
    of k(x, x), and the eigenvalues are those of the kernel itself.
    """

    before: np.ndarray
    after: np.ndarray
    labels: tuple[str, ...]
    scale_before: float
    scale_after: float
    spectrum_before: np.ndarray
    spectrum_after: np.ndarray


@dataclass(frozen=True)
class Curve:
    """One line of the learning curve: a value after each epoch, the first before training."""

    name: str
    panel: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Page:
    """All that the page says. Strings are text, never HTML: they are escaped."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    queries: tuple[Query, ...]
    residual: float
    relative_residual: float
    tolerance: float
    steps: int
    unit: str = "logits"
    curves: tuple[Curve, ...] = ()
    kernels: Kernels | None = None
    footer: str = ""
    explorer: Explorer | None = None

    @property
    def told_terms(self) -> tuple[str, ...]:
        """The terms that are not zero for all queries, and those that a reader looks for."""
        always = ("initial", "contributions", "residual", "prediction")
        return tuple(t for t in TERMS if t in always or any(q.terms[t] for q in self.queries))


def render(page: Page) -> str:
    """Return the page as one HTML document that loads nothing from anywhere."""
    figures = {}
    if page.curves:
        figures["curve"] = inline_svg(plots.learning_curve(page.curves), "curve")
    if page.kernels is not None:
        k = page.kernels
        pair = plots.kernel_pair(k.before, k.after, k.labels, unit="cosine of the tangent kernel")
        spectra = {"before training": k.spectrum_before, "after training": k.spectrum_after}
        figures["kernels"] = inline_svg(pair, "kernels")
        figures["spectra"] = inline_svg(plots.spectra(spectra), "spectra")
    return environment().get_template("page.html.jinja").render(page=page, figures=figures, terms=TERMS)


__all__ = ["TERMS", "Curve", "Kernels", "Page", "Push", "PushSide", "Query", "render"]
