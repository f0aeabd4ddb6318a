"""Columns, and what they were asked for, as an account whose residual is measured."""

from __future__ import annotations

import warnings
from collections import Counter

from torch import Tensor

from ntkit.files import Json
from ntkit.training.accounts.columns import COLUMNS, WAYS, Columns
from ntkit.training.accounts.plan import AccountPlan
from ntkit.training.accounts.request import Prepared, Request
from ntkit.training.accounts.result import Account


def plan_of(
    request: Request, start: Prepared, ways: Tensor, tiles: int, seconds: float, size: int
) -> AccountPlan:
    """Return how an account is made, ``ways`` counting batches by where their contributions come from."""
    nodes = "the whole account" if start.whole else "each step"
    if request.rule is not None:
        nodes = f"a fixed rule ({request.nodes})"
    contributions = " and ".join(way for way, count in zip(WAYS, ways.tolist(), strict=True) if count)
    return AccountPlan(
        precision=str(start.sweep.net.dtype).removeprefix("torch."),
        nodes=nodes,
        contributions=contributions or "nothing: the run has no steps",
        steps=start.run.steps,
        rows=start.initial.numel(),
        tiles=tiles,
        seconds=seconds,
        bytes=size,
        floor=start.floor / moved if (moved := _movement(start)) else 0.0,
    )


def balanced(
    request: Request, start: Prepared, initial: Tensor, columns: Columns, plan: AccountPlan, warn_at: int = 4
) -> Account:
    """Return the account of columns with its residual; warn where that exceeds what was asked for."""
    (q, o), tol, rule, prediction = initial.shape, request.tol, request.nodes, start.prediction
    terms = {name: getattr(columns, name).reshape(q, o).cpu() for name in COLUMNS}
    contributions, by_step = (t.reshape(q, o, -1).cpu() for t in (columns.contributions, columns.by_step))
    initial, prediction = initial.cpu(), prediction.cpu()
    residual = (prediction - initial) - (contributions.sum(-1) + sum(terms.values()))
    worst, moved = float(residual.abs().max()), float((prediction - initial).abs().max())
    converged = worst <= tol * moved
    if rule == "auto" and not converged:
        why = "kinks (ReLU) and very long steps converge slowly, and below 1e-13 rounding sets the limit."
        if start.floor > tol * moved:
            why = (
                f"the network rounds its outputs by {start.noise:.1g} (it computes in less than float64 "
                f"inside): residuals below {start.floor / moved:.1g} of the movement are out of reach, "
                f"ask for a tol of more."
            )
        warnings.warn(
            f"The account did not reach tol={tol:g}: its largest residual is {worst:.3g}, the largest "
            f"movement of a prediction {moved:.3g}. It is still exact as a whole, with that residual; {why}",
            RuntimeWarning,
            stacklevel=warn_at,
        )
    nodes = dict(sorted(Counter(columns.nodes.tolist()).items()))
    name = rule if isinstance(rule, str) else f"{rule} nodes"
    tensors = terms | {"contributions": contributions, "by_step": by_step, "initial": initial}
    tensors |= {"residual": residual, "prediction": prediction}
    tensors["unsigned"] = columns.unsigned.reshape(q, o).cpu()
    scalars: Json = {"tol": tol, "nodes": nodes, "converged": converged, "steps": len(columns.nodes)}
    target = list(request.target) if isinstance(request.target, tuple | range) else request.target
    about: Json = {"target": target, "chosen": start.chosen, "plan": plan}
    return Account(**tensors, **scalars, **about, rule=name, spent=columns.spent)


def _movement(start: Prepared) -> float:
    return float((start.prediction - start.initial).abs().max())
