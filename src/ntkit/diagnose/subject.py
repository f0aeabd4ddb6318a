"""What a question is asked of: a kernel, a network, or a recorded run with its network and data."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadTypeError, BadValueError, whole
from ntkit.files import as_path
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.infinite.limit import Limit
from ntkit.inputs import Batch, Inputs, Picked, as_batch, batch_size
from ntkit.kernel import Kernel
from ntkit.machine.kernels import KernelLike, as_array, as_kernel
from ntkit.network import as_inputs, copy_of, network
from ntkit.training.accounts.checks import check_data, check_model
from ntkit.training.accounts.request import Request
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.losses import BatchLoss, loss_of
from ntkit.training.recording.train_data import Train


@dataclass(frozen=True)
class RecordedRun:
    """A run folder with what it does not hold: the network's code, the loss and the data.

    Attributes
    ----------
    folder
        The run folder that `ntkit.record` made.
    model
        The network, built as for the training; its weights do not matter, and are left as they are.
    loss
        The loss of a batch, or its name, as for `ntkit.account`.
    train
        The inputs and targets ``(x, y)`` that the recorded indices mean.
    augment, inputs, targets, select
        As for `ntkit.account`.

    Raises
    ------
    NtkitError
        A folder that is not a run, or a model, a loss or data that are not those of the run.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> from ntkit.diagnose import RecordedRun
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> model, loss = torch.nn.Linear(1, 1).double(), torch.nn.MSELoss()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.1), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, x)) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), x).backward()
    ...         _ = optimizer.step()
    >>> run = RecordedRun(folder, model, loss, train=(x, x))
    >>> run.steps, torch.equal(run.network().weight, model.weight)
    (5, True)
    """

    folder: str | os.PathLike[str]
    model: nn.Module
    loss: BatchLoss | str
    train: Train
    augment: Augment | None = None
    inputs: Picked = None
    targets: Picked = None
    select: str | int | None = None

    def __post_init__(self) -> None:
        given = (self.model, loss_of(self.loss), self.train, None)
        picked = {"inputs": self.inputs, "targets": self.targets, "select": self.select}
        request = Request(*given, augment=self.augment, **picked)
        object.__setattr__(self, "_request", request)
        with request.open(as_path(self.folder)) as run:
            check_model(run, self.model)
            data = check_data(run, self.model, request.train)
            if run.steps == 0:
                raise BadValueError(f"The run in {self.folder} has no step; record a training.")
            object.__setattr__(self, "_data", data)
            object.__setattr__(self, "_steps", run.steps)
            object.__setattr__(self, "_every", run.every)

    @property
    def steps(self) -> int:
        """The number of steps of the run."""
        return vars(self)["_steps"]

    @property
    def x(self) -> Batch:
        """The training inputs, checked."""
        return vars(self)["_data"][0]

    @property
    def y(self) -> Batch:
        """The training targets, checked."""
        return vars(self)["_data"][1]

    @property
    def batch_loss(self) -> BatchLoss:
        """The loss as a function."""
        return vars(self)["_request"].loss

    def checkpoints(self, count: int) -> list[int]:
        """Return so many steps (or fewer) from the first to the end, those that the folder holds weights of.

        The first is 0 (before training), the last the number of steps (after it).
        """
        most, every = whole("checkpoints", count, 2) - 1, vars(self)["_every"]
        near = {every * round(i * self.steps / most / every) for i in range(most)}
        return sorted({0, *(k for k in near if k < self.steps), self.steps})

    @contextmanager
    def opened(self) -> Generator[Run]:
        """Open the folder for a while."""
        with vars(self)["_request"].open(as_path(self.folder)) as run:
            run.device = network(self.model).device
            yield run

    def network(self, step: int | None = None) -> nn.Module:
        """Return a copy of the network as it was before a step (None: at the end), in evaluation mode."""
        with self.opened() as run:
            return self.network_of(run, self.steps if step is None else step)

    def network_of(self, run: Run, step: int) -> nn.Module:
        """Return the same for a run that is open."""
        if not 0 <= whole("step", step, 0) <= self.steps:
            raise BadValueError(f"step={step}; expected 0 to {self.steps}, the steps of {self.folder}.")
        module = copy_of(self.model)
        for name, p in module.named_parameters():
            p.requires_grad_(name in run.trained)
        self.load(run, step, module)
        return module.eval()

    @torch.no_grad()
    def load(self, run: Run, step: int, module: nn.Module) -> None:
        """Give a copy of the network the weights and buffers that it had before a step."""
        flat, named, buffers = run.weights(step), dict(module.named_parameters()), run.buffers(step)
        for name in run.shapes:
            if name not in run.trained:
                named[name].copy_(run.start[f"w/{name}"])
        at = 0
        for name, shape in run.trained.items():
            named[name].copy_(flat[at : at + shape.numel()].view(shape))
            at += shape.numel()
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers.get(name, run.start[f"buffer/{name}"]))

    def kernel(self, step: int | None = None) -> EmpiricalNTK:
        """Return the tangent kernel of the network before a step (None: at the end)."""
        return EmpiricalNTK(self.network(step), select=self.select)


Subject: TypeAlias = KernelLike | nn.Module | RecordedRun | TiledKernel  # what most questions may be asked of


def kernel_of(subject: Subject, what: str = "the kernel") -> Kernel:
    """Return the kernel of what a question is asked of; of a network and a run's end, the tangent kernel."""
    if isinstance(subject, RecordedRun):
        return subject.kernel()
    if isinstance(subject, nn.Module):
        return EmpiricalNTK(subject)
    if isinstance(subject, TiledKernel):
        return subject.by_number
    if subject is None or isinstance(subject, str):
        raise BadTypeError(
            f"{what} is {subject!r}; expected a kernel such as ntkit.EmpiricalNTK(model), a network, or a "
            f"ntkit.diagnose.RecordedRun."
        )
    made = as_kernel(subject)
    if isinstance(subject, Kernel | Limit):
        return made
    return made.compose(lambda t: np.asarray(as_array(t)))  # kernels of others take arrays


