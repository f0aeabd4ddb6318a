"""A recorded run trained again: the same start, batches, draws and schedule, other weights of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ntkit.compute.threads import threads
from ntkit.errors import BadValueError, NtkitError
from ntkit.files import Json
from ntkit.inputs import Batch, take
from ntkit.network import copy_of, selected
from ntkit.training.folder.optimizer_state import rebuilt, set_settings, set_state
from ntkit.training.folder.random_state import set_random_state
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment, autocast
from ntkit.training.functional.flat_network import cast
from ntkit.training.functional.losses import BatchLoss, cast_loss, checked_loss
from ntkit.training.replay.clipping import Clipping


class Settings:
    """The settings of the optimizers of a run, step by step from the first on."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.now: list[list[Json]] = []
        self.threads = torch.get_num_threads()

    def at(self, k: int) -> bool:
        """Go to step k, the next one; return whether they changed."""
        scalars = self._run.recorded(k)
        self.threads = scalars.get("threads", self.threads)
        if "settings" in scalars:
            self.now = scalars["settings"]
        elif not self.now:
            raise NtkitError(
                f"The run in {self._run.folder} does not hold the settings of its optimizer: it was recorded "
                f"by an older ntkit, or they are no plain values. Record it again to train it again."
            )
        return "settings" in scalars


class MovingAverage:
    """The average v of a run's weights w, as v += tau (w - v) with the recorded tau of each step."""

    def __init__(self, run: Run, dtype: torch.dtype) -> None:
        self._taus, start, _ = run.average()
        w = run.weights(0)
        before = w if start is None else start.to(w)
        self._shapes = run.trained
        self._at = (before + self._taus[0] * (w - before)).to(dtype)

    def follow(self, k: int, parameters: Mapping[str, Tensor]) -> None:
        """Move it as after step k."""
        w = torch.cat([parameters[name].detach().reshape(-1) for name in self._shapes])
        self._at += self._taus[k + 1] * (w - self._at)

    def put_into(self, parameters: Mapping[str, Tensor]) -> None:
        """Give parameters its values."""
        begin = 0
        with torch.no_grad():
            for name in self._shapes:
                p = parameters[name]
                p.copy_(self._at[begin : begin + p.numel()].view_as(p))
                begin += p.numel()


def _follow(average: MovingAverage | None, k: int, parameters: Mapping[str, Tensor]) -> None:
    if average is not None:
        average.follow(k, parameters)


class Retraining:
    """Trains a run again in a dtype, each sample's term of the loss multiplied by its weight.

    The optimizers are those of the run, rebuilt. With all weights one, in the dtype of the run, the end is
    that of the run bit by bit, where the machine computes as it did.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        loss: BatchLoss,
        data: tuple[Batch, Batch],
        clipping: Clipping,
        augment: Augment | None = None,
        select: str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.run, self.dtype = run, dtype or run.dtype
        self._model, self._data, self.clipping = model, data, clipping
        self._augment, self._select = augment, select
        self._loss = cast_loss(loss, self.dtype)

    def trained(
        self,
        weights: Tensor | None,
        done: Callable[[int], None] = lambda _: None,
        average: MovingAverage | None = None,
    ) -> nn.Module:
        """Return the network at the end; ``weights [n]`` of the samples, None if all are one.

        With an ``average`` it is the averaged network.
        """
        run = self.run
        module = copy_of(self._model).to(self.dtype)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(run.start[f"w/{name}"])
                p.requires_grad_(name in run.trained)
                p.grad = None
            for name, buffer in module.named_buffers():
                buffer.copy_(run.start[f"buffer/{name}"])
        settings, slow = Settings(run), [parameters[name].detach().clone() for name in run.trained]
        settings.at(0)
        optimizers = rebuilt(run.manifest["optimizers"], settings.now, parameters)
        state = {k: self._cast(v) for k, v in run.start.items() if k.startswith("state/")}
        set_state(optimizers, state, run.begun.get("state", {}))
        with ExitStack() as stack:
            stack.enter_context(threads(torch.get_num_threads()))
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(torch.enable_grad())
            for k in range(run.steps):
                kept = run.recorded(k).get("kept")
                if kept is not None:
                    with torch.no_grad():
                        for name, s in zip(run.trained, slow, strict=True):
                            s.add_(parameters[name] - s, alpha=kept)
                            parameters[name].copy_(s)
                    _follow(average, k, parameters)
                    done(1)
                    continue
                if settings.at(k):
                    set_settings(optimizers, settings.now)
                if run.recorded(k).get("fresh"):  # the recording was resumed without the optimizer's state
                    for optimizer in optimizers:
                        optimizer.state.clear()
                torch.set_num_threads(settings.threads)
                for p in parameters.values():
                    p.grad = None
                self._pass(module, k, weights)
                lost = run.ungraded(k)
                for name in run.trained:
                    p = parameters[name]
                    if name in lost:
                        p.grad = None
                    elif p.grad is None:  # it was unused, and held a gradient of zeros
                        p.grad = torch.zeros_like(p)
                self.clipping.clip(k, {name: parameters[name] for name in run.trained})
                with torch.no_grad():
                    for optimizer in optimizers:
                        optimizer.step()
                _follow(average, k, parameters)
                done(1)
        if average is not None:
            average.put_into(parameters)
        return module

    def _cast(self, state: Tensor) -> Tensor:
        return state.to(self.dtype) if state.is_floating_point() and state.ndim else state

    def _pass(self, module: nn.Module, k: int, weights: Tensor | None) -> None:
        batch, parts, forwards = self.run.passed(k)
        native, begin = self.dtype == self.run.dtype, 0
        for (size, factor), forward in zip(parts, forwards, strict=True):
            index = batch[begin : begin + size]
            begin += size
            for name, m in module.named_modules():
                m.training = name in forward.modes
            x, y = take(self._data[0], index), take(self._data[1], index)
            if self._augment is not None:
                set_random_state(forward.announced, self.run.device)
                x, y = self._augment(x, y)
            set_random_state(forward.rng, self.run.device)
            x, y = cast(x, self.dtype), cast(y, self.dtype)
            args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            with autocast(forward.autocast if native else None, self.run.device):
                outputs = selected(module(*args, **kwargs), self._select)
                if not isinstance(outputs, Tensor):
                    raise BadValueError(
                        f"The network returns a {type(outputs).__name__}; say with select= which part of "
                        f"it the "
                        f"loss takes."
                    )
                leaf = outputs.detach().requires_grad_()
                value = checked_loss(self._loss, leaf, y)
            (c,) = torch.autograd.grad(value if factor == 1 else value * factor, leaf)
            if weights is not None:
                c = c * weights[index].to(c).view(-1, *[1] * (c.ndim - 1))
            outputs.backward(c)
