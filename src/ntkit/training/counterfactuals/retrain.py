"""Train a recorded run again without some of its samples: what would have happened, itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.compute.progress import progress
from ntkit.compute.surroundings import undisturbed
from ntkit.errors import BadTypeError, BadValueError, NotSeparableError, one_of
from ntkit.files import as_path
from ntkit.finite.jacobian.backward import quiet
from ntkit.inputs import Inputs, Picked, batch_size, take
from ntkit.network import as_inputs, network
from ntkit.training.accounts.averaged_account import refuse_missing_average
from ntkit.training.accounts.checks import check_data
from ntkit.training.accounts.request import Request
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment, Step
from ntkit.training.functional.flat_network import cast
from ntkit.training.functional.losses import BatchLoss, checked_loss, loss_of
from ntkit.training.recording.indices import Indices, as_indices
from ntkit.training.recording.train_data import Train, as_pair
from ntkit.training.replay.clipping import Clipping
from ntkit.training.replay.retraining import MovingAverage, Retraining
from ntkit.training.replay.steps import Replay, ReplayedBatch
from ntkit.training.replay.verify import StepCheck

_ZERO = 1e-6  # of the largest second derivative of a loss, what may be between two samples


@dataclass(frozen=True, repr=False)
class Retrained:
    """A recorded run as it would have gone with other weights of its samples; made by `retrain`.

    Attributes
    ----------
    module
        The network at the end, in evaluation mode, in the dtype asked for.
    weights
        What the loss of each sample was multiplied by, ``[n]``.
    difference
        The largest abs(difference) of a weight from the recorded end: 0 where nothing was left out and the
        machine computes as it did, bit by bit.
    """

    module: nn.Module
    weights: Float[Tensor, " n"]
    difference: float

    def __repr__(self) -> str:
        left = int((self.weights == 0).sum())
        changed = int((self.weights != 1).sum()) - left
        what = f"without {left} of {len(self.weights)} samples" + (
            f", {changed} others reweighted" if changed else ""
        )
        return f"<Retrained {what}; weights differ from the recorded ones by at most {self.difference:.3g}>"

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights and buffers at the end, as the model's own ``load_state_dict`` takes them."""
        return dict(self.module.state_dict())

    @torch.no_grad()
    def outputs(self, x: Inputs) -> Tensor:
        """Return the outputs of a batch, in evaluation mode, ``[q, ...]`` as the module gives them."""
        net = network(self.module)
        batch = as_inputs(x, net, "x")
        args, named = ((), batch) if isinstance(batch, dict) else (batch, {})
        try:
            return self.module(*(args if isinstance(args, tuple) else (args,)), **named)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = pytree.tree_map(lambda t: f"{list(t.shape)} {t.dtype}", batch)
            raise BadValueError(
                f"The network does not take x, {shapes} (the first axis is the sample): {error}. Give inputs "
                f"as the training inputs are given, x[:3] say."
            ) from error


