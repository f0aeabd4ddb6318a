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
from wide import wide, widths

import ntkit

POINTS, MORE = 256, 16384  # of the functions that are sampled; most where the limit is compared with draws
CLOSE = 0.05  # `limit.error` behind which no more points are taken
FACTORS = (16, 4, 1)  # what the entry's own widths are multiplied by: the largest that leaves
LARGE = 2**22  # weights, or fewer; beside it a quarter of that
DRAWS = (16, 64)  # fewest and most
NOISY, MORE_DRAWS = 0.15, 4  # standard error of the NTK, over its largest value, from which more are made
SLOW = 60.0  # seconds of a processor: a limit or two draws that take longer are not compared
SPENT = 20.0  # seconds that the draws should take
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
    if result["status"] == "served" and result["seconds"] < SLOW:
        tell({**result, "draws": "not to their end"})
        result |= _draws(entry.drawn or entry, result["head"])
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


def _draws(entry: Entry, head: bool) -> dict[str, Any]:
    """Return for each width how far the limit is from draws, or why there are none."""
    x = entry.samples()
    try:
        weights = sum(p.numel() for p in wide(entry, 1).parameters())
        factor = next((f for f in FACTORS if f * f * weights <= LARGE), 1)
        networks = [wide(entry, factor / 4), wide(entry, factor)]
        found = widths(*networks)
        networks = networks if found else networks[1:]
        models = [Ending(network, entry.select, None) for network in networks]
        with torch.no_grad():
            shapes = [call(model, x).shape for model in models]
    except Exception as error:  # the entry's own code knows a width: no fault of ntkit's
        return {"draws": f"its width is fixed: {told(error)[:100]}"}
    rows = []
    for model, shape, width in zip(models, shapes, found or (None,), strict=True):
        model.head = nn.Linear(shape[-1], OUTPUTS).double() if head else None
        try:
            compared = _compared(model, x)
        except ntkit.NtkitError as error:
            return {"draws": told(error)[:120]}
        if compared is None:
            return {"draws": "slow"}
        rows.append({"width": width, **compared})
    return {"draws": rows, "drawn": entry.note}


def _compared(model: nn.Module, x: Any) -> dict[str, Any] | None:
    """Return how far both kernels are from those of draws, and the standard errors, over the largest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.process_time()
        ntkit.monte_carlo(model, 2, x)
        each = (time.process_time() - begin) / 2
        begin = time.process_time()
        limit = ntkit.infinite_width(model, x, samples=POINTS, compile=False)
        limit.ntk(x)
        seconds = time.process_time() - begin
        if max(2 * each, seconds) > SLOW:
            return None
        points = POINTS
        next_one = seconds
        while limit.error > CLOSE and points < MORE and next_one <= 2 * SLOW:
            points, begin, before = 4 * points, time.process_time(), seconds
            limit = ntkit.infinite_width(model, x, samples=points, compile=False)
            limit.ntk(x)
            seconds = time.process_time() - begin
            next_one = seconds + 4 * max(0.0, seconds - before)
        truths = {kind: getattr(limit, kind)(x) for kind in ("nngp", "ntk")}
        drawn = ntkit.monte_carlo(model, max(DRAWS[0], min(DRAWS[1], int(SPENT / each))), x)
        noise = float(drawn.ntk_error.max() / truths["ntk"].abs().max())
        if noise > NOISY:
            drawn = ntkit.monte_carlo(model, MORE_DRAWS * drawn.samples, x)
    row: dict[str, Any] = {"draws": drawn.samples, "points": points, "error": limit.error}
    for kind, truth in truths.items():
        scale = truth.abs().max()
        row[kind] = float((getattr(drawn, kind) - truth).abs().max() / scale)
        row[f"{kind}_error"] = float(getattr(drawn, f"{kind}_error").max() / scale)
    return row