def a_run(run: object) -> RecordedRun:
    """Return a recorded run; refuse anything else."""
    if not isinstance(run, RecordedRun):
        raise BadTypeError(
            f"The run is of type {type(run).__name__}; give ntkit.diagnose.RecordedRun(folder, model, loss, "
            f"train=(x, y))."
        )
    return run


def network_of(subject: object, what: str = "the model") -> nn.Module:
    """Return the network of a module or a run (at its end)."""
    if isinstance(subject, RecordedRun):
        return subject.network()
    if not isinstance(subject, nn.Module):
        raise BadTypeError(
            f"{what} is {subject!r:.80}, of type {type(subject).__name__}; give a torch.nn.Module or a "
            f"ntkit.diagnose.RecordedRun."
        )
    return subject


def drawn(x: Batch, count: int, seed: int) -> Tensor:
    """Return the places of at most so many samples, drawn from a seed, in their order."""
    n = batch_size(x)
    generator = torch.Generator().manual_seed(whole("seed", seed, None))
    return torch.randperm(n, generator=generator)[: whole("samples", count, 2)].sort().values


def as_x(subject: object, x: Inputs, what: str = "x") -> Batch:
    """Return inputs as tensors, checked for a network where there is one, else as a kernel takes them.

    Of a stored matrix the samples' numbers, all where none are given.
    """
    if isinstance(subject, TiledKernel) and x is None:
        x = torch.arange(subject.samples[0])
    if isinstance(subject, EmpiricalNTK):
        subject = subject.model if isinstance(subject.model, nn.Module) else None
    if isinstance(subject, RecordedRun):
        subject = subject.model
    if isinstance(subject, nn.Module):
        return as_inputs(x, network(subject), what)
    if isinstance(x, Tensor):
        return as_batch(x, [x.dtype], x.device, what)
    return as_batch(x, [torch.float64], torch.device("cpu"), what)
