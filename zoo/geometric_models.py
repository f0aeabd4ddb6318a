"""Models of torch_geometric: graphs as samples, with edges in common, dense, or as they come."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from entry import SAMPLES, Entry, vectors
from torch import Tensor, nn
from torch_geometric import nn as geometric

NODES, CHANNELS, HIDDEN, CLASSES = 6, 4, 8, 3
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 1, 3], [1, 2, 3, 4, 5, 0, 2, 0, 3, 1]])


class OnOneGraph(nn.Module):
    """A network on graphs of the same edges, ``[n, nodes, channels]``: the batch as one graph of n parts."""

    def __init__(self, network: nn.Module, width: int = CLASSES) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("edges", EDGES)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, classes]``: the mean over the nodes."""
        n = x.shape[0]
        places = torch.arange(n).repeat_interleave(self.edges.shape[1]) * NODES
        y = self.network(x.flatten(0, 1), self.edges.repeat(1, n) + places)
        return y.reshape(n, NODES, -1).mean(1)


class Over(nn.Module):
    """A network that takes ``[n, nodes, channels]`` and the edges in common as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("edges", EDGES)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, classes]``: the mean over the nodes."""
        return self.network(x, self.edges).mean(1)


class Dense(nn.Module):
    """Two dense layers: each sample brings its own adjacency matrix."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int) -> None:
        super().__init__()
        self.first, self.second = layer(CHANNELS, width), layer(width, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Return ``[n, classes]``: the mean over the nodes."""
        return self.second(self.first(x, adjacency).tanh(), adjacency).mean(1)


class Pooled(nn.Module):
    """A dense network with a learned pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.assign, self.embed = (
            geometric.DenseGCNConv(CHANNELS, 3),
            geometric.DenseGCNConv(CHANNELS, HIDDEN),
        )
        self.out = geometric.DenseGCNConv(HIDDEN, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Return ``[n, classes]``."""
        pooled, coarse, _, _ = geometric.dense_diff_pool(
            self.embed(x, adjacency), adjacency, self.assign(x, adjacency)
        )
        return self.out(pooled, coarse).mean(1)


class AsItComes(nn.Module):
    """A network on the nodes of one graph: a row is a node, no sample of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = geometric.GCN(CHANNELS, HIDDEN, 2, CLASSES)
        self.register_buffer("edges", torch.tensor([[0, 1, 2], [1, 2, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[nodes, classes]``."""
        return self.network(x, self.edges)


class Molecule(nn.Module):
    """A network of atoms' numbers and positions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, numbers: Tensor, positions: Tensor) -> Tensor:
        """Return ``[n, 1]``: the energy."""
        n, nodes = numbers.shape
        batch = torch.arange(n).repeat_interleave(nodes)
        return self.network(numbers.flatten(), positions.flatten(0, 1), batch)


def complete(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the edges between all atoms of a molecule, and their lengths."""
    nodes = torch.arange(len(batch))
    near = (batch[:, None] == batch) & (nodes[:, None] != nodes)
    edges = near.nonzero().T
    return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)


def adjacent() -> tuple[Tensor, Tensor]:
    """Return features of nodes, and a symmetric adjacency matrix for each sample."""
    a = (torch.rand(SAMPLES, NODES, NODES) < 0.4).double()
    return vectors(NODES, CHANNELS)(), (a + a.mT).clamp(max=1)


def perceptron(i: int, o: int) -> nn.Module:
    """Return a network of one hidden layer."""
    width = max(i, o)
    return nn.Sequential(nn.Linear(i, width), nn.ReLU(), nn.Linear(width, o))


def gin(i: int, o: int) -> nn.Module:
    """Return a dense isomorphism layer."""
    return geometric.DenseGINConv(perceptron(i, o))


def deep(kind: str, **options: Any) -> Callable[[], nn.Module]:
    """Return one of the library's ready networks on the batch as one graph."""
    return partial(ready, kind, hidden_channels=HIDDEN, **options)


def ready(kind: str, over: Callable[[nn.Module], nn.Module] | None = None, **options: Any) -> nn.Module:
    """Return one of the library's ready networks, on the batch as one graph or as said."""
    network = getattr(geometric, kind)(CHANNELS, num_layers=2, out_channels=CLASSES, **options)
    return (over or OnOneGraph)(network)


def layer(kind: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return one layer on the batch as one graph."""
    return lambda: OnOneGraph(getattr(geometric, kind)(CHANNELS, CLASSES, *arguments, **options))


def molecule() -> tuple[Tensor, Tensor]:
    """Return numbers of atoms and their positions."""
    return torch.randint(1, 9, (SAMPLES, 5)), vectors(5, 3)()


def atoms(hidden_channels: int, num_filters: int) -> nn.Module:
    """Return a small SchNet."""
    return Molecule(geometric.SchNet(hidden_channels, num_filters, 2, 6, interaction_graph=complete))


NODE = vectors(NODES, CHANNELS)
ENTRIES = [
    Entry("gcn", deep("GCN"), NODE),
    Entry("gat", deep("GAT", heads=2), NODE),
    Entry("gatv2", deep("GAT", heads=2, v2=True), NODE),
    Entry("gin", deep("GIN"), NODE),
    Entry("sage", deep("GraphSAGE"), NODE),
    Entry("sage, max", deep("GraphSAGE", aggr="max"), NODE),
    Entry(
        "pna",
        deep("PNA", aggregators=["mean", "max", "std"], scalers=["identity"], deg=torch.tensor([0, 2, 4])),
        NODE,
    ),
    Entry("edge_cnn", deep("EdgeCNN"), NODE),
    Entry("transformer_conv", layer("TransformerConv", heads=2, concat=False), NODE),
    Entry("cheb_conv", layer("ChebConv", 3), NODE),
    Entry("arma_conv", layer("ARMAConv", 2, 2), NODE),
    Entry("tag_conv", layer("TAGConv"), NODE),
    Entry("gcn, edges in common", deep("GCN", over=Over), NODE),
    Entry("sage, edges in common", deep("GraphSAGE", over=Over), NODE),
    Entry("dense gcn", partial(Dense, geometric.DenseGCNConv, width=HIDDEN), adjacent),
    Entry("dense sage", partial(Dense, geometric.DenseSAGEConv, width=HIDDEN), adjacent),
    Entry("dense gat", partial(Dense, geometric.DenseGATConv, width=HIDDEN), adjacent),
    Entry("dense gin", partial(Dense, gin, width=HIDDEN), adjacent),
    Entry("dense graph conv", partial(Dense, geometric.DenseGraphConv, width=HIDDEN), adjacent),
    Entry("diff_pool", Pooled, adjacent),
    Entry(
        "schnet",
        partial(atoms, hidden_channels=8, num_filters=8),
        molecule,
        note="edges by a comparison",
    ),
    Entry("gcn on the nodes of one graph", AsItComes, vectors(CHANNELS), per_sample=False),
]