@overload
def retrain(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    augment: Augment | None = None,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    without: Indices | None = None,
    weights: Sequence[float] | Tensor | None = None,
    without_each: None = None,
    dtype: torch.dtype | None = None,
    average: bool = False,
) -> Retrained: ...
@overload
def retrain(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    augment: Augment | None = None,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    without: Indices | None = None,
    weights: Sequence[float] | Tensor | None = None,
    without_each: Sequence[Indices],
    dtype: torch.dtype | None = None,
    average: bool = False,
) -> list[Retrained]: ...
def retrain(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss | str,
    *,
    train: Train,
    augment: Augment | None = None,
    inputs: Picked = None,
    targets: Picked = None,
    select: str | int | None = None,
    without: Indices | None = None,
    weights: Sequence[float] | Tensor | None = None,
    without_each: Sequence[Indices] | None = None,
    dtype: torch.dtype | None = None,
    average: bool = False,
) -> Retrained | list[Retrained]:
    r"""Train a recorded run again, some samples' terms of the loss left out or reweighted.

    The start, the batches and their order, the draws of dropout, the schedule and the rule of clipping are
    those of the run. Sample n's term of each batch loss is multiplied by eps_n; the divisor of a mean stays,

        g_k = sum_n eps_n J(x_n; w_k)^T c_n,

    so that eps_n = 0 leaves sample n out. Where a layer computes statistics of the batch (batch norm), a
    sample that is left out still enters them.

    Parameters
    ----------
    folder, model, loss, train, augment, inputs, targets, select
        As for `account`.
    without
        One set of samples to leave out: numbers, as a flat sequence; ``[]`` repeats the run as it was.
    weights
        Instead, eps_n of all samples, ``[n]``.
    without_each
        Instead, several sets; a list is returned, one for each.
    dtype
        To compute in; left out, that of the run, in which the unchanged run is repeated bit by bit on the
        machine that made it (``difference`` says so).
    average
        Return the averaged network (EMA, SWA) that was given to `record`, instead of the last one.

    Returns
    -------
    Retrained
        ``state_dict()``, ``outputs(x)``, ``difference``; a list of them for ``without_each``.

    Raises
    ------
    NotSeparableError
        The batch loss is no sum of terms of single samples (a contrastive loss, say).
    BadValueError
        Samples that are not there; more than one of ``without``, ``weights``, ``without_each``.
    NtkitError
        The run does not hold the settings of its optimizer, or gradients were changed by no known rule.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> _ = torch.manual_seed(0)
    >>> x, model, loss = torch.randn(8, 2), torch.nn.Linear(2, 1), torch.nn.MSELoss()
    >>> y, optimizer = x[:, :1] ** 2, torch.optim.Adam(model.parameters(), lr=0.01)
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, y)) as run:
    ...     for step in range(20):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> ntkit.retrain(folder, model, loss, train=(x, y), without=[]).difference
    0.0
    >>> again = ntkit.retrain(folder, model, loss, train=(x, y), without=[3])
    >>> again.outputs(x).shape
    torch.Size([8, 1])
    """
    given = [v is not None for v in (without, weights, without_each)]
    if sum(given) != 1:
        raise BadValueError(
            f"{sum(given)} of without=, weights= and without_each= are given; expected one: "
            f"without=[] repeats the run as it was."
        )
    picked = {"inputs": inputs, "targets": targets, "select": select}
    request = Request(model, loss_of(loss), train, None, augment=augment, **picked)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise BadTypeError(f"dtype={dtype!r}; expected a floating dtype, torch.float64 say, or None.")
    if without_each is not None and not isinstance(without_each, list | tuple):
        raise BadTypeError(
            f"without_each={without_each!r}; expected a list of sets of samples, [[3], [4, 5]]."
        )
    one_of("average", average, (True, False))
    with request.open(as_path(folder)) as run, quiet(), undisturbed(network(model)):
        if average:
            refuse_missing_average(run)
        again = retraining(request, run, dtype)
        samples = batch_size(as_pair(request.train, network(model))[0])
        every = (
            [_eps(weights, samples)]
            if weights is not None
            else [
                without_eps(some, samples) for some in ([without] if without_each is None else without_each)
            ]
        )
        found = []
        with progress("Training again", run.steps * len(every)) as done:
            for eps in every:
                moving = MovingAverage(run, again.dtype) if average else None
                module = again.trained(None if bool((eps == 1).all()) else eps, done, moving)
                module.eval()
                found.append(Retrained(module, eps, _difference(run, module, average)))
    return found if without_each is not None else found[0]


def retraining(
    request: Request, run: Run, dtype: torch.dtype | None, replay: Replay | None = None
) -> Retraining:
    """Return what trains a run again, checked: the model, the data, and a loss that is a sum over samples.

    A float64 ``replay`` has the data that were checked already.
    """
    if not run.steps:
        raise BadValueError(f"The run in {run.folder} has no steps that could be made again: record some.")
    if replay is None:
        data = check_data(run, request.model, request.train)
        replay = Replay(run, request.model, data, request.loss, request.augment, request.select)
    with torch.no_grad():
        StepCheck(replay).step(0, run.weights(0), run.weights(1))  # refuses another loss
    refuse_mixing_losses(replay)
    clipping = Clipping.of(run, lambda k: replay.gradient(run.weights(k), k, run.step(k)))
    return Retraining(
        run, request.model, request.loss, replay.data, clipping, request.augment, request.select, dtype
    )


