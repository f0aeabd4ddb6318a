"""What a prediction depends on: its derivative by the weight of each sample's loss, through training."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.compute.progress import progress
from ntkit.compute.surroundings import undisturbed
from ntkit.errors import one_of, whole
from ntkit.files import Json, as_path, hash_data
from ntkit.finite.jacobian.backward import quiet
from ntkit.inputs import Inputs, Picked
from ntkit.network import network
from ntkit.training.accounts.averaged_account import Averages, refuse_missing_average
from ntkit.training.accounts.request import Request
from ntkit.training.accounts.target import Target
from ntkit.training.accounts.tiles import Work
from ntkit.training.counterfactuals.result import Again, Counterfactual
from ntkit.training.counterfactuals.retrain import retraining
from ntkit.training.counterfactuals.sweep import DerivativeSweep
from ntkit.training.counterfactuals.tiles import derivatives
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.losses import BatchLoss, loss_of
from ntkit.training.recording.train_data import Train
from ntkit.training.replay.pull_back import pull_back
from ntkit.training.replay.retraining import MovingAverage
from ntkit.training.replay.step_vectors import StepVectors
from ntkit.training.replay.verify import StepCheck

_log = logging.getLogger("ntkit")


def counterfactual(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    queries: Inputs,
    target: Target = "outputs",
    labels: Inputs | None = None,
    augment: Augment | None = None,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    average: bool = False,
    total: bool = False,
    memory: int | str = "1GiB",
    keep: str | os.PathLike[str] | None = None,
    jobs: int = 1,
) -> Counterfactual:
    r"""Return what the predictions of a recorded run would be without each of its training samples.

    With eps_n the weight of sample n's terms in all batch losses, 1 in the run, and f(eps) the prediction of
    the network that training with them ends at, leaving sample n out changes f to first order by

        effect_n = -d f / d eps_n.

    The derivative goes through the whole of training, backwards: with the step (w, s)_{k+1} = T_k(w_k, s_k,
    g_k) and lambda = d f / d (w, s) at the end,

        (lambda_w, lambda_g, lambda_s) <- pull-back of T_k by lambda,
        d f / d eps_n += lambda_g . J(x_n; w_k)^T c_n,      lambda_w += H_k lambda_g,

    H_k the second derivative of the batch loss as it was: its batch norm, draws of dropout, clipping by norm,
    accumulation, schedule. All in float64. It tells what the prediction *depends on*; `account` tells what
    *made* it.

    Parameters
    ----------
    folder, model, loss, train, queries, target, labels, augment, inputs, targets, select
        As for `account`.
    average
        Ask about the averaged network (EMA, SWA) that was given to `record`, instead of the last one.
    total
        Ask for the sum over the queries, such as their summed loss with ``target="loss"``: one row, at the
        cost of a few trainings.
    memory
        Bytes for the large arrays: queries go through training so many at a time.
    keep
        A folder for what is finished: killed and called again, it goes on from there, in the middle of a row
        too, to the same result.
    jobs
        How many processes take rows through training at the same time; each takes its part of the memory.

    Returns
    -------
    Counterfactual
        ``effects [q, o, n]`` in the unit of the output, with ``leave_out``, ``top``, ``table``, ``check``,
        ``smoothness``.

    Raises
    ------
    NotSeparableError
        The batch loss is no sum of terms of single samples.
    PathMismatchError
        The recorded steps are not those of this data, loss and model.
    NtkitError
        The steps of the optimizer have no derivative that is known (Rprop, Muon), or an operation of the
        network cannot be differentiated twice. `retrain` takes such runs.

    Notes
    -----
    A ReLU network is differentiated as it is, almost everywhere; ``check`` tells how far that carries, and
    ``smoothness`` how linear the run is. Where batch norm mixes samples, one that is left out still enters
    the statistics of its batch.

    Hara, Nitanda, Maehara, "Data cleansing for models trained with SGD" (2019), for plain SGD; Ilyas and
    Engstrom, "MAGIC: near-optimal data attribution for deep learning" (2025); Engstrom et al., "Optimizing ML
    training with metagradient descent" (2025).

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
    ...     for step in range(30):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> c = ntkit.counterfactual(folder, model, loss, train=(x, y), queries=[[0.5], [2.0]])
    >>> c.effects.shape, c.leave_out([0, 7]).shape
    (torch.Size([2, 1, 8]), torch.Size([2, 1]))
    >>> c.check(sets=3).rank_correlation > 0.9
    True
    """
    picked = {"inputs": inputs, "targets": targets, "select": select}
    request = Request(
        model,
        loss_of(loss),
        train,
        queries,
        target=target,
        labels=labels,
        augment=augment,
        memory=memory,
        **picked,
    )
    one_of("total", total, (True, False))
    one_of("average", average, (True, False))
    work = Work(request.budget, whole("jobs", jobs), None if keep is None else as_path(keep))
    with request.open(as_path(folder)) as run, quiet(), undisturbed(network(model)):
        if average:
            refuse_missing_average(run)
        found = _effects(request, run, total, average, work)
    return found.with_run(_trains_again(request, os.fspath(folder), total, average))


def _effects(request: Request, run: Run, total: bool, average: bool, work: Work) -> Counterfactual:
    averages = Averages(run, request.budget // 4) if average else None
    with torch.no_grad():
        start = request.prepare(run, lambda _: None, averages=averages, checked=False, together=True)
    replay = start.sweep.replay
    again = retraining(request, run, torch.float64, replay)  # which refuses what cannot be left out
    gradients = StepVectors(run.steps, replay.net.total, request.budget // 4)
    check, checked = StepCheck(replay), False

    def gradient(k: int) -> Tensor:
        nonlocal checked
        checked = True
        gradients[k] = g = replay.gradient(run.weights(k), k, run.step(k))
        check.step(k, run.weights(k), run.weights(k + 1), g)
        return again.clipping.clipped(k, g)

    with progress("Following the optimizer", run.steps) as done:
        pull = pull_back(run, gradient, request.budget // 4, done)
    q, o = start.initial.shape
    sums = torch.eye(q * o, dtype=torch.float64)
    if total:
        sums = torch.eye(o, dtype=torch.float64).repeat(1, q)
    key: Json = {
        "counterfactual": [run.manifest, hash_data(run.weights(0), run.weights(run.steps))],
        "queries": hash_data(start.queries),
        "settings": [request.target, total, average, request.budget],
    }
    sweep = DerivativeSweep(replay, again.clipping, pull, None if checked else gradients, averages)
    sweep.refuse_wrong_second_derivatives()
    effects = -derivatives(sweep, start.sweep.net, start.queries, sums, work, key)
    if not checked:
        with torch.no_grad(), progress("Checking the steps", run.steps) as done:
            w = run.weights(0)
            for k in range(run.steps):
                after = run.weights(k + 1)
                if k in gradients:
                    held = gradients.row(k)
                    g = (gradients[k] if held is None else held).to(w)
                else:
                    g = replay.gradient(w, k, run.step(k))
                check.step(k, w, after, g)
                w = after
                done(1)
    _log.info("counterfactual of %s: %d rows through %d steps", run.folder, len(sums), run.steps)
    prediction = (sums @ start.prediction.cpu().reshape(-1)).reshape(-1, o)
    kind: Any = list(request.target) if isinstance(request.target, tuple | range) else request.target
    chosen = start.chosen
    if total and chosen is not None:
        chosen = chosen[:1] if all(row == chosen[0] for row in chosen) else None
    return Counterfactual(
        effects.reshape(-1, o, effects.shape[1]), prediction, kind, chosen, total, run.steps
    )


def _trains_again(request: Request, folder: str, total: bool, average: bool) -> Again:
    """Return what trains the run again with other weights of samples, and gives the outputs asked for."""

    def outputs(every: list[Tensor]) -> list[Tensor]:
        model = request.model
        with request.open(folder) as run, quiet(), undisturbed(network(model)):
            with torch.no_grad():
                start = request.prepare(run, lambda _: None, checked=False, together=True)
            again, found = retraining(request, run, torch.float64), []
            with progress("Training again", run.steps * len(every)) as done:
                for eps in every:
                    module = again.trained(eps, done, MovingAverage(run, torch.float64) if average else None)
                    parameters, net = dict(module.named_parameters()), start.sweep.net
                    net.take_buffers({n: b for n, b in module.named_buffers() if n in net.buffers})
                    w = torch.cat([parameters[name].detach().reshape(-1).double() for name in run.trained])
                    out = net.outputs(w, start.queries).detach().cpu()
                    found.append(out.sum(0, keepdim=True) if total else out)
        return found

    return outputs
