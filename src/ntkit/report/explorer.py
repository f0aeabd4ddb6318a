"""The part of a report that is explored: all contributions, packed into the page, and what they are of."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from ntkit.display.numbers import picture
from ntkit.report.page import TERMS
from ntkit.training.accounts.result import Account
from ntkit.training.counterfactuals.result import Counterfactual

WINDOWS = 200  # parts of the training that the brush chooses among
MOST = 2000  # samples that are listed, unless more are asked for
SIDE = 40  # pixels of a thumbnail, at most
FEATURES = 64  # columns of a table that are listed

Meta = dict[str, object]


@dataclass(frozen=True)
class Sprite:
    """Many small pictures in one: cells in so many columns."""

    sheet: np.ndarray
    columns: int

    def url(self) -> Markup:
        """Return it as a data URI."""
        return picture(self.sheet)

    def style(self, i: int, size: int) -> Markup:
        """Return what shows picture i in a box of so many pixels, whose background is the sheet."""
        left, top = i % self.columns * size, i // self.columns * size
        return Markup(
            f"width:{size}px;height:{size}px;background-size:{self.columns * size}px auto;"
            f"background-position:-{left}px -{top}px"
        )


@dataclass(frozen=True)
class Explorer:
    """What the page is told, as JSON, and its arrays: 16-bit numbers with a scale for each row.

    ``meta`` holds names, labels, terms; ``arrays`` are ``contributions [q, o, n]``, ``over_time [q, o, W]``,
    and where there are some ``effects [q, o, n]``, ``features [d, n + q]``.
    """

    meta: Meta
    arrays: dict[str, np.ndarray]
    listed: np.ndarray
    sprite: Sprite | None = None

    def json(self) -> Markup:
        """Return what the page is told, for a script element: no tag ends or begins in it."""
        packed, places = self._packed()
        text = json.dumps(
            {**self.meta, "arrays": places, "bytes": packed}, ensure_ascii=False, allow_nan=False
        )
        return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))

    def thumbnail(self, sample: int, size: int) -> Markup | None:
        """Return the style that shows the picture of a sample, None where it is not among them."""
        place = int(np.searchsorted(self.listed, sample))
        if self.sprite is None or place == len(self.listed) or self.listed[place] != sample:
            return None
        return self.sprite.style(place, size)

    def _packed(self) -> tuple[str, dict[str, Meta]]:
        places: dict[str, Meta] = {}
        parts: list[bytes] = []
        begin = 0
        for name, values in self.arrays.items():
            size = np.abs(values).max(-1, initial=0.0)
            scale = np.where(size > 0, size, 1.0) / 32767
            whole = np.round(values / scale[..., None]).astype("<i2").reshape(-1)
            halves = whole.view(np.uint8).reshape(-1, 2).T  # low bytes, then high ones: they compress better
            parts.append(np.ascontiguousarray(halves).tobytes())
            scales = [float(f"{s:.9g}") for s in scale.reshape(-1)]
            places[name] = {"shape": list(values.shape), "scale": scales, "at": begin}
            begin += 2 * whole.size
        return base64.b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii"), places


def explorer(
    account: Account,
    outputs: Sequence[Sequence[str]],
    *,
    unit: str,
    samples: Sequence[tuple[str, str]],
    queries: Sequence[tuple[str, str]],
    pictures: tuple[Callable[[int], np.ndarray | None], Callable[[int], np.ndarray | None]],
    inputs: tuple[object, object],
    features: Sequence[str] | None = None,
    counterfactual: Counterfactual | None = None,
    odds: bool = False,
    most: int = MOST,
) -> Explorer:
    """Return what a page needs to explore an account.

    Parameters
    ----------
    account
        Of q queries, o outputs, n samples.
    outputs
        The names of the outputs, for each query.
    unit
        Of the outputs.
    samples, queries
        Name and label of each.
    pictures
        What returns the picture of a sample, and of a query.
    inputs
        Of the samples and the queries: texts and tables are shown.
    features
        The names of the columns of a table.
    counterfactual
        Of the same queries and samples.
    odds
        Whether the outputs are logits of classes.
    most
        How many samples are listed, those of the largest contributions; the rest is summed.
    """
    contributions = account.contributions.numpy()
    n = contributions.shape[-1]
    listed = np.arange(n)
    if n > most:
        listed = np.sort(np.argsort(-np.abs(contributions).max((0, 1)), kind="stable")[:most])
    named = [samples[i] for i in listed]
    sprite = _sprite([pictures[0](int(i)) for i in listed] + [pictures[1](i) for i in range(len(queries))])
    arrays = {
        "contributions": contributions[..., listed].astype(np.float64),
        "over_time": _over_time(account.by_step.numpy()),
    }
    terms = {name: getattr(account, name) for name in TERMS if name != "contributions"}
    terms["contributions"] = account.contributions.sum(-1)
    meta: Meta = {
        "unit": unit,
        "outputs": [list(names) for names in outputs],
        "samples": [name for name, _ in named],
        "labels": [label for _, label in named],
        "queries": [name for name, _ in queries],
        "truths": [label for _, label in queries],
        "terms": {name: _rounded(terms[name]) for name in TERMS},
        "toward": _signed(contributions),
        "of": n,
        "steps": account.steps,
        "odds": odds,
        "sprite": None if sprite is None else {"columns": sprite.columns},
    }
    if counterfactual is not None:
        arrays["effects"] = counterfactual.effects.numpy()[..., listed].astype(np.float64)
    texts = [_texts(part) for part in inputs]
    if texts[0] is not None:
        meta["texts"] = [texts[0][i] for i in listed]
        meta["query_texts"] = texts[1]
    table = _table(inputs[0], inputs[1]) if sprite is None else None
    if table is not None and table[0].shape[1] <= FEATURES:
        both = np.concatenate([table[0][listed], table[1]])
        arrays["features"] = both.T.copy()  # a scale for each column
        meta["features"] = [str(v) for v in features or [f"x{i}" for i in range(both.shape[1])]]
        meta["spread"] = [float(f"{v:.6g}") for v in table[0].std(0)]
    return Explorer(meta, arrays, listed, sprite)


def _signed(contributions: np.ndarray) -> list[list[list[float]]]:
    """Return for each query and output what pushed up and down, and from how many samples."""
    up, down = contributions > 0, contributions < 0
    pushes = [np.where(side, contributions, 0).sum(-1) for side in (up, down)]
    parts = np.stack([pushes[0], up.sum(-1), pushes[1], down.sum(-1)], -1)
    return [[[float(f"{v:.7g}") for v in cell] for cell in row] for row in parts]


def _over_time(by_step: np.ndarray) -> np.ndarray:
    """Return the contributions in at most `WINDOWS` parts of the training, as equal as they can be."""
    steps = by_step.shape[-1]
    if not steps:
        return np.zeros((*by_step.shape[:2], 1))
    edges = np.linspace(0, steps, min(WINDOWS, steps) + 1).round().astype(int)
    return np.add.reduceat(by_step.astype(np.float64), edges[:-1], axis=-1)


def _rounded(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.9g}") for v in row] for row in values.tolist()]


def _texts(inputs: object) -> list[str] | None:
    if isinstance(inputs, list | tuple) and inputs and all(isinstance(v, str) for v in inputs):
        return list(inputs)
    return None


def _table(train: object, queries: object) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the features of samples and queries, None where inputs are no tables of numbers."""
    parts = []
    for part in (train, queries):
        if not isinstance(part, Tensor | np.ndarray):
            return None
        values = torch.as_tensor(part).detach().cpu()
        if values.ndim != 2 or values.is_complex():
            return None
        parts.append(values.double().numpy())
    return (parts[0], parts[1]) if parts[0].shape[1] == parts[1].shape[1] else None


