"""Record what the Trainer of transformers trains: a callback (``pip install ntkit[transformers]``)."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from ntkit.errors import NtkitError
from ntkit.inputs import Inputs
from ntkit.training.loops.loader import SamplerWatch
from ntkit.training.recording.record import record
from ntkit.training.recording.recording import Recording


class Logits(nn.Module):
    """A model of transformers as a network whose output is one tensor: its logits.

    Called with the model's named inputs (without labels); the parameters are the model's own, under
    ``model.``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the logits of a batch."""
        answer = self.model(**inputs)
        return answer["logits"] if isinstance(answer, dict) else answer.logits


class TransformersRecorder(TrainerCallback):
    """Record the training of ``transformers.Trainer`` into a folder; hand it to ``Trainer(callbacks=[...])``.

    Which samples a batch is made of is read off the sampler of the training loader; accumulation, clipping
    and schedules are those of the Trainer.

    Parameters
    ----------
    folder
        A folder that does not exist yet, or is empty.
    model
        The network to account for, over the parameters that the Trainer trains; ``Logits(model)`` of the
        Trainer's model if left out. Give the same one to `ntkit.account`.
    train
        The training data ``(x, y)`` in the order of the dataset, if they are to be hashed and checked;
        x may be a dict of named inputs.
    average
        As in `ntkit.record`.
    weight
        What the loss of a batch is multiplied by where several make a step. If left out: 1 / their number, or
        the share of samples for a model whose ``forward`` takes further keywords, which the Trainer expects
        to divide by ``num_items_in_batch``. Some models are told that number and ignore it
        (``BertForSequenceClassification``): 1.0. A wrong weight is refused by `ntkit.account`.

    Raises
    ------
    NtkitError
        Several processes, an IterableDataset, and what `ntkit.record` refuses.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module | None = None,
        *,
        train: tuple[Inputs, Inputs] | None = None,
        average: nn.Module | None = None,
        weight: float | None = None,
    ) -> None:
        self.folder, self.model, self.train, self.average = folder, model, train, average
        self.weight = weight
        self.run: Recording | None = None
        self._watch: SamplerWatch | None = None

    def on_train_begin(self, args: TrainingArguments, *others: object, **kwargs: Any) -> None:
        """Begin to record: the optimizer and the loader are there."""
        if args.world_size != 1 or args.n_gpu > 1:
            raise NtkitError(
                f"The training runs on {max(args.world_size, args.n_gpu)} devices; ntkit records one."
            )
        self._loader = kwargs["train_dataloader"]
        self._by_items = _counts_items(kwargs["model"])
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        network = self.model if self.model is not None else Logits(kwargs["model"])
        self._watch = SamplerWatch(self._loader)
        self.run = record(self.folder, network, optimizer, train=self.train, average=self.average).__enter__()

    def on_epoch_begin(self, *args: object, **kwargs: object) -> None:
        """Count the batches of this epoch from its beginning."""
        self._next = 0

    def on_step_begin(self, args: TrainingArguments, *others: object, **kwargs: object) -> None:
        """Say which samples the first batch of a step uses."""
        self._first = self._next
        self._batch(args)

    def on_substep_end(self, args: TrainingArguments, *others: object, **kwargs: object) -> None:
        """Say which samples the next batch of the step uses."""
        self._batch(args)

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        """End the recording."""
        if self._watch is not None and self.run is not None:
            self._watch.close()
            self._watch = None
            self.run.__exit__(None, None, None)

    def _batch(self, args: TrainingArguments) -> None:
        if self.run is None or self._watch is None:
            return
        end = min(self._first + args.gradient_accumulation_steps, len(self._loader))
        index = self._watch.batch(self._next)
        if self.weight is not None:
            weight = self.weight
        elif self._by_items:  # the Trainer divides the summed loss by the number of labels of the whole step
            together = sum(len(self._watch.batch(i)) for i in range(self._first, end))
            weight = len(index) / together
        else:
            weight = 1 / (end - self._first)
        self.run.batch(index, weight=weight)
        self._next += 1


def _counts_items(model: nn.Module) -> bool:
    """Whether the Trainer tells this model how many labels a step has (as it decides itself)."""
    told = getattr(model, "accepts_loss_kwargs", None)
    if told is not None:
        return bool(told)
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())


def collated(dataset: Any, collate: Any, label: str = "labels") -> tuple[dict[str, Tensor], Tensor]:
    """Return a whole dataset as `ntkit.account` wants it: named inputs and labels, collated as one batch."""
    batch = dict(collate([dataset[i] for i in range(len(dataset))]))
    inputs = {name: torch.as_tensor(v) for name, v in batch.items() if name != label}
    return inputs, torch.as_tensor(batch[label])
