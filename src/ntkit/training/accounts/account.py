"""Account for the predictions of a recorded run: which training samples made them, and how much."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import nn

from ntkit.compute.progress import progress
from ntkit.compute.surroundings import undisturbed
from ntkit.errors import one_of, whole
from ntkit.files import as_path, hash_data
from ntkit.finite.jacobian.backward import quiet
from ntkit.inputs import Inputs, Picked, batch_size, take
from ntkit.network import network
from ntkit.training.accounts.averaged_account import Averages, refuse_missing_average
from ntkit.training.accounts.balance import balanced, plan_of
from ntkit.training.accounts.plan import AccountPlan
from ntkit.training.accounts.request import Request
from ntkit.training.accounts.result import Account
from ntkit.training.accounts.sweep import Sweep
from ntkit.training.accounts.target import Target
from ntkit.training.accounts.tiles import Work, sweep_tiles, tiling
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.losses import BatchLoss, loss_of
from ntkit.training.integrals.quadrature import Nodes
from ntkit.training.recording.train_data import Train

_log = logging.getLogger("ntkit")


@overload
def account(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    queries: Inputs,
    tol: float = 1e-8,
    nodes: Nodes = "auto",
    memory: int | str = "1GiB",
    average: bool = False,
    target: Target = "outputs",
    labels: Inputs | None = None,
    augment: Augment | None = None,
    keep: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    plan: Literal[False] = False,
) -> Account: ...


@overload
def account(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    queries: Inputs,
    tol: float = 1e-8,
    nodes: Nodes = "auto",
    memory: int | str = "1GiB",
    average: bool = False,
    target: Target = "outputs",
    labels: Inputs | None = None,
    augment: Augment | None = None,
    keep: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    plan: Literal[True],
) -> AccountPlan: ...


def account(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    queries: Inputs,
    tol: float = 1e-8,
    nodes: Nodes = "auto",
    memory: int | str = "1GiB",
    average: bool = False,
    target: Target = "outputs",
    labels: Inputs | None = None,
    augment: Augment | None = None,
    keep: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    plan: bool = False,
) -> Account | AccountPlan:
    r"""Return predictions of a recorded run as exact sums over its training samples.

    Over the K steps from w_k to w_{k+1} = w_k + Delta_k,

        f(x; w_K) - f(x; w_0) = sum_k D_k(x) . Delta_k,   D_k(x) = integral_0^1 grad f(x; w_k + s Delta_k) ds,

    and each Delta_k is linear in the gradients J(x_n; w_j)^T c_n of the samples of steps j <= k. So a sweep
    backwards over the steps gives what every sample contributed, with momentum, decay and adaptive rates.
    All of it is done in float64, whatever the run was trained in. It is an account of what happened in
    this run, not a counterfactual: it does not say what would have happened without a sample.

    Parameters
    ----------
    folder
        The run folder that `record` made.
    model
        The network; its weights do not matter (the recorded ones are used), and are left as they are.
    loss
        The loss of a batch, ``loss(outputs, targets)``, the one that ``backward()`` was called on;
        c_n is its derivative by output n. Or its name: ``"cross_entropy"``, ``"mse"``, ``"l1"``, ``"huber"``,
        ``"binary_cross_entropy"`` (of logits), ``"smooth_l1"``, ``"nll"``, ``"poisson"``, means over a batch.
    train
        The inputs and targets ``(x, y)`` that the recorded indices mean, n of them, or a ``Dataset`` or
        ``DataLoader`` of such, which is read in the order of its numbers, whatever the loader shuffles.
    queries
        A batch of q inputs, or a ``Dataset`` or ``DataLoader`` of them.
    tol
        Largest abs(residual) allowed, in units of the largest abs(prediction - initial).
    nodes
        ``"auto"`` takes as many Gauss-Legendre nodes in each step as `tol` needs, cuts the step of a query
        where ReLU and its like have kinks, and halves what is still not good; a number takes that many;
        ``"left"`` takes D_k = grad f(x; w_k), the first-order rule of Eq. 9.
    memory
        Bytes for the large arrays, as a number or as ``"512MiB"``; steps, queries and the samples of a batch
        are streamed to fit.
    average
        Account for the averaged network (EMA, SWA) that was given to `record`, instead of the last one.
    target
        What of a prediction is accounted for: ``"outputs"`` (all), ``"predicted"`` (the output that is
        largest in the end), ``"margin"`` (that one less the second), ``("margin", a, b)``, ``"loss"`` (of
        each query by itself), or one or several numbers of outputs.
    labels
        The targets of the queries, for ``target="loss"``.
    augment
        What the loop did to a batch between ``run.batch`` and the network, as ``augment(x, y) -> (x, y)``; it
        is called with torch's random numbers as they were then.
    keep
        A folder for what is finished: killed and called again, it goes on from there, to the same result.
    jobs
        How many processes work on tiles of queries at the same time; each takes its part of the memory.
    inputs
        What of an item of a ``DataLoader`` or ``Dataset`` goes into the network: a place (0), a name
        (``"input_ids"``), a list of them, or a function of the item; targets must not. Left out, the first
        of two.
    targets
        What of an item of `train` the loss takes, in the same way; left out, what `inputs` leaves.
    select
        Which part of outputs that are a dict, a tuple or an object, such as ``"logits"``; the loss is given
        that part.
    plan
        Make no account: return how it would be made and what it is expected to cost, from one timed step.

    Returns
    -------
    Account
        ``contributions [q, o, n]`` and the other columns ``[q, o]``, in the unit of the output. With
        ``plan=True`` an `AccountPlan`, seconds and bytes.

    Raises
    ------
    PathMismatchError
        The recorded steps are not those of this data, loss and model; it names the first.
    RunFolderError
        The folder is not a run, or was truncated or edited.
    NotPerSampleError
        A query's prediction depends on the other queries.
    NtkitError
        Inputs or weights with NaN, mixed dtypes, a loss that is not a single number, ...

    Notes
    -----
    Queries are put to the network in evaluation mode, with the buffers of each step. Where training mixed
    the samples of a batch (batch norm) or drew at random (dropout), J(x_n; w_k) is row n of the Jacobian of
    the batch as it was.

    Courtois, Morel, Arias, "Can neural networks extrapolate?", Theorems 2 and 3 (Eq. 9) are ``nodes="left"``
    for plain gradient descent; their O(sum of squared rates) is what ``residual`` measures.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> _ = torch.manual_seed(0)
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> y, loss = x**2, torch.nn.MSELoss()
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, y)) as run:
    ...     for step in range(50):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> a = ntkit.account(folder, model, loss, train=(x, y), queries=[[0.5], [2.0]])
    >>> a.contributions.shape, a.converged
    (torch.Size([2, 1, 8]), True)
    >>> parts = a.initial + a.contributions.sum(-1) + a.decay + a.start + a.buffers + a.rounding + a.residual
    >>> torch.allclose(parts, a.prediction, atol=1e-14), torch.allclose(a.prediction, model(torch.tensor(
    ...     [[0.5], [2.0]], dtype=torch.float64)))
    (True, True)
    """
    what = target, labels, augment, tol, nodes, memory, inputs, targets, select
    request = Request(model, loss_of(loss), train, queries, *what)
    one_of("average", average, (True, False))
    one_of("plan", plan, (True, False))
    work = Work(request.budget, whole("jobs", jobs), None if keep is None else as_path(keep))
    with request.open(as_path(folder)) as run, quiet(), undisturbed(network(model)):
        return _planned(request, run, work) if plan else _account(request, run, average, work)


@torch.no_grad()
def _planned(request: Request, run: Run, work: Work) -> AccountPlan:
    """Time the check of one step, and one block of a sweep over a tile."""
    start = request.prepare(run, lambda _: None, whole=True, checked=False)
    path, x = start.sweep, start.queries
    tiles, size = tiling(path, x, work)
    sweep = Sweep(path, take(x, slice(0, -(-batch_size(x) // tiles))), work.budget // work.jobs)
    if path.rule is None:
        sweep.with_one_node()
    if not run.steps:
        return plan_of(request, start, sweep.columns.ways, tiles, 0.0, size)
    w, step = run.weights(0), run.step(0)
    began = time.monotonic()
    path.replay.gradient(w, 0, step, native=True)
    if path.replay.native is not path.replay.net:
        path.replay.gradient(w, 0, step)
    checked, before, blocks = time.monotonic() - began, sweep.position, sweep.blocks()
    began = time.monotonic()
    next(blocks)  # ways are tried there
    if sweep.position:
        began, before = time.monotonic(), sweep.position
        next(blocks)
    swept = (time.monotonic() - began) / (before - sweep.position)
    seconds = run.steps * (checked + swept * tiles / min(tiles, work.jobs))
    return plan_of(request, start, sweep.columns.ways, tiles, seconds, size)


@torch.no_grad()
def _account(request: Request, run: Run, average: bool, work: Work) -> Account:
    if average:
        refuse_missing_average(run)
    began = time.monotonic()
    averages = Averages(run, work.budget // 4) if average else None
    with progress("Checking the steps", run.steps) as done:
        start = request.prepare(run, done, averages=averages, whole=True)
    moved = float((start.prediction - start.initial).abs().max())
    start = replace(start.within(0.5 * request.tol * moved, request.tol * moved), check=None)  # no more steps
    key = {
        "run": [run.manifest, hash_data(run.weights(0), run.weights(run.steps))],
        "queries": hash_data(start.queries),
        "settings": [request.tol, request.nodes, request.target, average],
    }
    columns = sweep_tiles(start.sweep, start.queries, work, key)
    tiles, size = tiling(start.sweep, start.queries, work)
    plan = plan_of(request, start, columns.ways, tiles, time.monotonic() - began, size)
    _log.info("account of %s: %s", run.folder, plan)
    return balanced(request, start, start.initial, columns, plan)
