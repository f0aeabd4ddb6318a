"""How pages write numbers and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ntkit.display.axes import save_picture


def signed(value: float, decimals: int = 3) -> str:
    """Return a number with its sign and so many decimals; as a power of ten where they would show zero.

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
    """Return a number with its sign and two significant digits, for a crowded place.

    Examples
    --------
    >>> short(-126.7), short(3.14), short(0.052)
    ('−127', '+3.1', '+0.052')
    """
    return _minus(f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.2g}")


def plain(value: float) -> str:
    """Return a number with three significant digits."""
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


def number(value: float) -> str:
    """Return a measured number with four significant digits.

    Examples
    --------
    >>> number(0.99951), number(2.0e-9), number(1.0), number(float("nan"))
    ('0.9995', '2.0e−9', '1', 'nan')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def picture(values: np.ndarray) -> Markup:
    """Return a picture, grey ``[h, w]`` or ``[h, w, 3]`` in [0, 1] with 1 as ink or light, as a data URI."""
    figure_bytes = io.BytesIO()
    save_picture(values, figure_bytes)
    return Markup("data:image/png;base64,") + base64.b64encode(figure_bytes.getvalue()).decode("ascii")


def polyline(values: Sequence[float], width: float = 160.0, height: float = 44.0) -> str:
    """Return the points of a line through values at equal distances, for an SVG of this size.

    Examples
    --------
    >>> polyline([0.0, 1.0, 0.5], 10, 10)
    '0.0,10.0 5.0,0.0 10.0,5.0'
    """
    low, high = min(*values, 0.0), max(*values, 0.0)
    scale = height / (high - low) if high > low else 0.0
    step = width / max(1, len(values) - 1)
    return " ".join(f"{i * step:.1f},{height - (v - low) * scale:.1f}" for i, v in enumerate(values))


def _minus(text: str) -> str:
    return text.replace("-", "−")
