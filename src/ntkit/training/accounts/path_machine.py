"""A trained network as a kernel machine with its path kernel: Theorem 1, with the division guarded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError
from ntkit.inputs import Inputs, resolved
from ntkit.network import as_inputs, network
from ntkit.training.accounts.account import account
from ntkit.training.accounts.path_kernel import PathKernel
from ntkit.training.functional.losses import BatchLoss
from ntkit.training.integrals.quadrature import Nodes
from ntkit.training.recording.train_data import Train, pair_of


class Expansion(NamedTuple):
    """Predictions of q queries as kernel expansions over n samples, float64, in the unit of the output.

    They add up::

        prediction = sum_n coefficients[..., n] kernel[..., n] + guarded + rest + bias

    ``coefficients`` a_n(x) and ``kernel`` K(x, x_n) are ``[q, o, n]``, all else ``[q, o]``: ``bias`` b(x) is
    the network before training; ``guarded`` what samples gave whose K is too small to divide by; ``rest``
    what came from no sample (decay, momentum from before, buffers, rounding, residual).
    """

    coefficients: Tensor
    kernel: Tensor
    bias: Tensor
    guarded: Tensor
    rest: Tensor
    prediction: Tensor


class PathMachine:
    r"""Theorem 1: f(x; w_K) = sum_n a_n(x) K(x, x_n) + b(x) for a recorded run.

    K is the path kernel and a_n(x) = C(x, n) / K(x, x_n), with what sample n contributed to the prediction

        C(x, n) = -sum_k integral c_{n,k} (the kernel of step k)      (for gradient descent)

    so that -a_n is the average of c_n = d loss / d y_n along the path, weighted by the tangent kernel. Where
    K(x, x_n) is near zero the average is not defined: pairs whose cosine is at most ``guard`` have a_n = 0,
    and what they gave is in ``guarded``.

    Parameters
    ----------
    kernel
        The path kernel of the run; its values for each output are used.
    loss, train
        As for `account`; what of it goes into the network is what the kernel takes.
    guard
        Smallest abs(K(x, x_n)) to divide by, over sqrt(K(x, x) K(x_n, x_n)).

    Notes
    -----
    Unlike those of a kernel machine, a_n and b depend on x (Domingos 2020, Remark 1). For batches, K is
    summed over all steps, and c_n is 0 at steps without sample n (Remark 5).

    References
    ----------
    Courtois, Morel, Arias, "Can neural networks extrapolate?" (2022), Theorem 1, and section 4.1: linear
    regression is exact with ``nodes="left"``.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> from ntkit.training.accounts.path_machine import PathMachine
    >>> x, y, loss = torch.randn(8, 3).double(), torch.randn(8, 1).double(), torch.nn.MSELoss()
    >>> model = torch.nn.Linear(3, 1).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> machine = PathMachine(ntkit.PathKernel(folder, model, nodes="left"), loss, (x, y))
    >>> e = machine.expand(x[:2], nodes="left")
    >>> torch.allclose((e.coefficients * e.kernel).sum(-1) + e.bias, model(x[:2]))
    True
    """

    def __init__(self, kernel: PathKernel, loss: BatchLoss, train: Train, guard: float = 1e-8) -> None:
        if not isinstance(kernel, PathKernel):
            raise BadTypeError(f"Expected a PathKernel, got {type(kernel).__name__}.")
        if not 0 <= guard < 1:
            raise BadValueError(f"guard is {guard}, expected a cosine: at least 0, less than 1.")
        self.kernel, self.loss, self.train, self.guard = kernel, loss, train, guard

    def expand(self, queries: Inputs, tol: float = 1e-8, nodes: Nodes = "auto") -> Expansion:
        """Return the predictions of queries as expansions in the path kernel."""
        diagonal = self.kernel.__sklearn_clone__().set_params(outputs="diagonal", inputs=None)
        k, how = self.kernel, {"tol": tol, "nodes": nodes}
        how |= {"memory": k.memory, "augment": k.augment, "select": k.select}
        train, queries = pair_of(self.train, k.inputs, k.targets), resolved(queries, "queries", k.inputs)
        a = account(k.folder, k.model, self.loss, train=train, queries=queries, **how)
        x = as_inputs(train[0], network(self.kernel.model), "train x")
        kernel = diagonal(queries, x).permute(0, 2, 1).cpu()
        size = (diagonal.diag(queries)[:, :, None] * diagonal.diag(x).T[None]).sqrt().cpu()
        good = kernel.abs() > self.guard * size
        coefficients = torch.where(good, a.contributions / torch.where(good, kernel, 1.0), 0.0)
        guarded = torch.where(good, 0.0, a.contributions).sum(-1)
        rest = a.decay + a.start + a.buffers + a.rounding + a.residual
        return Expansion(coefficients, kernel, a.initial, guarded, rest, a.prediction)
