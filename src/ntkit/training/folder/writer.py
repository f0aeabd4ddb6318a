"""One run folder as it is written: its start, a record for each step, its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ntkit.errors import RunFolderError
from ntkit.files import Json, as_bytes
from ntkit.training.folder.log import LOG, LogWriter
from ntkit.training.folder.manifest import MANIFEST, write_manifest
from ntkit.training.folder.optimizer_state import checksum
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Part
from ntkit.training.optimizers import Coefficients
from ntkit.version import __version__


class RunWriter:
    """Writes the log and the manifest of a run folder; knows what the last record held.

    ``about`` is what the manifest says besides; ``trained`` the parameters that optimizers hold. Behind an
    ``earlier`` part of the run it goes on from the step after which the weights were these.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        trained: Mapping[str, Tensor],
        about: Mapping[str, object],
        more: Mapping[str, Tensor],
        scalars: Mapping[str, object],
        earlier: Run | None = None,
    ) -> None:
        self.folder, self.steps = folder, 0
        self._made = not folder.exists()
        self._module, self._trained, self._about = module, trained, about
        self._versions: dict[str, int] = {}  # of the parameters, where their values are not kept
        self._last = {name: as_bytes(p).clone() for name, p in trained.items()}
        if earlier is not None:
            self._go_on(earlier)
            return
        with new_folder(folder) as log:
            self._log = log
            start = {f"w/{name}": p for name, p in module.named_parameters()}
            start |= {f"buffer/{name}": b for name, b in module.named_buffers()}
            log.append({name: t.detach() for name, t in {**start, **more}.items()}, scalars)
            write_manifest(folder, self._manifest("recording"))
        self._at = dict.fromkeys(trained, 0)
        self._buffers = {name: as_bytes(b).clone() for name, b in module.named_buffers()}
        self._buffers_at: dict[str, int] = {}
        self._batch: Tensor | None = None
        self._modes: list[list[str]] | None = None
        self._batch_at, self._modes_at = 0, 0

    def _go_on(self, run: Run) -> None:
        """Take over what the writer of the earlier steps knew; drop steps behind the present weights."""
        started = {"status", "steps", "log_bytes", "ntkit", "torch"}
        manifest = self._manifest("recording")
        for key in sorted(manifest.keys() - started):
            if json.loads(json.dumps(manifest[key])) != run.manifest[key]:
                raise RunFolderError(
                    f"The run in {self.folder} was recorded with another {key!r}: {run.manifest[key]!r}, now "
                    f"{manifest[key]!r}. Resume it as it was begun, or record to another folder."
                )
        self.steps = k = step_of(run, self._trained)
        tensors, scalars = run.log.read(k)
        at = scalars.get("at", {})
        self._at = {name: k if f"w/{name}" in tensors else at.get(name, 0) for name in self._trained}
        self._buffers_at = dict(scalars.get("buffers_at", {}))
        before = {name: b for name, b in run.start.items() if name.startswith("buffer/")}
        before |= {f"buffer/{name}": b for name, b in (run.buffers_at(k) if k else {}).items()}
        self._buffers = {name.removeprefix("buffer/"): as_bytes(b).clone() for name, b in before.items()}
        self._batch, self._modes, self._batch_at, self._modes_at = None, None, 0, 0
        self._log = LogWriter(self.folder / LOG, k + 1, run.log.end(k))
        write_manifest(self.folder, manifest)

    @property
    def bytes(self) -> int:
        """What the log holds until now."""
        return self._log.length

    def weight(self, name: str) -> Tensor:
        """Return a trained parameter as it was after the last step."""
        p = self._trained[name]
        return self._last[name].view(p.dtype).view(p.shape)

    def keep_weights(self) -> None:
        """Note the trained parameters as they are now, for `weight`."""
        self._last = {name: as_bytes(p).clone() for name, p in self._trained.items()}

    def is_as_it_was(self, name: str) -> bool:
        """Whether a trained parameter is what it was after the last step."""
        p = self._trained[name]
        if name in self._versions:
            return p._version == self._versions[name]
        return torch.equal(as_bytes(p), self._last[name])

    def changed_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers that differ from those after the last step."""
        buffers = self._module.named_buffers()
        changed = {name: b for name, b in buffers if not torch.equal(as_bytes(b), self._buffers[name])}
        return {name: b.detach().cpu().clone().contiguous() for name, b in changed.items()}

    def step(self, made: Mapping[str, Coefficients], parts: list[Part], more: Json) -> None:
        """Write a step, just made."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, dict[str, float]] = {}
        for name, coefficients in made.items():
            scalars[name] = {}
            for key, value in vars(coefficients).items():
                if isinstance(value, Tensor):
                    wide = torch.promote_types(self._trained[name].dtype, torch.float32)
                    tensors[f"{key}/{name}"] = value.detach().to("cpu", wide).contiguous()
                elif value != getattr(Coefficients, key):
                    scalars[name][key] = float(value)
        more = more | {"coefficients": scalars} | self.passed(tensors, parts)
        at = {name: self._at[name] for name in self._trained if self.is_as_it_was(name)}
        tensors |= {f"w/{name}": p.detach() for name, p in self._trained.items() if name not in at}
        self._log.append(tensors, {"at": at, **more})
        self.steps += 1
        for name, p in self._trained.items():
            if name not in at:
                self._last[name], self._at[name] = as_bytes(p).clone(), self.steps

    def bare_step(self, tensors: dict[str, Tensor], parts: list[Part], more: Json) -> None:
        """Write a step that will be replayed: nothing of it but what is given, and how it went."""
        more = more | self.passed(tensors, parts)
        self._log.append(tensors, more)
        self.steps += 1
        self._versions = {name: p._version for name, p in self._trained.items()}

    def passed(self, tensors: dict[str, Tensor], parts: list[Part]) -> Json:
        """Return which batches were used and how they went forward; add the tensors among it."""
        number = self.steps + 1
        batch = torch.cat([part.batch for part in parts])
        if self._batch is None or not torch.equal(batch, self._batch):
            tensors["batch"] = self._batch = batch
            self._batch_at = number
        more: Json = {"batch_at": self._batch_at}
        sizes = [[len(part.batch), part.weight] for part in parts]
        if len(sizes) > 1 or sizes[0][1] != 1:
            more["parts"] = sizes
        forwards = [part.forward for part in parts]
        for i, forward in enumerate(forwards):
            for key, state in (("rng", forward.rng), ("announced", forward.announced)):
                tensors |= {} if state is None else {f"{key}/{i}": state}
            tensors |= {f"forward/{i}/{name}": buffer for name, buffer in forward.buffers.items()}
        if any(forward.autocast is not None for forward in forwards):
            more["autocast"] = [forward.autocast for forward in forwards]
        modes = [list(forward.modes) for forward in forwards]
        if modes != self._modes:
            more["modes"] = self._modes = modes
            self._modes_at = number
        for name, buffer in self.changed_buffers().items():
            tensors[f"buffer/{name}"], self._buffers[name] = buffer, as_bytes(buffer)
            self._buffers_at[name] = number
        if self._buffers_at:
            more["buffers_at"] = self._buffers_at
        return more | {"modes_at": self._modes_at}

    def end(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, object]) -> None:
        """Write what is after the last step: buffers that changed since, and what is given."""
        buffers = {f"buffer/{name}": b for name, b in self.changed_buffers().items()}
        self._log.append({**buffers, **tensors}, {**scalars, "end": True})

    def close(self, status: str) -> None:
        """Close the log and seal the manifest."""
        self._log.close()
        write_manifest(self.folder, self._manifest(status))

    def drop(self) -> None:
        """Close the log, and leave the manifest as that of a run that was cut off."""
        self._log.close()

    def discard(self) -> None:
        """Close the log, and leave nothing behind."""
        self._log.close()
        _remove(self.folder, self._made)

    def _manifest(self, status: str) -> Json:
        done, parameters = status != "recording", {}
        for name, p in self._module.named_parameters():
            dtype = str(p.dtype).removeprefix("torch.")
            parameters[name] = {"shape": list(p.shape), "dtype": dtype, "trained": name in self._trained}
        return {
            "ntkit": __version__,
            "torch": torch.__version__,
            "status": status,
            "steps": self.steps if done else None,
            "log_bytes": self._log.length if done else None,
            "parameters": parameters,
            "buffers": [name for name, _ in self._module.named_buffers()],
            **self._about,
        }


