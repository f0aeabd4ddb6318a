"""Record a training run as it goes: two more lines in an ordinary loop."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from ntkit.inputs import Picked
from ntkit.training.recording.gradients import Scaler
from ntkit.training.recording.recording import Recording
from ntkit.training.recording.train_data import Train, pair_of


def record(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    train: Train | None = None,
    scaler: Scaler | None = None,
    average: nn.Module | None = None,
    every: int = 1,
    lookahead: int | None = None,
    inputs: Picked = None,
    targets: Picked = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Recording:
    r"""Return a context manager that records a training run, made by your own loop, into a folder.

    Written at each step, when it is made: the weights after it (in their own dtype, bit for bit), the
    indices of its batch, and the coefficients mu, nu, a, b, d, lambda of the step as

        g_k = sum_n J(x_n; w_k)^T c_n + lambda w_k,    m_k = mu m_{k-1} + nu g_k,
        w_{k+1} - w_k = -(a g_k + b m_k) - d w_k,      c_n = d loss / d y_n

    (Courtois, Morel, Arias, "Can neural networks extrapolate?", Eq. 8 is the case a = rate, all else 0).
    A process that is killed loses no finished step.

    Parameters
    ----------
    folder
        A folder that does not exist yet, or is empty.
    model
        The network, in the modes that its loop trains it in. Buffers that change (the statistics of batch
        norm) are recorded, and the state of torch's random generators where a forward pass draws from them.
    optimizer
        Any of ``torch.optim`` but LBFGS and SparseAdam, or one of your own (`register_optimizer`), over
        parameters of the model; those that it does not hold are frozen. Several, as a list, make one step
        together.
    train
        The training data, if they are to be hashed and the indices checked against them: a pair ``(x, y)``,
        or a ``Dataset`` or ``DataLoader`` of such, read in the order of its numbers.
    scaler
        The ``torch.amp.GradScaler`` of the loop, if it has one.
    average
        An average of the weights that the loop keeps, if predictions of it are to be accounted for:
        ``torch.optim.swa_utils.AveragedModel``, or a module with the model's parameters.
    every
        Write weights and the optimizer's state at each m-th step only; `account` replays the steps between,
        bit for bit (each has a checksum), or refuses: it needs the same machine and version of torch.
    lookahead
        The number k of a loop that uses Lookahead, w = s + alpha (w - s) after each k-th step, with s the
        weights after the last time; ``optimizer`` is the inner one. alpha is measured; each time counts as a
        step without samples.
    inputs, targets
        As for `account`.
    resume
        Continue the run that the folder holds, if it holds one: behind the last step after which the weights
        were those of ``model``; later ones are dropped. The optimizer begins with its state of then, loaded
        from a checkpoint, or with none.
    overwrite
        Start anew in a folder that holds a run, which is deleted.

    Returns
    -------
    Recording
        In the loop, call ``run.batch(indices)`` before each backward pass.

    Raises
    ------
    NtkitError
        An optimizer without a description, a closure called twice in a step, sparse gradients; no
        ``run.batch`` before a step, indices out of range; weights or buffers changed by anything but the
        optimizer.
    RunFolderError
        A folder that holds something already, or cannot be written.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with ntkit.record(tempfile.mkdtemp() + "/run", model, optimizer, train=(x, y)) as run:
    ...     for index in torch.arange(8).split(3):
    ...         run.batch(index)
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.mse_loss(model(x[index]), y[index]).backward()
    ...         _ = optimizer.step()
    >>> run.steps
    3
    """
    train = None if train is None else pair_of(train, inputs, targets)
    return Recording(folder, model, optimizer, train, scaler, average, every, lookahead, resume, overwrite)
