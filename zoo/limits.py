"""One model of the zoo in the limit of infinite width: served or refused, and beside draws of wider ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from entry import Entry, Select
from measure import call, failed, told
from torch import Tensor, nn
from wide import wide, width

import ntkit

POINTS, MORE = 256, 2048  # of the functions that are sampled; where the limit is compared with draws
FACTORS, DRAWS = (1.0, 4.0), 16  # widths of the draws, as multiples of the entry's own,
LARGE = 2**20  # a quarter of these where it has more weights
SLOW = 5.0  # seconds of a processor: a limit or a pair of draws that takes longer is not compared
OUTPUTS = 4


class Ending(nn.Module):
    """A network, the output that its entry names, and a linear read-out where it ends in none."""

    def __init__(self, network: nn.Module, select: Select, head: nn.Module | None) -> None:
        super().__init__()
        self.network, self.head = network, head
        self.choose = select

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs."""
        y = self.network(*args, **kwargs)
        if self.choose is not None:
            y = self.choose(y) if callable(self.choose) else y[self.choose]
        while isinstance(y, (tuple, list)) and len(y) == 1:
            y = y[0]
        return y if self.head is None else self.head(y)


def measure(entry: Entry, tell: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Return what is to be said of a model in the limit."""
    result: dict[str, Any] = {"name": entry.name, "note": entry.note, "per_sample": entry.per_sample}
    x = entry.samples()
    select = entry.select if entry.per_sample else None  # else its output is what it is
    model = Ending(wide(entry, 1), select, None)
    with torch.no_grad():
        y = call(model, x)  # what a model raises by itself is not ntkit's
    heads: list[int | None] = [None]
    if isinstance(y, Tensor) and y.ndim > 1:
        heads.append(y.shape[-1])
    for size in heads:
        head = None if size is None else nn.Linear(size, OUTPUTS).double()
        model = Ending(model.network, select, head)
        tell({**result, "status": "crashed", "words": "in ntkit"})
        result |= _limit(model, x) | {"head": head is not None}
        if result["status"] != "refused" or not result.pop("end"):
            break
    if result["status"] == "served" and result["seconds"] < SLOW:  # with more points it takes minutes else
        tell({**result, "draws": "not to their end"})
        result["draws"] = _draws(entry, result["head"], x)
    return result


def _limit(model: nn.Module, x: Any) -> dict[str, Any]:
    """Return how ntkit did."""
    begin = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit = ntkit.infinite_width(model, x, samples=POINTS, compile=False)
            read = time.process_time() - begin
            theta = limit.ntk(x)
    except ntkit.NtkitError as error:
        ends = isinstance(error, ntkit.NoRuleError) and "read-out" in str(error)
        return {"status": "refused", "words": told(error), "end": ends}
    except Exception as error:
        return failed(error)
    finite = bool(theta.isfinite().all())
    seconds = time.process_time() - begin
    return {"status": "served" if finite else "wrong", "read": read, "seconds": seconds, "error": limit.error}


def _draws(entry: Entry, head: bool, x: Any) -> Any:
    """Return for each width how far the limit is from draws, or why there are none."""
    rows = []
    large = sum(p.numel() for p in wide(entry, 1).parameters()) > LARGE
    for factor in (f / 4 if large else f for f in FACTORS):
        try:
            network = wide(entry, factor)
            ended = Ending(network, entry.select, None)
            with torch.no_grad():
                y = call(ended, x)
        except Exception as error:  # the entry's own code knows a width: no fault of ntkit's
            return f"its width is fixed: {told(error)[:100]}"
        if head:
            ended.head = nn.Linear(y.shape[-1], OUTPUTS).double()
        compared = _compared(ended, x)
        if compared is None:
            return "too slow"
        rows.append({"width": width(network), **compared})
    return rows


def _compared(model: nn.Module, x: Any) -> dict[str, Any] | None:
    """Return how far both kernels are from those of draws, and the standard errors, over the largest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.process_time()
        drawn = ntkit.monte_carlo(model, 2, x)
        if time.process_time() - begin > SLOW:
            return None
        limit = ntkit.infinite_width(model, x, samples=MORE, compile=False)
        truths = {kind: getattr(limit, kind)(x) for kind in ("nngp", "ntk")}
        drawn = ntkit.monte_carlo(model, DRAWS, x)
    row: dict[str, Any] = {"draws": drawn.samples, "error": limit.error}
    for kind, truth in truths.items():
        scale = truth.abs().max()
        row[kind] = float((getattr(drawn, kind) - truth).abs().max() / scale)
        row[f"{kind}_error"] = float(getattr(drawn, f"{kind}_error").max() / scale)
    return row
