"""The programs of a network: one, or one for each path that it takes through its operations."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils import _pytree as pytree

from ntkit.errors import BadValueError, NoRuleError, NtkitError
from ntkit.faults import foreign
from ntkit.graph import Graph, trace
from ntkit.infinite.program import Program, read
from ntkit.infinite.reading.laws import Laws
from ntkit.infinite.reading.source import source_of
from ntkit.inputs import Batch, batch_size, take
from ntkit.network import Network

MOST = 16  # paths that are tried for the samples of one call


class Path:
    """A graph of the network and the program that was read off it."""

    def __init__(self, net: Network, example: Batch, laws: Laws) -> None:
        self.net = net
        graph = _traced(net, example)
        self.program: Program = read(net, graph, example, laws, partial(source_of, net, example))
        # None where it is that of all samples: no value of the traced one decided what is in it
        self.graph = graph if graph.reads or graph.decided else None

    def misses(self, x: Batch) -> int | None:
        """Return the first sample whose outputs the graph does not give, None if it gives those of all."""
        if self.graph is None:
            return None
        weights, buffers = self.net.weights, self.net.buffers
        for i in range(batch_size(x)):
            one = take(x, slice(i, i + 1))
            wanted = self.net.direct(one).detach()[0]
            found = self.graph.run(weights, buffers, pytree.tree_map(lambda t: t[0], one), {}).detach()
            rounding = 1e4 * torch.finfo(wanted.dtype).eps
            if found.shape != wanted.shape or not torch.allclose(found, wanted, rounding, rounding):
                return i
        return None


class Paths:
    """The paths of a network that reads values of its samples, such as whether a mask hides anything.

    A path serves a sample if its graph gives the sample's outputs; the samples of a call need a path that
    serves all of them, which is looked for among those of the samples themselves.
    """

    def __init__(self, net: Network, example: Batch, laws: Laws) -> None:
        self.net, self.laws = net, laws
        self.found = [Path(net, take(example, slice(0, 1)), laws)]
        self.first = self.of(example)

    def of(self, *batches: Batch) -> Path:
        """Return a path that serves all samples of some batches."""
        for path in self.found:
            if self._missed(path, batches) is None:
                return path
        missed = self._missed(self.found[-1], batches)
        while missed is not None and len(self.found) < MOST:
            path = Path(self.net, missed, self.laws)
            self.found.append(path)
            missed = self._missed(path, batches)
            if missed is None:
                return path
        graph = self.found[0].graph
        reads = ", ".join(graph.reads if graph else ()) or "which queries of attention see nothing"
        raise NoRuleError(
            f"{type(self.net.module).__name__} reads values of its samples ({reads}) and takes another path "
            f"for some of these samples than for others: no one program is that of all. Give samples of one "
            f"path at a time, or write it in operations on tensors; ntkit.monte_carlo(model, ...) estimates "
            f"the limit of what runs."
        )

    @staticmethod
    def _missed(path: Path, batches: tuple[Batch, ...]) -> Batch | None:
        for x in batches:
            row = path.misses(x)
            if row is not None:
                return take(x, slice(row, row + 1))
        return None


def _traced(net: Network, example: Batch) -> Graph:
    try:
        graph = trace(net, example)
    except NtkitError:
        raise
    except Exception as error:
        foreign(error, "tracing")
        try:
            net.direct(example)
        except BadValueError as refusal:  # it does not run either
            raise NoRuleError(str(refusal)) from error
        raise NoRuleError(
            f"{type(net.module).__name__} cannot be read as a graph, perhaps because it branches on its "
            f"data: {type(error).__name__}: {str(error).partition(' - ')[0]}. ntkit.monte_carlo(model, ...) "
            f"estimates the limit of whatever runs."
        ) from error
    if graph.by_weights:
        raise NoRuleError(
            f"{type(net.module).__name__} branches on values that its weights make, or reads them otherwise "
            f"({', '.join(graph.reads)}): its path is that of these weights. Write it in operations on "
            f"tensors; ntkit.monte_carlo(model, ...) estimates the limit of what runs."
        )
    return graph
