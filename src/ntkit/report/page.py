"""A trained network explained on one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ntkit.report import plots
from ntkit.report.svg import inline_svg

TERMS = ("initial", "contributions", "decay", "start", "buffers", "rounding", "residual", "prediction")


@dataclass(frozen=True)
class Push:
    """A training sample and what it added to one output of one query (in the unit of the output)."""

    name: str
    label: str
    contribution: float
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Side:
    """All that pushed one way: the strongest few, the total of all, and of how many samples."""

    shown: tuple[Push, ...]
    total: float
    count: int

    @property
    def share(self) -> float:
        """The part of the total that the shown samples make."""
        return sum(push.contribution for push in self.shown) / self.total if self.total else 0.0


@dataclass(frozen=True)
class Query:
    """A prediction and its account: one output of the network at one input.

    ``terms`` has the keys of `TERMS`; ``probabilities`` may be empty (a regression); ``by_label`` sums the
    contributions of the training samples of each label.
    """

    name: str
    verdict: str
    output: str
    terms: Mapping[str, float]
    towards: Side
    against: Side
    truth: str = ""
    probabilities: tuple[tuple[str, float], ...] = ()
    by_label: tuple[tuple[str, float], ...] = ()
    picture: np.ndarray | None = None


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


def render(page: Page) -> str:
    """Return the page as one HTML document that loads nothing from anywhere."""
    figures = {}
    if page.curves:
        figures["curve"] = inline_svg(plots.learning_curve(page.curves), "curve")
    if page.kernels is not None:
        k = page.kernels
        figures["kernels"] = inline_svg(
            plots.kernel_pair(k.before, k.after, k.labels, unit="cosine of the tangent kernel"), "kernels"
        )
        figures["spectra"] = inline_svg(
            plots.spectra({"before training": k.spectrum_before, "after training": k.spectrum_after}),
            "spectra",
        )
    return _environment().get_template("page.html.jinja").render(page=page, figures=figures, terms=TERMS)


@cache
def _environment() -> Environment:
    """Return the templates with their filters; everything that is no `Markup` is escaped."""
    environment = Environment(
        loader=PackageLoader("ntkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed, short=short, plain=plain, tiny=tiny, picture=picture, percent=percent
    )
    return environment


def signed(value: float, decimals: int = 3) -> str:
    """Return a number with its sign and so many decimals; as a power of ten where these say nothing.

    Examples
    --------
    >>> signed(-1.23456), signed(0.5, 1), signed(0.00002), signed(0.0)
    ('−1.235', '+0.5', '+2.0e−5', '0')
    """
    if not value:
        return "0"
    small = abs(value) < 0.5 * 10**-decimals
    return _minus(f"{value:+.1e}".replace("e-0", "e-") if small else f"{value:+.{decimals}f}")


def short(value: float) -> str:
    """Return a number with its sign and two digits that count, for a crowded place.

    Examples
    --------
    >>> short(-126.7), short(3.14), short(0.052)
    ('−127', '+3.1', '+0.052')
    """
    return _minus(f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.2g}")


def plain(value: float) -> str:
    """Return a number with three digits that count."""
    return _minus(f"{value:.3g}")


def tiny(value: float) -> str:
    """Return a number that may be as small as rounding.

    Examples
    --------
    >>> tiny(-1.5e-13), tiny(0.0), tiny(-0.25)
    ('−1.5e−13', '0', '−0.250')
    """
    if not value:
        return "0"
    return _minus(f"{value:.3f}" if abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-"))


def percent(value: float) -> str:
    """Return a share as a percentage.

    Examples
    --------
    >>> percent(0.934), percent(0.004)
    ('93 %', '0.4 %')
    """
    return f"{100 * value:.0f} %" if not 0 < abs(value) < 0.02 else f"{100 * value:.1f} %"


def picture(values: np.ndarray) -> Markup:
    """Return a picture, grey ``[h, w]`` or ``[h, w, 3]`` in [0, 1] with 1 as ink or light, as a data URI."""
    figure_bytes = io.BytesIO()
    plots.save_picture(values, figure_bytes)
    return Markup("data:image/png;base64,") + base64.b64encode(figure_bytes.getvalue()).decode("ascii")


def _minus(text: str) -> str:
    return text.replace("-", "−")


__all__ = ["TERMS", "Curve", "Kernels", "Page", "Push", "Query", "Side", "render"]
