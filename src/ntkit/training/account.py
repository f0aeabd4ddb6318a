"""Account for the predictions of a recorded run: which training samples made them, and how much."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.compute.plan import parse_memory
from ntkit.errors import NotPerSampleError, NtkitError, PathMismatchError
from ntkit.network import as_inputs, batch_size, network, refuse_stateful, take
from ntkit.training.averaging import Averages
from ntkit.training.flat import FlatNetwork, Loss, cast, cast_loss
from ntkit.training.manifest import hash_data
from ntkit.training.modelled import compare_steps
from ntkit.training.progress import progress
from ntkit.training.quadrature import Nodes, choose_rules
from ntkit.training.result import Account as Account
from ntkit.training.run import Run
from ntkit.training.sweep import Path, sweep

_COLUMNS = ("contributions", "decay", "start", "rounding")


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
        ``"auto"`` takes as many Gauss-Legendre nodes in each step, and halves it as often, as `tol` needs;
        a number takes that many; ``"left"`` takes D_k = grad f(x; w_k), the first-order rule of Eq. 9.
    memory
        Bytes for the large arrays, as a number or as ``"512MiB"``; queries are streamed to fit.
    average
        Account for the averaged network (EMA, SWA) that was given to `record`, instead of the last one.

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
    NtkitError
        Inputs or weights with NaN, mixed dtypes, a loss that is no single number, ...

    Notes
    -----
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
    if not tol > 0:
        raise NtkitError(f"tol is {tol}, expected a positive number.")
    budget = parse_memory(memory)
    with Run(folder) as run:
        return _account(run, model, loss, train, queries, tol, nodes, budget, average)


def _account(
    run: Run,
    model: nn.Module,
    loss: Loss,
    train: Any,
    queries: Any,
    tol: float,
    nodes: Nodes,
    budget: int,
    average: bool,
) -> Account:
    data, x = _checked(run, model, train, queries)
    net = FlatNetwork(model, run, torch.float64)
    native = net if run.dtype == torch.float64 else FlatNetwork(model, run, run.dtype)
    x, data64 = cast(x, torch.float64), cast(data, torch.float64)
    if average and not run.averaged:
        raise NtkitError(
            f"{run.folder} was recorded without an average of the weights: record with average=."
        )
    with torch.no_grad():
        _refuse_mixing(run, net, data64, cast_loss(loss, torch.float64))
        with progress("Checking the steps", run.steps) as done:
            differences = compare_steps(run, net, native, data, loss, budget // 4, done)
        with progress("Choosing nodes", run.steps) as done:
            averages = Averages(run, budget // 4) if average else None
            trail = run if averages is None else averages
            rules = choose_rules(trail, net, x, nodes, tol, done)
        path = Path(run, net, data64, cast_loss(loss, torch.float64), rules, differences, averages)
        initial, prediction = (net.outputs(trail.weights(k), x) for k in (0, run.steps))
        q, o = initial.shape
        size = max(1, budget // (64 * max(1, net.total) * o))
        chunks = torch.arange(q).split(size)
        with progress("Accounting", run.steps * len(chunks)) as done:
            parts = [sweep(path, take(x, chunk.to(run.device)), budget, done) for chunk in chunks]
    columns = {name: torch.cat([getattr(p, name) for p in parts]) for name in _COLUMNS}
    columns = {name: c.reshape(q, o, *c.shape[1:]).cpu() for name, c in columns.items()}
    initial, prediction = initial.cpu(), prediction.cpu()
    buffers = torch.zeros_like(initial)
    explained = columns["contributions"].sum(-1) + columns["decay"] + columns["start"] + columns["rounding"]
    residual = (prediction - initial) - explained
    worst, moved = float(residual.abs().max()), float((prediction - initial).abs().max())
    converged = worst <= tol * moved
    if nodes == "auto" and not converged:
        warnings.warn(
            f"The account did not reach tol={tol:g}: its largest residual is {worst:.3g}, the largest "
            f"movement of a prediction {moved:.3g}. It is still exact as a whole, with that residual; kinks "
            f"(ReLU) and very long steps converge slowly, and below 1e-13 rounding sets the limit.",
            RuntimeWarning,
            stacklevel=3,
        )
    return Account(
        **columns,
        initial=initial,
        buffers=buffers,
        residual=residual,
        prediction=prediction,
        tol=tol,
        nodes=dict(sorted(Counter(len(rule[0]) for rule in rules).items())),
        converged=converged,
        steps=run.steps,
        rule=nodes if isinstance(nodes, str) else f"{nodes} nodes",
    )


def _checked(run: Run, model: nn.Module, train: Any, queries: Any) -> tuple[Any, Any]:
    if not isinstance(model, nn.Module):
        raise NtkitError(f"Expected the torch.nn.Module of the run, got {type(model).__name__}.")
    model = getattr(model, "_orig_mod", model)
    refuse_stateful(model)
    net = network(model)
    run.device = net.device
    given = {name: p.shape for name, p in model.named_parameters()}
    if given != run.shapes:
        differ = [n for n in {**run.shapes, **given} if run.shapes.get(n) != given.get(n)]
        shapes = ", ".join(
            f"{n}: recorded {tuple(run.shapes[n]) if n in run.shapes else 'none'}, "
            f"given {tuple(given[n]) if n in given else 'none'}"
            for n in differ[:5]
        )
        raise PathMismatchError(
            f"The model is another one than the run in {run.folder} was recorded with. Parameters that "
            f"differ: {shapes}. Build the model as for the training."
        )
    buffers = {name for name, _ in model.named_buffers()}
    if buffers != set(run.manifest["buffers"]):
        raise PathMismatchError(
            f"The model's buffers {sorted(buffers)} are not those of the run, "
            f"{sorted(run.manifest['buffers'])}. Build the model as for the training."
        )
    if net.dtype != run.dtype:
        raise PathMismatchError(
            f"The model has dtype {net.dtype}, the run was recorded in {run.dtype}; give "
            f"model.to({run.dtype}). The account itself is made in float64 either way."
        )
    if not isinstance(train, (tuple, list)) or len(train) != 2:
        raise NtkitError("`train` must be a pair (x, y) of inputs and targets.")
    data = as_inputs(train[0], net, "train x"), as_inputs(train[1], net, "train y")
    n = batch_size(data[0])
    if n != batch_size(data[1]):
        raise NtkitError(f"`train` has {n} inputs but {batch_size(data[1])} targets.")
    recorded = run.manifest["train_sha256"]
    if recorded is not None and hash_data(*data) != recorded:
        raise PathMismatchError(
            f"`train` is not the data that {run.folder} was recorded with: its sha256 differs "
            f"({hash_data(*data)[:12]}, recorded {recorded[:12]}). Give the same inputs and targets, in the "
            f"same order and dtype."
        )
    for k in range(run.steps):
        if int(run.step(k).batch.max()) >= n:
            raise PathMismatchError(
                f"Step {k} used sample {int(run.step(k).batch.max())}, but `train` has {n} samples. Give the "
                f"data of the run."
            )
    return data, as_inputs(queries, net, "queries")


def _refuse_mixing(run: Run, net: FlatNetwork, data: Any, loss: Loss) -> None:
    """Refuse a network whose samples depend on each other: its per-sample gradients do not add up."""
    if run.steps == 0:
        return
    w, step = run.weights(0), run.step(0)
    batch, loss = step.batch, step.loss(loss)
    x, y = take(data[0], batch), take(data[1], batch)
    together = net.gradient(w, x, y, loss)
    parts = _samplewise(net, w, x, net.cotangents(w, x, y, loss))
    if not (parts.sum(0) - together).abs().max() <= 1e-8 * parts.abs().sum(0).max():
        raise NotPerSampleError(
            "The gradient of the first batch is not the sum of its samples' gradients: the network's output "
            "for one sample depends on the others of its batch. Remove what mixes samples (a norm over the "
            "batch, attention across samples)."
        )


def _samplewise(net: FlatNetwork, w: Tensor, x: Any, c: Tensor) -> Tensor:
    lift = pytree.tree_map(lambda t: t[None], x)
    return net.sample_gradients(w[None], lift, c[None])[0]
