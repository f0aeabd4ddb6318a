"""Account for the predictions of a recorded run: which training samples made them, and how much."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.compute.plan import parse_memory
from ntkit.compute.progress import progress
from ntkit.errors import NtkitError
from ntkit.files import hash_data
from ntkit.network import as_inputs
from ntkit.training.accounts.averaged_account import Averages
from ntkit.training.accounts.checks import check_given, mixing_modes, query_network, refuse_mixing_queries
from ntkit.training.accounts.columns import SweepInput
from ntkit.training.accounts.result import COLUMNS, Account, balanced
from ntkit.training.accounts.target import Target, head_of
from ntkit.training.accounts.tiles import Work, sweep_tiles
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.flat_network import FlatNetwork, Loss, cast
from ntkit.training.functional.transforms import quiet
from ntkit.training.integrals.quadrature import Nodes, fixed_rule
from ntkit.training.replay.checkpointed import open_run
from ntkit.training.replay.steps import Replay
from ntkit.training.replay.verify import compare_steps


def account(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: Loss,
    *,
    train: tuple[Any, Any],
    queries: Any,
    tol: float = 1e-8,
    nodes: Nodes = "auto",
    memory: int | str = "1GiB",
    average: bool = False,
    target: Target = "outputs",
    labels: Any = None,
    augment: Augment | None = None,
    keep: str | os.PathLike[str] | None = None,
    jobs: int = 1,
) -> Account:
    r"""Return predictions of a recorded run as exact sums over its training samples.

    Over the K steps from w_k to w_{k+1} = w_k + Delta_k,

        f(x; w_K) - f(x; w_0) = sum_k D_k(x) . Delta_k,   D_k(x) = integral_0^1 grad f(x; w_k + s Delta_k) ds,

    and each Delta_k is linear in the gradients J(x_n; w_j)^T c_n of the samples of steps j <= k. So a sweep
    backwards over the steps gives what every sample contributed, with momentum, decay and adaptive rates.
    All of it is done in float64, whatever the run was trained in. It is an account of what happened in
    this run, not a counterfactual: it does not say what would be without a sample.

    Parameters
    ----------
    folder
        The run folder that `record` made.
    model
        The network; its weights do not matter (the recorded ones are used), and are left as they are.
    loss
        The loss of a batch, ``loss(outputs, targets)``, the one that ``backward()`` was called on;
        c_n is its derivative by output n.
    train
        The inputs and targets ``(x, y)`` that the recorded indices mean, n of them.
    queries
        A batch of q inputs.
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

    Returns
    -------
    Account
        ``contributions [q, o, n]`` and the other columns ``[q, o]``, in the unit of the output.

    Raises
    ------
    PathMismatchError
        The recorded steps are not those of this data, loss and model; it names the first.
    RunFolderError
        The folder is no run, or was truncated or edited.
    NotPerSampleError
        A query's prediction depends on the other queries.
    NtkitError
        Inputs or weights with NaN, mixed dtypes, a loss that is no single number, ...

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
    if not isinstance(tol, (int, float)) or not tol > 0:
        raise NtkitError(f"tol is {tol!r}, expected a positive number.")
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise NtkitError(f"jobs is {jobs!r}, expected how many processes, at least 1.")
    work = Work(parse_memory(memory), jobs, None if keep is None else Path(keep))
    with open_run(folder, model, loss, train, augment) as run, quiet():
        given = (model, loss, train, queries, augment)
        return _account(run, given, target, labels, tol, nodes, average, work)


def _account(
    run: Run, given: tuple, target: Target, labels: Any, tol: float, nodes: Nodes, average: bool, work: Work
) -> Account:
    model, loss, train, queries, augment = given
    (data, x), rule = check_given(run, model, train, queries), fixed_rule(nodes)
    if average and not run.averaged:
        raise NtkitError(
            f"{run.folder} was recorded without an average of the weights: record with average=."
        )
    if average and run.changes_buffers:
        raise NtkitError(
            "The buffers of the network changed in this run; those of its average are not recorded. Account "
            "for the last network (average=False)."
        )
    x, budget = cast(x, torch.float64), work.budget
    with torch.no_grad():
        net = query_network(run, model)
        averages = Averages(run, budget // 4) if average else None
        ends = (run if averages is None else averages).weights
        refuse_mixing_queries(net, ends(0), x)
        replay = Replay(run, model, data, loss, augment)
        with progress("Checking the steps", run.steps) as done:
            differences = compare_steps(replay, budget // 4, done)
        mixing = mixing_modes(run, replay, budget // 4)
        net.take_buffers(run.buffers(run.steps))
        labels = None if labels is None else as_inputs(labels, replay.native.net, "labels")
        head, extra = head_of(target, replay.loss, labels, net.outputs(ends(run.steps), x))
        if head is not None:
            net, x = query_network(run, model, head), (x, extra)
        initial, prediction = (_outputs(run, net, k, ends(k), x) for k in (0, run.steps))
        size = float(torch.maximum(initial.abs(), prediction.abs()).max())
        floor = 8 * torch.finfo(torch.float64).eps * size
        share = max(0.5 * tol * float((prediction - initial).abs().max()) / max(1, run.steps), floor)
        path = SweepInput(run, net, replay, rule, share, differences, mixing, averages)
        key = {
            "run": [run.manifest, hash_data(run.weights(0), run.weights(run.steps))],
            "queries": hash_data(x),
            "settings": [tol, nodes, target, average],
        }
        columns = sweep_tiles(path, x, work, key)
    q, o = initial.shape
    parts = {name: getattr(columns, name).reshape(q, o, -1).squeeze(-1).cpu() for name in COLUMNS}
    for name in ("contributions", "by_step"):
        parts[name] = getattr(columns, name).reshape(q, o, -1).cpu()
    return balanced(initial.cpu(), prediction.cpu(), parts, columns.nodes.tolist(), columns.spent, tol, nodes)


def _outputs(run: Run, net: FlatNetwork, k: int, w: Tensor, x: Any) -> Tensor:
    net.take_buffers(run.buffers(k))
    return net.outputs(w, x)
