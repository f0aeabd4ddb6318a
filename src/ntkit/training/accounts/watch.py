"""Accounts for given queries, made while a network is trained: nothing but a window of steps is stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from ntkit.errors import BadValueError, NtkitError
from ntkit.files import Scratch
from ntkit.inputs import Inputs, Picked
from ntkit.network import as_inputs
from ntkit.training.accounts.request import Request
from ntkit.training.accounts.result import Account
from ntkit.training.accounts.target import Target
from ntkit.training.accounts.windows import Windows
from ntkit.training.folder.step import Augment
from ntkit.training.functional.losses import BatchLoss, loss_of
from ntkit.training.integrals.quadrature import Nodes
from ntkit.training.recording.gradients import Scaler
from ntkit.training.recording.recording import Recording
from ntkit.training.recording.train_data import Train

_LEAST = 16  # steps of a window


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    loss: BatchLoss | str,
    train: Train,
    queries: Inputs,
    *,
    tol: float = 1e-8,
    nodes: Nodes = "auto",
    memory: int | str = "1GiB",
    target: Target = "outputs",
    labels: Inputs | None = None,
    augment: Augment | None = None,
    scaler: Scaler | None = None,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
) -> Watch:
    r"""Return a context manager that accounts for the predictions of some queries while your loop trains.

    What `account` does in one sweep backwards over all steps is done here over a window of them. With
    R_k = b_k D_k + mu_{k+1} R_{k+1}, what a step j puts into R_k is multiplied by mu_{k+1} ... mu_j: as many
    steps are kept as the momentum needs to forget to a hundredth of `tol` (about 260 at 0.9 and 1e-10), in a
    temporary folder, twice; without momentum 16 steps. Gradients of the queries are taken twice.

    Parameters
    ----------
    model, optimizer
        As for `record`.
    loss, train, queries
        As for `account`.
    tol, nodes
        As for `account`; how far the predictions will move in all is not known yet, so that each step is
        held to a tenth of `tol` times the movement of its own window.
    memory
        As for `account`.
    target, labels
        As for `account`, except for what only the last prediction decides (``"predicted"``, ``"margin"``).
    augment
        As for `account`.
    scaler
        As for `record`.
    inputs, targets, select
        As for `account`.

    Returns
    -------
    Watch
        In the loop, call ``run.batch(indices)`` before each backward pass; ``run.account`` after it.

    Raises
    ------
    NtkitError
        What `record` and `account` refuse.

    Examples
    --------
    >>> import torch, ntkit
    >>> _ = torch.manual_seed(0)
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> y, loss = x**2, torch.nn.MSELoss()
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    >>> with ntkit.watch(model, optimizer, loss, (x, y), queries=[[0.5], [2.0]]) as run:
    ...     for step in range(100):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> run.account.contributions.shape, run.account.steps, run.account.converged
    (torch.Size([2, 1, 8]), 100, True)
    """
    what = target, labels, augment, tol, nodes, memory, inputs, targets, select
    request = Request(model, loss_of(loss), train, queries, *what)
    if isinstance(target, str) and target in ("predicted", "margin"):
        raise BadValueError(
            f"target={target!r} is known only when training is over; watch all outputs, or take a number, "
            f'("margin", a, b) or "loss".'
        )
    return Watch(request, optimizer, scaler)


class Watch(Recording):
    """A run whose predictions are accounted for as it goes; made by `watch`. ``account`` when it is over."""

    lasts = False

    def __init__(
        self,
        request: Request,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        scaler: Scaler | None,
    ) -> None:
        self._windows = Windows(request)
        self._place: Scratch | None = None
        self._account: Account | None = None
        self._left: dict[str, float] = {}  # how much of what was there as the window began is remembered
        super().__init__(Path(), request.model, optimizer, request.train, scaler, None)
        as_inputs(request.queries, self._net, "queries")  # at once, not when the first window ends

    @property
    def account(self) -> Account:
        """The account of the run, when it is over."""
        if self._account is None:
            raise NtkitError("There is no account before the `with` block has ended without an error.")
        return self._account

    def __enter__(self) -> Watch:
        self._place = Scratch("watch")
        self.folder = self._place.path / "0"
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._place is not None
        try:
            super().__exit__(kind, error, trace)
            if kind is None:
                self._windows.add(self.folder, last=True)
                self._account = self._windows.account()
        finally:
            self._windows.close()
            self._place.remove()

    def _write(self) -> None:
        coefficients = dict(self._made) if self._stepped else {}
        super()._write()
        if not coefficients:
            return
        for name in self._trained:
            if name in coefficients:
                mu = coefficients[name].mu
                size = float(mu.abs().max()) if isinstance(mu, Tensor) else abs(mu)
                self._left[name] = size * self._left.get(name, 1.0)
        if self._writer.steps >= _LEAST and max(self._left.values(), default=0.0) <= self._windows.forgotten:
            self._next_window()

    def _next_window(self) -> None:
        """End the folder of this window and begin another one, with the state that there is now."""
        assert self._place is not None
        self._writer.end({}, {})
        self._writer.close("finished")
        self._windows.add(self.folder, last=False)
        self.folder = self._place.path / str(int(self.folder.name) + 1)
        self._writer = self._begin_folder()
        self._left = dict.fromkeys(self._left, 1.0)
