"""Record what Lightning's Trainer trains: a callback (``pip install ntkit[lightning]``)."""

from __future__ import annotations

import os

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from ntkit.errors import BadValueError, NtkitError
from ntkit.inputs import Batch, Inputs
from ntkit.training.loops.loader import SamplerWatch
from ntkit.training.recording.record import record
from ntkit.training.recording.recording import Recording


class LightningRecorder(Callback):
    """Record the training of a LightningModule into a folder; hand it to ``Trainer(callbacks=[...])``.

    Which samples a batch is made of is read off the sampler of the training loader; accumulation, clipping,
    schedules and GradScalers are those of the Trainer.

    Parameters
    ----------
    folder
        A folder that does not exist yet, or is empty.
    model
        The attribute of the module that is the network to account for (``"net"``); the module itself, whose
        ``forward`` must then give the outputs, if left out.
    train
        The training data ``(x, y)`` in the order of the dataset, if they are to be hashed and checked.
    average
        As in `ntkit.record`.

    Raises
    ------
    NtkitError
        Several processes, an IterableDataset, a loader with a batch sampler of its own, and what
        `ntkit.record` refuses.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: str | None = None,
        *,
        train: tuple[Inputs, Inputs] | None = None,
        average: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.model, self.train, self.average = folder, model, train, average
        self.run: Recording | None = None
        self._watch: SamplerWatch | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the sampler, if the loader is there, before its workers read ahead."""
        loader = getattr(getattr(trainer.fit_loop, "_data_source", None), "instance", None)
        if isinstance(loader, DataLoader):
            self._watch = SamplerWatch(loader)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to record: the optimizers and the loader are there."""
        if trainer.world_size != 1:
            raise NtkitError(f"The training runs on {trainer.world_size} processes; ntkit records one.")
        network = pl_module if self.model is None else getattr(pl_module, self.model, None)
        if not isinstance(network, nn.Module):
            raise BadValueError(
                f"{type(pl_module).__name__} has no network {self.model!r}; `model` names the attribute "
                f"that is one."
            )
        optimizers = trainer.optimizers
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if self._watch is None or not self._watch.watches(trainer.train_dataloader):
            self._watch = SamplerWatch(trainer.train_dataloader)
        optimizer = optimizers[0] if len(optimizers) == 1 else optimizers
        watched = {"train": self.train, "scaler": scaler, "average": self.average}
        self.run = record(self.folder, network, optimizer, **watched).__enter__()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Say which samples the next backward pass uses."""
        if self.run is not None and self._watch is not None:
            accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self.run.batch(self._watch.batch(batch_idx), weight=1 / accumulated)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the recording."""
        self._close(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was recorded until then."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        run, watch = self.run, self._watch
        self._watch = None
        if watch is not None:
            watch.close()
            if run is not None:
                run.__exit__(None if error is None else type(error), error, None)
