"""The account that columns make, with what they leave over: measured, never assumed."""

from __future__ import annotations

import warnings
from collections import Counter

from torch import Tensor

from ntkit.training.quadrature import Nodes
from ntkit.training.result import Account

COLUMNS = ("decay", "start", "buffers", "rounding")


def balanced(
    initial: Tensor,
    prediction: Tensor,
    columns: dict[str, Tensor],
    nodes: list[int],
    spent: int,
    tol: float,
    rule: Nodes,
    warn_at: int = 5,
) -> Account:
    """Return the account of columns with what they leave over; warn where that is more than asked for."""
    explained = columns["contributions"].sum(-1) + sum(columns[name] for name in COLUMNS)
    residual = (prediction - initial) - explained
    worst, moved = float(residual.abs().max()), float((prediction - initial).abs().max())
    converged = worst <= tol * moved
    if rule == "auto" and not converged:
        warnings.warn(
            f"The account did not reach tol={tol:g}: its largest residual is {worst:.3g}, the largest "
            f"movement of a prediction {moved:.3g}. It is still exact as a whole, with that residual; kinks "
            f"(ReLU) and very long steps converge slowly, and below 1e-13 rounding sets the limit.",
            RuntimeWarning,
            stacklevel=warn_at,
        )
    return Account(
        **columns,
        initial=initial,
        residual=residual,
        prediction=prediction,
        tol=tol,
        nodes=dict(sorted(Counter(nodes).items())),
        converged=converged,
        steps=len(nodes),
        rule=rule if isinstance(rule, str) else f"{rule} nodes",
        spent=spent,
    )
