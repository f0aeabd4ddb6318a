"""Coordinates of a program's vectors: in the limit, where they are Gaussian, and in a drawn network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ntkit.compute.surroundings import undisturbed
from ntkit.errors import BadValueError, NoRuleError, nearest
from ntkit.graph import Graph, trace
from ntkit.infinite.data import as_data
from ntkit.infinite.drawing import redrawn
from ntkit.infinite.moments.draws import BLOCKS, parts_of, random
from ntkit.infinite.moments.evaluate import evaluate
from ntkit.infinite.moments.pairs import Pairs
from ntkit.infinite.moments.sides import PairSide
from ntkit.infinite.paths import Paths
from ntkit.infinite.program import Program
from ntkit.infinite.reading.laws import Laws
from ntkit.infinite.reading.rules import Entry
from ntkit.infinite.reading.values import Wide
from ntkit.infinite.variables.expression import Expression, walk
from ntkit.infinite.variables.functions import basis_of
from ntkit.infinite.variables.numerics import Numerics
from ntkit.infinite.variables.vectors import Attended, Turned, Vector
from ntkit.inputs import Batch, Inputs, batch_size, take
from ntkit.network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 2**12  # points of the limit in a picture


class Mean(NamedTuple):
    """The expectation of a function, and its standard error, as shapes of what the function returns."""

    value: Tensor
    error: Tensor


class LimitingDraws:
    """One coordinate of some lines of a program, at all samples and positions together, drawn.

    All lines have the same pieces, of which one is drawn (``piece``), or a single one.
    """

    def __init__(self, lines: Sequence[Entry], x: Batch, numerics: Numerics, piece: int = 0) -> None:
        self.numerics, self.side = numerics, PairSide(x, numerics)
        values = [line.value for line in lines if line.value is not None]
        self.values = [value.per_dimension() for value in values]
        pieces = [value.pieces for value in self.values]
        self.vectors = [p[piece if len(p) > 1 else 0][1] for p in pieces]
        for line, e in zip(lines, self.vectors, strict=True):
            if any(isinstance(part, Attended | Turned) for part in walk(e)):
                raise NoRuleError(
                    f"The line {line.name} ({line.text}) is behind softmax attention: its coordinates share "
                    f"the scores of their head, so that no average over them has a limit. Take another line."
                )
        self.bases = list(dict.fromkeys(b for e in self.vectors for b in basis_of(e)))
        self.drawn = [b for b in self.bases if random(b)]
        pairs = Pairs(self.side, self.side, outer=True)
        rows = [torch.cat([self._block(pairs, a, b) for b in self.drawn], -1) for a in self.drawn]
        self.sizes = [self.side.n * prod(b.shape) for b in self.drawn]
        self.factor = numerics.factor(torch.cat(rows)[None])[0] if rows else numerics.zeros(0, 0)

    def _block(self, pairs: Pairs, a: Expression, b: Expression) -> Tensor:
        n, value = self.side.n, pairs.covariance(a, b, "all")
        if value is None:
            return self.numerics.zeros(n * prod(a.shape), n * prod(b.shape))
        value = value.expand(n, n, *a.shape, *b.shape).reshape(n, n, prod(a.shape), prod(b.shape))
        return value.transpose(1, 2).reshape(n * prod(a.shape), n * prod(b.shape))

    def at(self, part: slice) -> list[Tensor]:
        """Return the lines at some of the points, ``[S, n, *positions]`` each."""
        z, n = self.numerics.points(max(1, sum(self.sizes)), part), self.side.n
        parts = (z[:, : len(self.factor)] @ self.factor.T).split(self.sizes, -1)
        drawn: dict[Expression, Tensor] = {}
        for b, g in zip(self.drawn, parts, strict=True):
            mean = self.side.mean(b)
            drawn[b] = g.reshape(-1, n, *b.shape) + (0.0 if mean is None else mean)
        for b in self.bases:
            if b not in drawn:
                assert isinstance(b, Vector)
                drawn[b] = self.numerics.zeros(1, 1, *b.shape) + b.average
        found = []
        for e, value in zip(self.vectors, self.values, strict=True):
            h = drawn[e] if e in drawn else evaluate(e, drawn, lambda v: v, self.side)
            found.append(h.expand(len(z), n, *e.shape).reshape(len(z), n, *value.shape))
        return found

    @property
    def bytes(self) -> int:
        """The bytes of a point."""
        return 4 * (sum(self.sizes) + self.side.n * sum(prod(v.shape) for v in self.values)) * 8


def expect(lines: Sequence[Entry], x: Batch, numerics: Numerics, psi: Callable[..., object]) -> Mean:
    """Return E[psi] of a coordinate of the lines, over their pieces by width."""
    widths = {tuple(w for w, _ in v.pieces) for v in (line.value for line in lines) if v is not None}
    several = {w for w in widths if len(w) > 1}
    if len({sum(w) for w in widths}) > 1 or len(several) > 1:
        told = ", ".join(f"{line.name} has {line.value.width}" for line in lines if line.value is not None)
        raise BadValueError(
            f"The lines have no coordinates in common: {told}. Take lines of one width, between which no "
            f"weight stands."
        )
    shares = several.pop() if several else (1,)
    means, errors = [], []
    for piece, width in enumerate(shares):
        draws = LimitingDraws(lines, x, numerics, piece)
        blocks: list[Any] = [0.0] * BLOCKS
        count = numerics.count // BLOCKS * BLOCKS
        for part in parts_of(count, max(1, numerics.budget // draws.bytes)):
            values = psi(*draws.at(part))
            size = part.stop - part.start
            if not isinstance(values, Tensor) or values.ndim < 1 or len(values) != size:
                given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise BadValueError(
                    f"psi returned {given} for {size} points, expected a tensor [{size}, ...]: the lines "
                    f"come as [points, samples, *positions], and a value for each point goes back."
                )
            pieces = BLOCKS if size == count else 1
            sums = values.unflatten(0, (pieces, -1)).sum(1)
            for i, total in enumerate(sums, part.start * BLOCKS // count):
                blocks[i] = blocks[i] + total
        table = torch.stack(blocks) * (BLOCKS / count)
        means.append(table.mean(0) * (width / sum(shares)))
        errors.append(table.std(0) / BLOCKS**0.5 * (width / sum(shares)))
    return Mean(torch.stack(means).sum(0), torch.stack(errors).square().sum(0).sqrt())


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates of a line in a drawn network, beside draws of their limit.

    ``values`` are ``[n, *positions, width]``, those of the network; ``limit`` are draws of one coordinate in
    the limit, ``[points, n, *positions]``.
    """

    line: str
    text: str
    values: Tensor
    limit: Tensor

    def __repr__(self) -> str:
        """Show the line and the shape."""
        return f"Coordinates of {self.line} ({self.text}): {list(self.values.shape)}"

    def plot(self, samples: tuple[int, int] = (0, 1), ax: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Draw a histogram of one sample's coordinates and a scatter of two samples', over the limit.

        At the first position. ``ax`` are two axes, made where none are given.
        """
        from ntkit.display.axes import BLUE, INK, new_axes

        if min(samples) < 0 or max(samples) >= len(self.values) or len(samples) != 2:
            raise BadValueError(f"samples={samples}; expected two numbers below {len(self.values)}.")
        axes = new_axes(7.6, 3.6, 2) if ax is None else ax
        first, second = (_flat(self.values[i]) for i in samples)
        a, b = (_flat(self.limit[:SHOWN, i].movedim(0, -1)) for i in samples)
        low, high = np.quantile(np.concatenate([a, first]), [0.001, 0.999]).tolist()
        edges = np.linspace(low, high, 41).tolist()
        axes[0].hist(first, bins=edges, density=True, color=BLUE, label=f"{first.size} coordinates")
        axes[0].hist(
            _flat(self.limit[:, samples[0]].movedim(0, -1)), edges, density=True, histtype="step",
            color=INK, lw=1.2, label="limit",
        )  # fmt: skip
        axes[0].set(xlabel=f"{self.line} at sample {samples[0]}", ylabel="density")
        axes[0].legend(frameon=False, fontsize=8)
        axes[1].scatter(a, b, s=3, color="#b9bec4", lw=0, label="limit")
        axes[1].scatter(first, second, s=7, color=BLUE, lw=0, label=f"{first.size} coordinates")
        axes[1].set(xlabel=f"{self.line} at sample {samples[0]}", ylabel=f"at sample {samples[1]}")
        axes[1].legend(frameon=False, fontsize=8, markerscale=2)
        return axes


def _flat(values: Tensor) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])[0].cpu().numpy()


def coordinates(
    net: Network,
    line: Entry,
    x: Batch,
    laws: Laws,
    numerics: Numerics,
    model: nn.Module,
    select: str | int | None,
    seed: int,
) -> Coordinates:
    """Return the coordinates of a line in a network drawn anew, as wide as it is."""
    copy, draw = redrawn(model, laws.parameterization, laws.sigma_w, laws.sigma_b, seed, x, select)
    draw()
    graph = trace(net, x)
    nodes = {node.name: node for node in graph.nodes}
    if line.node not in nodes or line.value is None:
        raise BadValueError(
            f"The line {line.name} ({line.text}) is no value of the network's own: it is a step within an "
            f"operation. Take the line before or behind it."
        )
    weights, buffers = _effective(copy, net), net.buffers
    rows = [
        _value(graph, nodes[line.node], weights, buffers, take(x, slice(i, i + 1)))
        for i in range(batch_size(x))
    ]
    draws = LimitingDraws([line], x, numerics)
    points = draws.at(slice(0, numerics.count))[0]
    values = torch.stack([_channels_last(row, line.value) for row in rows])
    return Coordinates(line.name, line.text, values, points)


def _effective(copy: nn.Module, net: Network) -> Mapping[str, Tensor]:
    """Return the weights that a parametrized copy computes with, by their names in the network."""
    found = {}
    for name in net.weights:
        path, _, last = name.rpartition(".")
        found[name] = getattr(copy.get_submodule(path), last).detach()
    return found


def _value(
    graph: Graph, node: fx.Node, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Batch
) -> Tensor:
    kept: list[Tensor] = []

    def keep(node: fx.Node, args: tuple, kwargs: dict) -> Any:
        result = node.target(*args, **kwargs)  # pyright: ignore
        kept.append(result.clone())
        return result

    with torch.no_grad():
        graph.run(dict(weights), buffers, pytree.tree_map(lambda t: t[0], x), {node: keep})
    return kept[0]


def _channels_last(t: Tensor, value: Wide) -> Tensor:
    """Return a tensor as ``[*positions, width]``, with its positions as `Wide.per_dimension` has them."""
    axes = [axis for dim in value.dims for axis in dim]
    t = t.reshape([value.size(axis) for axis in axes])
    inner = [i for i, axis in enumerate(axes) if axis < 0]
    outer = [i for i, axis in enumerate(axes) if axis >= 0]
    return t.permute(*outer, *inner).reshape(*value.per_dimension().shape, -1)


class OfCoordinates:
    """What a limit says of the coordinates of its program's vectors."""

    net: Network
    laws: Laws
    numerics: Numerics
    paths: Paths
    settings: dict[str, Any]

    def expect(self, psi: Callable[..., Tensor], x: Inputs, lines: Sequence[str] | None = None) -> Mean:
        """Return the limit of the average of any function over the coordinates of the program's vectors.

            (1 / n) sum_i psi(g_i, h_i, ...)  ->  E[psi(g, h, ...)],   (g, ...) Gaussian, h a function of them

        for the vectors at all samples and positions together. It is sampled, at ``samples`` points.

        Parameters
        ----------
        psi
            A function of one tensor for each line, ``[points, n, *positions]``: a coordinate at each
            sample of x and at each position, at some of the points. It returns ``[points, ...]``. It
            should not grow faster than exp(c |g|^a) with a < 2.
        x
            A batch of n inputs.
        lines
            Names of lines of the program, as ``print(limit.program)`` shows them; left out, the names of the
            arguments of ``psi``.

        Returns
        -------
        Mean
            ``value`` and ``error``, its standard error, as psi returns them but for the points.

        Raises
        ------
        NtkitError
            A line that there is not; lines of several widths, which have no coordinates in common.
        NoRuleError
            A line behind softmax attention, whose coordinates share their scores.

        References
        ----------
        Cappelletti, "Convolutional neural tangent kernel" (2019), Theorem 2.2.

        Examples
        --------
        >>> import torch, ntkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> limit = ntkit.infinite_width(model.double(), x, samples=2**14)
        >>> value, error = limit.expect(lambda g1, h1: (g1[:, 0] > 0) * h1[:, 1], x)
        >>> abs(value - 0.25 * (2 / 3 * 2 / torch.pi) ** 0.5) < 4 * error
        tensor(True)
        """
        batch, program = self._at(x)
        with torch.no_grad():
            names = list(signature(psi).parameters) if lines is None else list(lines)
            entries = [entry_of(program, name) for name in names]
            return expect(entries, batch, self.numerics, psi)

    def coordinates(self, line: str, x: Inputs, seed: int = 0) -> Coordinates:
        """Return the coordinates of a line in a network that is drawn, beside draws of their limit.

        The network is a copy of the module, as wide as it is, drawn as its limit takes it to be: Figure 1 of
        the reference, for a module of one's own. ``limit.coordinates("g2", x).plot()`` shows it.

        Parameters
        ----------
        line
            The name of a line of the program.
        x
            A batch of n inputs.
        seed
            Of the draw.

        Returns
        -------
        Coordinates
            ``values [n, *positions, width]``, ``limit [points, n, *positions]``, and ``plot()``.

        Raises
        ------
        NtkitError
            A line that there is not, or that is a step within an operation of the network.

        References
        ----------
        Cappelletti, "Convolutional neural tangent kernel" (2019), Theorem 2.2 and Figure 1.

        Examples
        --------
        >>> import torch, ntkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 500), torch.nn.ReLU(), torch.nn.Linear(500, 1))
        >>> limit = ntkit.infinite_width(model, torch.randn(1, 3))
        >>> limit.coordinates("h1", torch.randn(2, 3))
        Coordinates of h1 (relu(g1)   [closed form]): [2, 500]
        """
        batch, program = self._at(x)
        with torch.no_grad():
            model, select = self.settings["model"], self.settings["select"]
            entry = entry_of(program, line)
            return coordinates(self.net, entry, batch, self.laws, self.numerics, model, select, seed)

    def _at(self, x: Inputs) -> tuple[Batch, Program]:
        batch = as_data(x, self.net, "x", None)
        with undisturbed(self.net):
            return batch, self.paths.of(batch).program


def entry_of(program: Program, name: str) -> Entry:
    """Return a line of a program by its name."""
    lines = {line.name: line for line in program.lines if line.value is not None}
    if name not in lines:
        raise BadValueError(
            f"The program has no line {name!r}; it has {', '.join(lines)}.{nearest(name, lines)}"
        )
    return lines[name]


def vector_of(program: Program, name: str) -> Wide:
    """Return the vector of a line of a program."""
    value = entry_of(program, name).value
    assert value is not None
    return value
