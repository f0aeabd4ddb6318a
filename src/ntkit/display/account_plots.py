"""Plots of an account; each draws into ``ax`` or makes its own figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ntkit.display.axes import BLUE, INK, ORANGE, new_axes, plain_axes
from ntkit.inputs import Inputs

if TYPE_CHECKING:
    from ntkit.training.accounts.result import Account
    from ntkit.training.counterfactuals.result import Check, Counterfactual


def contributions(
    account: Account, query: int, ax: Axes | None = None, *, output: int | None = None, count: int = 20
) -> Axes:
    """Draw the training samples that contributed most to one output of a query, largest in size first."""
    if ax is None:
        (ax,) = new_axes(5.0, 0.24 * count + 0.9)
    top = account.top(query, count, output)
    values = np.array([value for _, value in top])
    ax.barh(np.arange(len(top)), values, color=[BLUE if v > 0 else ORANGE for v in values], height=0.75)
    ax.set_yticks(np.arange(len(top)), [f"sample {index}" for index, _ in top])
    ax.invert_yaxis()
    ax.axvline(0, color=INK, lw=0.8)
    name = account.output_name(query, output)
    ax.set(xlabel="contribution (unit of the output)", title=f"query {query}, output {name}")
    plain_axes(ax)
    return ax


def over_time(account: Account, query: int, ax: Axes | None = None, *, output: int | None = None) -> Axes:
    """Draw the path of a prediction through training: the running sum of what each step's batch moved."""
    if ax is None:
        (ax,) = new_axes(6.0, 3.2)
    output = int(account.prediction[query].argmax()) if output is None else output
    moved = np.concatenate([[0.0], np.cumsum(np.asarray(account.over_time(query, output)))])
    ax.plot(float(account.initial[query, output]) + moved, color=BLUE, lw=1.6)
    ax.axhline(float(account.prediction[query, output]), color=INK, ls=":", lw=1)
    ax.set(xlabel="step", ylabel="initial + contributions until then")
    ax.set(title=f"query {query}, output {account.output_name(query, output)}")
    plain_axes(ax)
    return ax


def by_class(
    account: Account,
    query: int,
    labels: Inputs | None,
    ax: Axes | None = None,
    *,
    output: int | None = None,
    classes: Sequence[str] | None = None,
) -> Axes:
    """Draw the contributions of the training samples of each class to one output of a query."""
    if ax is None:
        (ax,) = new_axes(6.0, 3.2)
    output = int(account.prediction[query].argmax()) if output is None else output
    values = np.asarray(account.by_class(labels)[query, output])
    ax.bar(np.arange(len(values)), values, color=[BLUE if v > 0 else ORANGE for v in values])
    ax.set_xticks(np.arange(len(values)), classes or [str(i) for i in range(len(values))])
    ax.axhline(0, color=INK, lw=0.8)
    ax.set(xlabel="class of the training samples", ylabel="contribution (unit of the output)")
    plain_axes(ax)
    return ax


def predicted_and_real(check: Check, ax: Axes | None = None) -> Axes:
    """Draw what leaving sets of samples out changed against what was predicted, a point for each output."""
    if ax is None:
        (ax,) = new_axes(4.2, 4.0)
    x, y = (np.asarray(t).reshape(-1) for t in (check.predicted, check.real))
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    ax.plot(ends, ends, color=INK, lw=0.8, ls=":")
    ax.scatter(x, y, s=9, color=BLUE, alpha=0.5, lw=0)
    size = len(check.sets[0])
    left = "one sample left out" if size == 1 else f"{size} samples left out together"
    ax.set(xlabel="predicted change (unit of the output)", ylabel="real change, trained again")
    ax.set(title=f"{left}: rank correlation {check.rank_correlation:.2f}")
    plain_axes(ax)
    return ax


def effects(
    found: Counterfactual,
    query: int = 0,
    ax: Axes | None = None,
    *,
    output: int | None = None,
    count: int = 20,
) -> Axes:
    """Draw the training samples without which one output of a query would change most."""
    if ax is None:
        (ax,) = new_axes(5.0, 0.24 * count + 0.9)
    top = found.top(query, count, output)
    values = np.array([value for _, value in top])
    ax.barh(np.arange(len(top)), values, color=[BLUE if v > 0 else ORANGE for v in values], height=0.75)
    ax.set_yticks(np.arange(len(top)), [f"sample {index}" for index, _ in top])
    ax.invert_yaxis()
    ax.axvline(0, color=INK, lw=0.8)
    name = found.output_name(query, output)
    ax.set(xlabel="predicted change if left out (unit of the output)", title=f"query {query}, output {name}")
    plain_axes(ax)
    return ax
