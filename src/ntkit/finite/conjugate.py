"""The conjugate kernel: the kernel of the features that the last layer sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from ntkit.compute.surroundings import undisturbed
from ntkit.errors import BadValueError, NtkitError
from ntkit.faults import foreign
from ntkit.finite.jacobian.backward import quiet_vmap
from ntkit.finite.jacobian.coverage import cover
from ntkit.finite.jacobian.proof import check_samples, sample_pair
from ntkit.finite.jacobian.rounding import tolerance
from ntkit.graph import arguments, is_batched, trace
from ntkit.inputs import Batch, Inputs, Picked
from ntkit.kernel import Kernel
from ntkit.module_checks import refuse_stateful
from ntkit.network import Weights, as_inputs, network


class ConjugateKernel(Kernel):
    """The Gram kernel of the last layer's inputs, at the network's present weights.

        K(x, x') = h(x) . h(x'),   h(x): what enters the last operation that has weights

    ``[n1, n2]``, a sum over features with no factor: it is the part of the tangent kernel that the last
    layer's weight contributes (mean over outputs), and divided by the width it tends to the NNGP kernel of
    the layers below. Where the last layer has positions (tokens, pixels), h holds all of them. ``inputs``
    and ``select`` are those of `EmpiricalNTK`.

    Raises
    ------
    NtkitError
        A network that cannot be traced, that branches on its samples' values, or whose last operation is fed
        by several tensors.

    References
    ----------
    Ravikumar, "Deep neural networks: a kernel viewpoint", sections 3 and 4; Daniely, Frostig, Singer
    (2016).

    Examples
    --------
    >>> import torch, ntkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(5, 3)
    >>> h = torch.relu(model[0](x))
    >>> torch.allclose(ntkit.ConjugateKernel(model)(x), h @ h.T, atol=1e-5)
    True
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        weights: Weights | None = None,
        *,
        inputs: Picked = None,
        select: str | int | None = None,
    ) -> None:
        self.model, self.weights, self.inputs, self.select = model, weights, inputs, select
        self._net = network(model, weights, select)

    def features(self, x: Inputs) -> Float[Tensor, "n d"]:
        """Return h ``[n, d]``."""
        batch = as_inputs(x, self._net, "x", self.inputs)
        with undisturbed(self._net), torch.no_grad():
            return self._features(batch)

    def _features(self, batch: Batch) -> Tensor:
        refuse_stateful(self._net.module)
        _, lowest = check_samples(self._net, sample_pair(batch))
        try:
            graph = trace(self._net, batch)
        except NtkitError:
            raise
        except Exception as error:
            foreign(error, "tracing")
            raise NtkitError(
                f"The network cannot be traced ({type(error).__name__}), so its last layer is not known; "
                f"make a module of the layers below it, and use its outputs as features."
            ) from error
        last = cover(graph, frozenset(self._net.weights)).order[-1][0]
        features: dict[str, Tensor] = {}

        def one(sample: Batch) -> tuple[Tensor, Tensor]:
            def keep(node: fx.Node, args: tuple, kwargs: dict) -> Any:
                for name, value in arguments(node, args, kwargs).items():
                    if is_batched(value):
                        features[name] = value
                return node.target(*args, **kwargs)  # pyright: ignore

            outputs = graph.run(self._net.weights, self._net.buffers, sample, {last: keep})
            if len(features) != 1:
                raise BadValueError(
                    f"The last operation with weights, {last.target}, is fed by {len(features)} tensors; the "
                    f"conjugate kernel needs one, the features."
                )
            return outputs, next(iter(features.values())).reshape(-1)

        outputs, rows = quiet_vmap(one)(batch)
        truth = self._net.direct(batch)
        if (outputs - truth).abs().max() > tolerance(lowest) * truth.abs().max():
            raise NtkitError(
                f"The network does not run the same operations for all samples of the batch: it reads values "
                f"({', '.join(graph.reads) or 'of a sample'}) and branches on them. Give samples that go the "
                f"same way, or make a module of the layers below the last one; its outputs are features."
            )
        return rows

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2"]:
        """Return h(x1) h(x2)^T."""
        h1 = self.features(x1)
        h2 = h1 if x2 is None else self.features(x2)
        with undisturbed(self._net):
            return h1 @ h2.T

    def diag(self, x: Inputs) -> Float[Tensor, " n"]:
        """Return |h(x)|^2."""
        return self.features(x).square().sum(1)