@contextmanager
def new_folder(folder: Path) -> Iterator[LogWriter]:
    """Yield the log of a new run, to write its beginning; nothing is left behind if that fails."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty, and a run is never overwritten unasked. Choose another folder, or "
                f"say what is meant: overwrite=True, or resume=True to continue a run that stopped."
            )
        log = LogWriter(folder / LOG)
    except OSError as error:
        _remove(folder, is_new)
        raise RunFolderError(
            f"{folder} cannot be written ({error.strerror}). Choose a folder that can be written."
        ) from error
    try:
        yield log
    except (OSError, RunFolderError) as error:
        log.close()
        _remove(folder, is_new)
        raise RunFolderError(f"{folder} cannot be written ({error}). Choose another.") from error


def step_of(run: Run, trained: Mapping[str, Tensor]) -> int:
    """Return the last step of a run after which its weights were these, bit for bit."""
    digest = checksum(trained.values())
    for k in range(run.steps, -1, -1):
        scalars = run.log.read(k)[1]
        if "crc" in scalars:
            if scalars["crc"] == digest:
                return k
        elif all(torch.equal(as_bytes(run.weight(name, k)), as_bytes(p)) for name, p in trained.items()):
            return k
    raise RunFolderError(
        f"The weights of the model are those of none of the {run.steps} steps in {run.folder}. Load those "
        f"that the training stopped with, and the state of its optimizer, before it is resumed."
    )


def clear(folder: Path) -> None:
    """Delete a run; a folder that holds anything else is refused."""
    others = (
        sorted(p.name for p in folder.iterdir() if p.name not in (LOG, MANIFEST)) if folder.is_dir() else []
    )
    if others:
        raise RunFolderError(
            f"{folder} holds {others[0]!r}, which is no part of a run: it is not overwritten. Choose another."
        )
    _remove(folder, made=False)


def _remove(folder: Path, made: bool) -> None:
    for name in (LOG, MANIFEST):
        (folder / name).unlink(missing_ok=True) if folder.is_dir() else None
    if made and folder.is_dir():
        folder.rmdir()
