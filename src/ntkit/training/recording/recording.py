"""A run being recorded: what the hooks of optimizers and network tell, written at each step."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.errors import BadTypeError, BadValueError, NtkitError, one_of
from ntkit.files import Json, as_bytes, as_path, hash_data
from ntkit.inputs import batch_size
from ntkit.network import network, refuse_complex, unwrapped
from ntkit.training.folder.manifest import MANIFEST
from ntkit.training.folder.optimizer_state import names_of
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Forward, Part
from ntkit.training.folder.writer import RunWriter, clear
from ntkit.training.optimizers import Coefficients, description
from ntkit.training.recording.coefficients import Stepping, as_optimizers, trained_parameters
from ntkit.training.recording.forwards import ForwardWatch
from ntkit.training.recording.gradients import Gradients, Scaler
from ntkit.training.recording.indices import Indices, as_indices
from ntkit.training.recording.settings import Settings
from ntkit.training.recording.sparse import Checkpointing
from ntkit.training.recording.stats import Stats, Stopwatch
from ntkit.training.recording.train_data import Train, as_pair
from ntkit.training.recording.weight_averages import AverageWatch, LookaheadWatch

_log = logging.getLogger("ntkit")


class Recording:
    """A run being recorded; made by `record`. ``steps`` counts the steps that are written."""

    lasts = True  # whether it may be trained again, when it is over

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        train: Train | None,
        scaler: Scaler | None,
        average: nn.Module | None,
        every: int = 1,
        lookahead: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise BadTypeError(f"Expected a torch.nn.Module to record, got {type(model).__name__}.")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise BadValueError(f"every is {every!r}, expected a number of steps, at least 1.")
        if not isinstance(scaler, Scaler | None):
            raise BadTypeError(f"scaler={scaler!r}; expected the loop's torch.amp.GradScaler, or None.")
        self.folder = as_path(folder)
        self.steps = 0
        self._every = every
        self._resume = one_of("resume", resume, (True, False))
        self._overwrite = one_of("overwrite", overwrite, (True, False))
        if resume and overwrite:
            raise BadValueError("resume=True continues a run, overwrite=True deletes it; give one of them.")
        if resume and (average is not None or lookahead is not None):
            raise BadValueError(
                "A run with average= or lookahead= cannot be resumed: where these were is not recorded. "
                "Record the rest to another folder."
            )
        self._module: nn.Module = unwrapped(model)
        self._optimizers = as_optimizers(optimizer)
        self._scaler = scaler
        described = [description(o) for o in self._optimizers]
        self._net = network(self._module)
        refuse_complex(self._net, "An account of its training")
        self._names = {id(p): name for name, p in self._module.named_parameters()}
        self._trained = trained_parameters(self._optimizers, self._names)
        both = zip(self._optimizers, described, strict=True)
        self._stepping = {id(o): Stepping(o, d, self._trained) for o, d in both}
        self._samples, self._hash = self._read(train)
        self._average = None if average is None else AverageWatch(average, self._module, self._trained)
        if lookahead is not None and every > 1:
            raise BadValueError("lookahead= needs the weights of all steps: record with every=1.")
        self._lookahead = None if lookahead is None else LookaheadWatch(lookahead, self._trained)

    def batch(self, indices: Indices, weight: float = 1.0) -> None:
        """Say which training samples the next backward pass uses; called again before a step, they add up.

        A step that the loop skips (a loss that is not finite, a GradScaler) is forgotten when the next
        backward pass finds the gradients zeroed.

        Parameters
        ----------
        indices
            Numbers of samples (tensor, array or list; repeated ones count twice), or a slice or a
            boolean mask where `train` was given to `record`.
        weight
            What the loop multiplies the loss of this batch by, 1 / 4 say where four of them make a step.
        """
        self._begun(self._announce)(indices, weight)

    @property
    def _begun(self) -> Stopwatch:
        """The stopwatch of a recording within its ``with`` block."""
        if not hasattr(self, "_timed"):
            raise NtkitError(
                "The recording has not begun: use it in a `with` block, `with ntkit.record(...) as run:`, "
                "and call run.batch(indices) there."
            )
        return self._timed

    @property
    def stats(self) -> Stats:
        """What recording cost until now: seconds of it and in all, bytes; its ``overhead`` is their ratio."""
        return Stats(self.steps, self._begun.seconds, self._timed.total, self._writer.bytes)

    def _announce(self, indices: Indices, weight: float) -> None:
        self._write()
        self._synchronize()
        index = as_indices(indices, self._samples, f"The batch of step {self.steps}")
        if not (isinstance(weight, (int, float)) and math.isfinite(weight)):
            raise BadValueError(
                f"The weight of step {self.steps}'s batch is {weight!r}, expected a finite number."
            )
        self._gradients.announce(Part(index, float(weight), self._forwards.announce()))

    def __enter__(self) -> Recording:
        self._writer = self._begin_folder()
        timed = self._timed = Stopwatch()
        self._forwards = ForwardWatch(
            self._module, self._net.device, lambda: self._writer.changed_buffers(), timed
        )
        self._gradients = Gradients(
            self._trained, self._scaler, timed, copies=self._every == 1, backward=self._forwards.backward
        )
        self._still = {
            name: (p, p._version, p.detach().cpu().clone())
            for name, p in self._module.named_parameters()
            if name not in self._trained
        }
        self._made: dict[str, Coefficients] = {}
        self._stepped: set[int] = set()  # those of the optimizers that made their part of the present step
        self._hooks = [o.register_step_pre_hook(timed(self._before)) for o in self._optimizers]
        self._hooks += [o.register_step_post_hook(timed(self._after)) for o in self._optimizers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._gradients.close()
        self._forwards.close()
        try:
            self._timed(self._write)()
            if kind is None:
                self._synchronize()
            self._end(strict=kind is None)
        except BaseException:
            self._writer.drop()
            raise
        if kind is not None and not self.steps and not self._resume:  # refused before the first step: no run
            self._writer.discard()
            return
        self._writer.close("finished" if kind is None else "interrupted")
        _log.info("recorded %d steps in %s", self.steps, self.folder)
        self._timed.ended = time.perf_counter()
        if kind is None:
            self._check_still(values=True)

    def _end(self, strict: bool) -> None:
        tensors: dict[str, Tensor] = {}
        moved = 0.0
        if self._average is not None:
            try:
                self._average.check_still()
                moved = self._average.moved()
                tensors = self._average.tensors() if self._average.active else {}
            except NtkitError:
                if strict:
                    raise
        self._writer.end(tensors, {"average": moved})

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: Json
    ) -> tuple[tuple, Json] | None:
        self._skipped = bool(getattr(optimizer, "found_inf", None) or 0)
        if self._skipped:  # a fused optimizer under a GradScaler leaves everything as it is
            return None
        if id(optimizer) in self._stepped:
            self._write()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare(optimizer)
            return None
        return args[:1], {**kwargs, "closure": self._watched(optimizer, closure)}

    def _watched(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return the closure that makes the gradients of one step, with the reading of the step behind it."""
        called = False

        def watched() -> Any:
            nonlocal called
            if called:
                raise NtkitError(
                    f"The closure of step {self.steps} was called twice; a step that evaluates the loss at "
                    f"several places is not a sum over samples."
                )
            called = True
            loss = closure()
            self._timed(self._prepare)(optimizer)
            return loss

        return watched

    def _prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Read what a step is made of: its gradients are there, its weights are those before it."""
        if not self._stepped:
            self._begin()
        if self._reads:
            if self._sparse is not None:
                self._writer.keep_weights()
            self._stepping[id(optimizer)].before(self._gradients)
        if self._sparse is not None:
            self._sparse.prepare(optimizer, self._gradients)

    @property
    def _reads(self) -> bool:
        """Whether the coefficients of this step are read; those of replayed ones are, when they are replayed.

        The first step's are, so that what cannot be described is refused at once.
        """
        return self._sparse is None or self._writer.steps == 0

    def _begin(self) -> None:
        step = f"step {self.steps}"
        self._parts = self._gradients.parts()
        if not self._parts:
            raise NtkitError(
                f"No run.batch(indices) before {step}: ntkit cannot know its samples. Call it before each "
                f"backward pass."
            )
        for name, p in trained_parameters(self._optimizers, self._names).items():
            if name not in self._trained:
                raise NtkitError(f"{name!r} joined the optimizer at {step}; it must be there from the start.")
            if p.grad is not None and p.grad.layout != torch.strided:
                raise NtkitError(f"{name!r} has a sparse gradient at {step}; use dense gradients to record.")
            if not self._writer.is_as_it_was(name):
                raise NtkitError(
                    f"{name!r} was changed between step {self.steps - 1} and {step} by something other than "
                    f"the optimizer; such a change belongs to no sample. Start a new recording after it."
                )
        self._check_still(values=False)
        self._moved = {} if self._average is None else {"average": self._average.moved()}
        self._used = {} if self._sparse is not None else self._settings.changed()

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: Json) -> None:
        if self._skipped:
            return
        if self._reads:
            self._made.update(self._stepping[id(optimizer)].after(self._writer.weight))
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._optimizers):
            self._write()

    def _write(self) -> None:
        if not self._stepped:
            return
        coefficients, self._made, self._stepped = self._made, {}, set()
        if self._sparse is None:
            self._writer.step(coefficients, self._parts, {**self._moved, **self._used})
        else:
            self._sparse.step(self._writer, self._parts, self._moved)
        self.steps += 1
        self._gradients.made()
        if self._lookahead is not None:
            self._lookahead.stepped()

    def _synchronize(self) -> None:
        """Write what Lookahead did behind the last step, as a step of its own that has no samples."""
        if self._lookahead is None or not self._lookahead.due:
            return
        none = Part(torch.zeros(0, dtype=torch.long), 1.0, Forward(modes=self._parts[-1].forward.modes))
        moved = {"kept": self._lookahead.moved()} | ({} if self._average is None else {"average": 0.0})
        self._writer.step({}, [none], moved)
        self.steps += 1

    def _read(self, train: Train | None) -> tuple[int | None, str | None]:
        if train is None:
            return None, None
        x, y = as_pair(train, self._net)
        return batch_size(x), hash_data(x, y)

    def _check_still(self, values: bool) -> None:
        for name, (tensor, since, value) in self._still.items():
            if (values or tensor._version != since) and not torch.equal(as_bytes(tensor), as_bytes(value)):
                raise NtkitError(
                    f"{name!r}, a frozen parameter, changed before step {self.steps}; an account has no "
                    f"column for that. Keep it fixed while recording, or give it to the optimizer."
                )

    def _begin_folder(self) -> RunWriter:
        earlier: Run | None = None
        if self._overwrite:
            clear(self.folder)
        if self._resume and (self.folder / MANIFEST).exists():
            earlier = Run(self.folder)
        more = {f"m/{name}": m for s in self._stepping.values() for name, m in s.momentum().items()}
        if self._average is not None and self._average.active:
            more |= self._average.tensors()
        self._sparse, self._settings = None, Settings(self._optimizers, self.lasts)
        if earlier is not None and earlier.steps:
            self._settings.resumed()
        scalars: Json = {}
        if self._every > 1:
            self._sparse = Checkpointing(self._every, self._optimizers, self._trained)
            state, scalars = self._sparse.start()
        else:
            state, scalars = self._settings.start()
        more |= state
        groups = [g for o in self._optimizers for g in o.param_groups]
        about = {
            "optimizer": ", ".join(type(o).__name__ for o in self._optimizers),
            "groups": [[self._names[id(p)] for p in group["params"]] for group in groups],
            "every": self._every,
            "optimizers": names_of(self._optimizers, self._names),
            "samples": self._samples,
            "average": self._average is not None,
            "train_sha256": self._hash,
        }
        try:
            writer = RunWriter(self.folder, self._module, self._trained, about, more, scalars, earlier)
        finally:
            if earlier is not None:
                earlier.close()
        self.steps = writer.steps
        return writer