def _sprite(pictures: Sequence[np.ndarray | None]) -> Sprite | None:
    """Return all pictures as one; None if there are none."""
    if not pictures or any(p is None for p in pictures):
        return None
    small = [_small(p) for p in pictures if p is not None]
    cell = max(max(p.shape[:2]) for p in small)
    color = any(p.ndim == 3 for p in small)
    columns = int(np.ceil(np.sqrt(len(small))))
    rows = -(-len(small) // columns)
    blank = 1.0 if color else 0.0  # the paper of each
    sheet = np.full((rows * cell, columns * cell, *((3,) if color else ())), blank)
    for i, p in enumerate(small):
        top, left = (i // columns) * cell, (i % columns) * cell
        h, w = p.shape[:2]
        sheet[top : top + h, left : left + w] = (
            np.repeat(1 - p[..., None], 3, 2) if color > (p.ndim == 3) else p
        )
    return Sprite(sheet, columns)


def _small(p: np.ndarray) -> np.ndarray:
    """Return a picture of at most `SIDE` pixels a side, by means over squares."""
    factor = -(-max(p.shape[:2]) // SIDE)
    if factor == 1:
        return p
    h, w = (s // factor * factor for s in p.shape[:2])
    return p[:h, :w].reshape(h // factor, factor, w // factor, factor, *p.shape[2:]).mean((1, 3))
