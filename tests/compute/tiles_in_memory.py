"""Matrices in tiles, in memory and on disk, for the tests of solvers."""

from collections.abc import Iterator

from torch import Tensor


class InMemory:
    """A symmetric matrix as tiles, as a `TiledKernel` gives them."""

    symmetric = True

    def __init__(self, values: Tensor, tile: int) -> None:
        self.values, self.tile, self.reads = values, tile, 0
        self.shape, self.dtype = tuple(values.shape), values.dtype

    @property
    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield the upper ones."""
        count = -(-len(self.values) // self.tile)
        return ((i, j) for i in range(count) for j in range(i, count))

    def rows(self, i: int) -> slice:
        """Return the rows of tiles (i, .)."""
        return slice(i * self.tile, min(len(self.values), (i + 1) * self.tile))

    cols = rows

    def block(self, i: int, j: int) -> Tensor:
        """Return a tile."""
        assert i <= j
        self.reads += 1
        return self.values[self.rows(i), self.cols(j)].clone()
