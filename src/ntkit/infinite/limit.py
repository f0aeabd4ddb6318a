"""The NNGP and NTK of a network's infinite-width limit, as kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ntkit.errors import NtkitError
from ntkit.finite.parametrize import Sigma
from ntkit.graph import as_inputs, network, refuse_stateful, trace
from ntkit.infinite.laws import Laws
from ntkit.infinite.points import Points
from ntkit.infinite.program import Program, read
from ntkit.infinite.tiles import Tiles
from ntkit.kernel import Kernel
from ntkit.network import Network, take

Parameterization = Literal["ntk", "standard"]
Kind = Literal["nngp", "ntk"]


class Limit:
    """The infinite-width limit of a network: ``limit.nngp``, ``limit.ntk``, ``limit.program``, ``limit.layers``."""

    def __init__(self, net: Network, example: Any, laws: Laws, points: Points, memory: Any, compile: Any) -> None:
        self.net, self.example, self.laws, self.points = net, example, laws, points
        self.memory, self.compile = memory, compile
        with torch.no_grad():
            graph = trace(net, example)
            self.program: Program = read(net, graph, example, laws, _source)
        self.tiles = Tiles(self.program.output, points, memory, compile)
        settings = {
            "model": net.module,
            "example": example,
            "sigma_w": laws.sigma_w,
            "sigma_b": laws.sigma_b,
            "parameterization": laws.parameterization,
            "samples": points.count,
            "seed": points.seed,
            "memory": memory,
            "compile": compile,
        }
        self.nngp = LimitKernel(kind="nngp", **settings)
        self.ntk = LimitKernel(kind="ntk", **settings)
        self.nngp._limit = self.ntk._limit = self

    @property
    def layers(self) -> list[tuple[str, Callable[..., tuple[Tensor | None, Tensor | None]]]]:
        """The lines of the program with their kernels: ``(name, f)``, ``f(x1, x2)`` gives K and Theta."""
        found = []
        for line in self.program.lines:
            if line.value is not None:
                found.append((line.name, Tiles(line.value, self.points, self.memory, self.compile)))
        return found

    def __repr__(self) -> str:
        return f"Limit of {type(self.net.module).__name__} ({self.laws.parameterization} parameterization)\n{self.program}"


def _source(node: fx.Node) -> str:
    return ""


class LimitKernel(Kernel):
    """The NNGP or the NTK of a network's infinite-width limit, ``[n1, n2]`` for each single output.

    The full kernel of o outputs is this one times the identity of size o. Made by `infinite_width`.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        kind: Kind = "ntk",
        sigma_w: Sigma = 2**0.5,
        sigma_b: Sigma = 0.0,
        parameterization: Parameterization = "ntk",
        samples: int = 2**13,
        seed: int = 0,
        memory: int | float | str = "2GiB",
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        self.model, self.example, self.kind = model, example, kind
        self.sigma_w, self.sigma_b, self.parameterization = sigma_w, sigma_b, parameterization
        self.samples, self.seed, self.memory, self.compile = samples, seed, memory, compile
        self._limit: Limit | None = None

    @property
    def limit(self) -> Limit:
        """The limit that this kernel belongs to, read again after `set_params` or `clone`."""
        if self._limit is None:
            self._limit = infinite_width(
                self.model,
                self.example,
                self.sigma_w,
                self.sigma_b,
                parameterization=self.parameterization,
                samples=self.samples,
                seed=self.seed,
                memory=self.memory,
                compile=self.compile,
            )
        return self._limit

    def __call__(self, x1: Any, x2: Any = None) -> Tensor:
        """Return the kernel ``[n1, n2]`` between two batches (the second is the first if left out)."""
        net = self.limit.net
        first = as_inputs(x1, net, "x1")
        second = None if x2 is None or x2 is x1 else as_inputs(x2, net, "x2")
        return self.limit.tiles(self.kind == "ntk", self._checked(first), self._checked(second))[-1]

    def diag(self, x: Any) -> Tensor:
        """Return the kernel of each sample with itself, ``[n]``."""
        return self.limit.tiles.diagonal(self.kind == "ntk", self._checked(as_inputs(x, self.limit.net)))[-1]

    def _checked(self, x: Any) -> Any:
        if x is None:
            return None
        from torch.utils import _pytree as pytree

        given = [tuple(t.shape[1:]) for t in pytree.tree_leaves(x)]
        wanted = [tuple(t.shape[1:]) for t in pytree.tree_leaves(self.limit.example)]
        if given != wanted:
            raise NtkitError(
                f"The limit was read with inputs of shape {wanted}, got {given} (without the sample axis); "
                f"call infinite_width with an example of the new shape."
            )
        return x

    def __repr__(self) -> str:
        return f"LimitKernel({self.kind} of {type(self.model).__name__}, {self.parameterization} parameterization)"


def infinite_width(
    model: nn.Module,
    example: Any,
    sigma_w: Sigma = 2**0.5,
    sigma_b: Sigma = 0.0,
    *,
    parameterization: Parameterization = "ntk",
    samples: int = 2**13,
    seed: int = 0,
    memory: int | float | str = "2GiB",
    compile: bool | Literal["auto"] = "auto",
) -> Limit:
    """Return the NNGP and NTK of a network's infinite-width limit, read off the module itself."""
    if not isinstance(model, nn.Module):
        raise NtkitError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    net = network(model)
    refuse_stateful(net.module)
    example = take(as_inputs(example, net, "example"), slice(0, 1))
    laws = Laws(parameterization, sigma_w, sigma_b)
    points = Points(samples, seed, net.dtype, net.device)
    return Limit(net, example, laws, points, memory, compile)


