"""A recorded run, opened: weights, batch and coefficients of any step, in float64."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import RunFolderError
from ntkit.files import Json
from ntkit.training.folder.log import LOG, LogReader
from ntkit.training.folder.manifest import MANIFEST, read_manifest
from ntkit.training.folder.step import Forward, Side, Step
from ntkit.training.optimizers import Coefficients

_KEPT = 2**26  # bytes of records that are held once they were read,
_FEWEST = 2  # or so many records: those before and after a step
_DEFAULTS = {key: value for key, value in vars(Coefficients()).items() if value is not None}


class Run:
    """A run folder, opened for reading; steps may be read in any order.

    ``trained`` maps the names of the P trained parameters to their shapes, in the order in which
    `weights` lays them out; ``dtype`` is the one that they were trained in.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.device: torch.device | str = "cpu"  # where tensors are wanted
        self.manifest = read_manifest(self.folder)
        steps, length = self.manifest["steps"], self.manifest["log_bytes"]
        self.every: int = self.manifest["every"]
        self.averaged = bool(self.manifest["average"])
        records = None if steps is None else steps + 2  # the start before, and the end behind all steps
        self.log = LogReader(self.folder / LOG, records, length)
        try:
            self._read_start()
        except RunFolderError:
            self.log.close()
            raise

    def _read_start(self) -> None:
        if len(self.log) == 0:
            raise RunFolderError(
                f"{self.folder / LOG} holds no initial weights: the recording was killed as it began. "
                f"Delete the folder and record again."
            )
        self.steps = len(self.log) - 1
        self._end: tuple[dict[str, Tensor], Json] | None = None
        if self.steps > 0 and "end" in (last := self.log.read(self.steps))[1]:
            self._end = last
            self.steps -= 1
        parameters = self.manifest["parameters"]
        self.shapes = {name: torch.Size(p["shape"]) for name, p in parameters.items()}
        self.trained = {name: self.shapes[name] for name, p in parameters.items() if p["trained"]}
        self.dtype: torch.dtype = getattr(torch, next(iter(parameters.values()))["dtype"])
        self.start, self.begun = self.log.read(0)
        self._held: OrderedDict[int, tuple[dict[str, Tensor], Json]] = OrderedDict()
        self._bytes = 0  # of those
        self._cached = max(3, _KEPT // (1 + self.log.size // len(self.log)))
        wanted = [f"w/{name}" for name in parameters] + [
            f"buffer/{name}" for name in self.manifest["buffers"]
        ]
        lacking = sorted(set(wanted) - set(self.start))
        if lacking:
            raise RunFolderError(
                f"{self.folder / MANIFEST} and {LOG} are of different runs: the log lacks {lacking[:3]}. "
                f"Restore both from one copy."
            )

    def __enter__(self) -> Run:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, str(self.device))

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log, and let go of what was read of it."""
        self.log.close()
        self._held.clear()
        self._bytes = 0
        vars(self).pop("_steps", None)  # which holds this object, too

    def weights(self, k: int) -> Tensor:
        """Return the trained weights before step k (after the last one for k = steps), ``[P]``."""
        return self._flat(lambda name: self.weight(name, k))

    def shaped_weights(self, k: int) -> list[Tensor]:
        """Return the same in their shapes; they are those that are held, and not to be written to."""
        return [self.weight(name, k).to(self.device).double() for name in self.trained]

    def momentum(self) -> Tensor | None:
        """Return the momentum that the optimizer had when recording began, ``[P]``, or None."""
        if not any(key.startswith("m/") for key in self.start):
            return None
        return self._flat(lambda name: self.start.get(f"m/{name}", torch.zeros(self.trained[name])))

    def _record(self, number: int) -> tuple[dict[str, Tensor], Json]:
        """Return a record; those that were read last are held."""
        if number == 0:
            return self.start, self.begun
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        record = self.log.read(number)
        self._held[number] = record
        self._bytes += _size(record)
        while self._bytes > _KEPT and len(self._held) > _FEWEST:
            self._bytes -= _size(self._held.popitem(last=False)[1])
        return record

    @property
    def changes_buffers(self) -> bool:
        """Whether any buffer changed after the recording began."""
        last = self._record(self.steps)[1] if self.steps else {}
        ended = self._end is not None and any(key.startswith("buffer/") for key in self._end[0])
        return ended or bool(last.get("buffers_at"))

    def buffers(self, k: int) -> dict[str, Tensor]:
        """Return the buffers before step k (after the last one for k = steps) that change in this run."""
        if k == self.steps and self._end is not None:
            return {**self._buffers(k), **_named(self._end[0], "buffer/")}
        return self._buffers(k)

    def _buffers(self, k: int) -> dict[str, Tensor]:
        changed = dict.fromkeys(self.manifest["buffers"], 0) | self._record(k)[1].get("buffers_at", {})
        return {name: self._record(at)[0][f"buffer/{name}"] for name, at in changed.items()}

    def buffers_at(self, k: int) -> dict[str, Tensor]:
        """Return the buffers as the record of step k left them, of those that changed until then."""
        return self._buffers(k)

    def average(self) -> tuple[list[float], Tensor | None, Tensor | None]:
        """Return how an average moved before each step and after the last, and its start and end ``[P]``."""
        taus = [self._record(k + 1)[1]["average"] for k in range(self.steps)]
        end, last = ({}, {}) if self._end is None else self._end
        taus.append(last.get("average", 0.0))  # killed: what the last step moved is not known
        ends = (_named(tensors, "v/") for tensors in (self.start, end))
        start, stop = (self._flat(tensors.__getitem__) if tensors else None for tensors in ends)
        return taus, start, stop

    def step(self, k: int) -> Step:
        """Return step k, counted from 0."""
        return self._steps(k, str(self.device))

    @cached_property
    def _steps(self) -> Callable[[int, str], Step]:
        """What reads steps, and holds them: as many as records, or fewer if their coefficients are long."""
        shaped = any(key.partition("/")[0] in vars(Coefficients()) for key in self.tensors_of(0))
        return lru_cache(maxsize=max(1, self._cached // 4) if shaped else self._cached)(self._read_step)

    def _read_step(self, k: int, _device: str) -> Step:  # on another device it is another step
        tensors, scalars = self._record(k + 1)
        batch, parts, forwards = self.passed(k)
        coefficients = scalars["coefficients"]
        each = [coefficients.get(name, {}) for name in self.trained]
        alike = bool(each) and all(one == each[0] for one in each[1:])  # of all weights, most often

        def gather(key: str, default: float) -> float | Tensor:
            if alike and key not in shaped:
                return each[0].get(key, default)
            values: list[Any] = []
            for name, one in zip(self.trained, each, strict=True):
                values.append(tensors.get(f"{key}/{name}", one.get(key, default)))
            if not any(isinstance(v, Tensor) for v in values) and len(set(values)) <= 1:
                return values[0]
            wide = [torch.as_tensor(value, dtype=torch.float64) for value in values]
            by_name = dict(zip(self.trained, wide, strict=True))
            return self._flat(lambda name: by_name[name].expand(self.trained[name]))

        shaped = {key.partition("/")[0] for key in tensors}
        values: Json = {key: gather(key, value) for key, value in _DEFAULTS.items()}
        sides, kept = tuple(self._sides(tensors)), scalars.get("kept")
        return Step(batch, Coefficients(**values), parts, sides, forwards, kept)

    def batch(self, k: int) -> Tensor:
        """Return the indices of the batch of step k."""
        tensors, scalars = self._record(k + 1)
        at = scalars["batch_at"]
        indices = tensors["batch"] if at == k + 1 else self._record(at)[0]["batch"]
        return indices.long().to(self.device)

    def recorded(self, k: int) -> Json:
        """Return the plain values that the record of step k holds."""
        return self._record(k + 1)[1]

    def ungraded(self, k: int) -> frozenset[str]:
        """Return the trained parameters that had no gradient at step k, or whose optimizer did not step."""
        scalars = self.recorded(k)
        if "coefficients" in scalars:
            return frozenset(self.trained) - frozenset(scalars["coefficients"])
        return frozenset(scalars.get("ungraded", ()))

    def graded(self, k: int) -> Tensor:
        """Return 1 for the weights that had a gradient at step k, 0 for the others, ``[P]``."""
        lost = self.ungraded(k)
        ones = [torch.full((s.numel(),), float(name not in lost)) for name, s in self.trained.items()]
        return torch.cat(ones).double().to(self.device)

    def tensors_of(self, k: int) -> dict[str, Tensor]:
        """Return the tensors that the record of step k holds."""
        return self._record(k + 1)[0]

    def passed(self, k: int) -> tuple[Tensor, tuple[tuple[int, float], ...], tuple[Forward, ...]]:
        """Return the batch of step k, the sizes and weights of its parts, and how they went forward."""
        tensors, scalars = self._record(k + 1)
        batch = self.batch(k)
        parts = tuple((size, weight) for size, weight in scalars.get("parts", [[len(batch), 1.0]]))
        modes = self._record(scalars["modes_at"])[1]["modes"]
        casts = scalars.get("autocast", [None] * len(parts))
        forwards = []
        for i in range(len(parts)):
            rng, announced = tensors.get(f"rng/{i}"), tensors.get(f"announced/{i}")
            buffers = _named(tensors, f"forward/{i}/")
            forwards.append(Forward(rng, announced, casts[i], tuple(modes[i]), buffers))
        return batch, parts, tuple(forwards)

    def _sides(self, tensors: dict[str, Tensor]) -> Iterator[Side]:
        first = 0
        for name, shape in self.trained.items():
            matrices = [tensors.get(f"{key}/{name}") for key in ("left", "right")]
            if any(matrix is not None for matrix in matrices):
                both = zip(matrices, shape, strict=True)
                left, right = (
                    torch.eye(n).double() if matrix is None else matrix.double() for matrix, n in both
                )
                where = slice(first, first + shape.numel())
                yield Side(where, shape, left.to(self.device), right.to(self.device))
            first += shape.numel()

    def weight(self, name: str, k: int) -> Tensor:
        """Return one trained parameter before step k, in its own dtype and shape."""
        tensors, scalars = self._record(k)
        if f"w/{name}" not in tensors:
            tensors, _ = self._record(scalars["at"][name])
        return tensors[f"w/{name}"]

    def _flat(self, get: Any) -> Tensor:
        if not self.trained:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        parts: list[Tensor] = [get(name).reshape(-1) for name in self.trained]
        if len({part.dtype for part in parts}) > 1:
            parts = [part.double() for part in parts]
        return torch.cat(parts).to(self.device).double()


def _reopened(folder: Path, device: str) -> Run:
    run = Run(folder)
    run.device = device
    return run


def _size(record: tuple[dict[str, Tensor], Json]) -> int:
    return sum(t.nbytes for t in record[0].values())


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