def refuse_mixing_losses(replay: Replay) -> None:
    """Refuse a batch loss whose derivative by the output of one sample depends on that of another.

    Seen in the first and the last batch, by what moving the outputs of half of the samples, drawn, changes
    in the derivatives by those of the others.
    """
    run = replay.run
    for k in {0, run.steps - 1}:
        step: Step = run.step(k)
        for part in replay.parts(step):
            outputs, n = replay.outputs(run.weights(k), k, part).detach(), len(part.batch)
            if outputs.ndim == 0 or len(outputs) != n:
                raise BadValueError(
                    f"A batch of {n} samples has outputs of shape {list(outputs.shape)}; expected the "
                    f"sample to be "
                    f"the first axis, so that it is known which of them are a sample's."
                )
            if k == 0:
                _refuse_other_axis(replay, part)
            c = _cotangents(replay, outputs, part)
            if not c.isfinite().all():
                raise BadValueError(
                    f"The derivative of the loss at step {k} holds NaN or infinite values; check that loss "
                    f"and "
                    f"train are those of the run."
                )
            draw = torch.Generator().manual_seed(k)
            for scale in (0.1, 3.0) if n > 1 else ():
                half = torch.randperm(n, generator=draw).to(outputs.device) < n // 2
                noise = torch.randn(outputs.shape, generator=draw).to(outputs)
                noise *= scale * (outputs.abs().mean() + 1e-3)
                moved = outputs + noise * half.view(-1, *[1] * (outputs.ndim - 1))
                off = (_cotangents(replay, moved, part) - c)[~half].abs().max()
                if not off <= _ZERO * c.abs().max():
                    raise NotSeparableError(
                        f"The loss of a batch is no sum of terms of single samples: at step {k}, the "
                        f"derivative "
                        f"by the output of one sample depends on the outputs of others (a contrastive or "
                        f"ranking "
                        f"loss, a division by what the batch predicts). It has no term that could be left "
                        f"out."
                    )


def _refuse_other_axis(replay: Replay, part: ReplayedBatch) -> None:
    """Refuse outputs whose first axis has the length of the batch by chance: with a sample less it stays."""
    n = len(part.batch)
    if n < 3:
        return
    fewer = [take(some, slice(0, n - 1)) for some in (part.x, part.y)]
    try:
        found = replay.outputs(replay.run.weights(0), 0, part._replace(x=fewer[0], y=fewer[1]))
    except (RuntimeError, ValueError):  # it takes batches of one size only
        return
    if found.ndim and len(found) != n - 1:
        raise BadValueError(
            f"Outputs of {n - 1} samples have the shape {list(found.shape)}, those of {n} begin with {n} by "
            f"chance; expected the sample to be the first axis, so that it is known which of them are a "
            f"sample's (batch_first=True, or transpose them in the network)."
        )


def _cotangents(replay: Replay, outputs: Tensor, part: ReplayedBatch) -> Tensor:
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        value = checked_loss(replay.loss, leaf, cast(part.y, replay.dtype))
        return torch.autograd.grad(value, leaf)[0]


def without_eps(indices: Indices | None, samples: int) -> Tensor:
    """Return the weights of samples without some: 0 for these, 1 for the others."""
    eps = torch.ones(samples, dtype=torch.float64)
    if isinstance(indices, str | bytes | int | float):
        raise BadTypeError(f"without={indices!r}; expected the numbers of samples, [3, 17] say.")
    if isinstance(indices, slice):
        indices = torch.arange(samples)[indices]
    count = indices.numel() if isinstance(indices, Tensor) else np.size([] if indices is None else indices)
    if count and not _is_empty_mask(indices, samples):
        eps[as_indices(indices, samples, "without").long()] = 0.0  # pyright: ignore[reportArgumentType]
    return eps


def _is_empty_mask(indices: object, samples: int) -> bool:
    mask = np.asarray(indices) if isinstance(indices, Tensor | np.ndarray | list | tuple) else np.ones(1)
    return mask.dtype == bool and mask.shape == (samples,) and not mask.any()


def _eps(weights: Sequence[float] | Tensor, samples: int) -> Tensor:
    try:
        eps = torch.as_tensor(weights, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTypeError(f"weights={weights!r:.80}; expected a number for each sample.") from error
    if eps.shape != (samples,) or not eps.isfinite().all():
        raise BadValueError(
            f"weights={weights!r:.60} has shape {tuple(eps.shape)}; expected {samples} finite numbers."
        )
    return eps


def _difference(run: Run, module: nn.Module, average: bool) -> float:
    parameters = dict(module.named_parameters())
    end = run.average()[2] if average else None
    recorded = run.weights(run.steps) if end is None else end
    flat = torch.cat([parameters[name].detach().reshape(-1).double() for name in run.trained])
    return float((flat - recorded).abs().max())
