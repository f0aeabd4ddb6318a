"""The path kernel of a recorded run: tangent kernels, added up along the way that training took."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ntkit.compute.plan import chunks
from ntkit.compute.surroundings import undisturbed
from ntkit.compute.tiled.identity import structure
from ntkit.errors import BadValueError, NtkitError, one_of
from ntkit.files import as_path
from ntkit.finite.factors import form
from ntkit.finite.jacobian.backward import quiet
from ntkit.finite.kinds import Outputs, kind_of
from ntkit.inputs import Batch, Inputs, Picked, batch_size, check_alike, take
from ntkit.kernel import Kernel
from ntkit.network import as_inputs, network, taking
from ntkit.training.accounts.checks import check_model, query_network
from ntkit.training.accounts.request import Request
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.flat_network import FlatNetwork, cast
from ntkit.training.functional.losses import BatchLoss, loss_of
from ntkit.training.functional.structure import Structure
from ntkit.training.integrals.averaged_gradients import averaged_jacobians
from ntkit.training.integrals.gauss import LEFT
from ntkit.training.recording.train_data import Train


class PathKernel(Kernel):
    r"""The integral of the tangent kernel along the path of a recorded training run.

    With the Jacobian J(x; w) in R^{o x P} and step k from w_k to w_k + Delta_k,

        K(x, x') = sum_k integral_0^1 J(x; w_k + s Delta_k) T_k J(x'; w_k + s Delta_k)^T ds

    where T_k says how long a step lasts. It is symmetric and positive semi-definite.

    Parameters
    ----------
    folder
        The run folder that `record` made.
    model
        The network of the run; its weights do not matter. It is put in evaluation mode, with the buffers of
        each step.
    outputs
        ``"full"`` -> ``[n1, n2, o, o]``, ``"diagonal"`` -> ``[n1, n2, o]``, ``"trace"`` (sum over outputs)
        and ``"mean"`` -> ``[n1, n2]``.
    time
        ``"rate"``: T_k is what the step multiplies its own gradient by, S_k (a_k + nu_k b_k): the rate of
        gradient descent (so that time is that of gradient flow, dw/dt = -grad L), the diagonal metric of
        adaptive optimizers. ``"steps"``: 1, time counts steps.
    nodes
        The number of Gauss-Legendre nodes of each step, or ``"left"``: the tangent kernels at w_k.
    memory
        Bytes for the Jacobians, as a number or as ``"512MiB"``.
    loss, train, augment
        As for `account`; needed only for a run recorded with checkpoints (``every=``).
    inputs, targets, select
        As for `account`.

    Raises
    ------
    NtkitError
        A model or inputs that are not the run's; rates that are negative (``maximize``).

    Notes
    -----
    Values are float64, in squared outputs per squared weight, times the unit of time.

    References
    ----------
    Courtois, Morel, Arias, "Can neural networks extrapolate?" (2022), Definition 3; Domingos (2020).

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.mse_loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> k = ntkit.PathKernel(folder, model)
    >>> torch.allclose(k(x), (5 * 0.1 * x @ x.T).double())  # a linear network has one tangent kernel
    True
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        *,
        outputs: Outputs = "mean",
        time: Literal["rate", "steps"] = "rate",
        nodes: int | Literal["left"] = 3,
        memory: int | str = "1GiB",
        loss: BatchLoss | str | None = None,
        train: Train | None = None,
        augment: Augment | None = None,
        inputs: Picked = None,
        targets: Picked = None,
        select: str | int | None = None,
    ) -> None:
        self._kind = kind_of(outputs)
        one_of("time", time, ("rate", "steps"))
        if nodes == "auto":
            raise BadValueError('nodes is "auto", expected a positive number or "left".')
        as_path(folder)
        self.folder, self.model, self.outputs, self.time = folder, model, outputs, time
        self.nodes, self.memory = nodes, memory
        self.loss, self.train, self.augment = None if loss is None else loss_of(loss), train, augment
        self.inputs, self.targets, self.select = inputs, targets, select
        # loss and train are needed for runs of checkpoints only, which `open` refuses without them
        given = {"augment": augment, "nodes": nodes, "memory": memory, "inputs": inputs, "targets": targets}
        self._request = Request(model, self.loss, train, None, select=select, **given)  # pyright: ignore[reportArgumentType]

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the kernel between two batches (the second is the first if left out)."""
        first = self._inputs(x1)
        second = first if x2 is None else self._inputs(x2)
        check_alike(first, second)
        total: Tensor | None = None
        with undisturbed(network(self.model)), torch.no_grad(), quiet():
            for at in self._places(first):
                o = at.outputs
                size = max(1, self._request.budget // (8 * 4 * at.net.total * o))
                n, m = batch_size(first), batch_size(second)
                if total is None:
                    total = at.start.new_zeros(self._kind.shape(n, m, o))
                for i in chunks(n, size):
                    left = at.jacobian(take(first, i))
                    scaled = left * at.metric
                    for j in chunks(m, size):
                        right = left if second is first and i == j else at.jacobian(take(second, j))
                        block = self._kind.product(scaled, right)
                        shape = self._kind.layout(len(scaled), len(right), o)
                        total[i, j] += self._kind.view(block.reshape(shape), o)
        return self._finished(total)

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return each sample with itself, ``[n]``, ``[n, o]`` or ``[n, o, o]``."""
        batch = self._inputs(x)
        total: Tensor | None = None
        with undisturbed(network(self.model)), torch.no_grad(), quiet():
            for at in self._places(batch):
                o = at.outputs
                size = max(1, self._request.budget // (8 * 4 * at.net.total * o))
                if total is None:
                    total = at.start.new_zeros(self._kind.diagonal_shape(batch_size(batch), o))
                for i in chunks(batch_size(batch), size):
                    j = at.jacobian(take(batch, i))
                    total[i] += self._kind.diagonal_view(self._kind.diagonal_product(j * at.metric, j), o)
        return self._finished(total)

    def identity(self) -> dict[str, object]:
        """Return what tells this kernel from another: of the run what it holds, not where it is."""
        params = self.get_params(deep=False) | {"model": structure(self.model)}
        with self._request.open(self.folder) as run:
            manifest = {k: repr(v) for k, v in sorted(run.manifest.items())}
            params["folder"] = {**manifest, "ends": [run.weights(0), run.weights(run.steps)]}
        return {k: v for k, v in params.items() if k != "train"}  # the manifest has its hash

    def _inputs(self, x: Inputs) -> Batch:
        return cast(as_inputs(x, network(self.model), picked=self.inputs), torch.float64)

    def _finished(self, total: Tensor | None) -> Tensor:
        if total is None:
            raise NtkitError(f"The run in {self.folder} has no steps, so its path has no kernel.")
        return total

    def _places(self, x: Batch) -> Iterator[_At]:
        rule = self._request.rule
        assert rule is not None
        with self._request.open(self.folder) as run:
            check_model(run, self.model)
            net = query_network(run, self.model, select=self.select)
            with taking(x):
                o = net.outputs(run.weights(0), take(x, slice(0, 1))).shape[1]
            structure = net.structure(x)
            for k in range(run.steps):
                start = run.weights(k)
                delta = run.weights(k + 1) - start
                metric = self._metric(run, k, start)
                net.take_buffers(run.buffers(k + 1))
                for node, share in zip(*rule, strict=True):
                    yield _At(net, structure, start + node * delta, share * metric, o)

    def _metric(self, run: Run, k: int, like: Tensor) -> Tensor:
        if self.time == "steps":
            return torch.ones_like(like)
        step = run.step(k)
        if step.sides:
            raise NtkitError(
                f"Step {k} multiplies matrices from their sides (Muon): its time is not a number for each "
                f"weight. Take time='steps'."
            )
        c = step.coefficients
        metric = c.scale * (c.a + c.nu * c.b) * torch.ones_like(like)
        if (metric < 0).any():
            raise NtkitError(
                f"Step {k} climbs the loss (a negative rate, or maximize=True): time would run backwards. "
                f"Take time='steps'."
            )
        return metric


class _At:
    """A network at one place of the path, and how long the path stays there."""

    def __init__(
        self, net: FlatNetwork, structure: Structure | None, w: Tensor, metric: Tensor, outputs: int
    ) -> None:
        self.net, self.start, self.metric, self.outputs = net, w, metric, outputs
        self._place = None if structure is None else structure.at(net.unflatten(w), None, net.buffers)

    def jacobian(self, x: Batch) -> Tensor:
        """Return J, ``[n, o, P]``."""
        n, o = batch_size(x), self.outputs
        if self._place is None:
            still = torch.zeros_like(self.start)[None]
            return averaged_jacobians(self.net, self.start[None], still, LEFT, x)[0]
        out = self.start.new_empty(n, o, self.net.total)
        eye = torch.eye(o, dtype=out.dtype, device=out.device)
        parts = self._place.jacobian(x, None, eye[:, None].expand(o, n, o))
        begin = 0
        for name, size in zip(self.net.shapes, self.net.sizes, strict=True):
            form(parts[name], out[:, :, begin : begin + size])
            begin += size
        return out
