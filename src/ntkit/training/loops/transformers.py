"""Record what the Trainer of transformers trains: a callback (``pip install ntkit[transformers]``)."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
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


class TrainerLoss(nn.Module):
    """The loss that a model of transformers makes of its own logits, as `ntkit.account` takes one.

    The mean cross entropy over the labels of a batch that are not -100, those of the next tokens for a causal
    language model; of classes, or binary for several labels, or the squared error, as ``config.problem_type``
    and ``num_labels`` say, for a sequence. In the precision of the logits (the model's own always takes
    float32). What the Trainer divides by where several batches make a step (``num_items_in_batch``) is their
    weight, which `TransformersRecorder` counts.

    Parameters
    ----------
    model
        The model of transformers that was trained.

    Raises
    ------
    NtkitError
        A head whose loss is none of these (detection, question answering, speech).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        kind = _loss_kind(model)
        self.shifted = kind == "ForCausalLM"
        self.problem: str | None = None
        if kind in ("ForSequenceClassification", "ForImageClassification"):
            labels = config.num_labels
            self.problem = config.problem_type or ("regression" if labels == 1 else "classes")
        elif kind not in ("ForCausalLM", "ForMaskedLM", "ForTokenClassification"):
            raise NtkitError(
                f"{type(model).__name__} has a loss of the kind {kind!r}, which TrainerLoss does not have: "
                f"give account a function of (logits, labels) that is the model's loss."
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if self.problem == "regression":
            return F.mse_loss(logits.squeeze(), labels.to(logits.dtype).squeeze())
        if self.problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if self.shifted:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long())


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
        What the loss of a batch, a mean, is multiplied by. If left out: the batch's share of
        ``num_items_in_batch``, labels that are not -100, where the Trainer tells its model that number; else
        1 / the number of batches that make a step. Some models are told that number and ignore it
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
        self._hook = kwargs["model"].register_forward_pre_hook(self._called, with_kwargs=True)
        self._pending: tuple[Tensor, int] | None = None
        self._shifted = _loss_kind(kwargs["model"]) == "ForCausalLM"
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
            self._hook.remove()
            self._watch = None
            self.run.__exit__(None, None, None)

    def _batch(self, args: TrainingArguments) -> None:
        """Note the next batch; what it weighs is known when the model is called."""
        if self._watch is None:
            return
        end = min(self._first + args.gradient_accumulation_steps, len(self._loader))
        self._pending = self._watch.batch(self._next), end - self._first
        self._next += 1

    def _called(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Say which samples the batch is made of that the Trainer gives to its model."""
        if self.run is None or self._pending is None or not model.training:
            return
        (index, count), self._pending = self._pending, None
        labels, items = kwargs.get("labels"), kwargs.get("num_items_in_batch")
        if self.weight is not None:
            weight = self.weight
        elif items is not None and isinstance(labels, Tensor):  # the model divides a sum by that number
            counted = labels[..., 1:] if self._shifted and labels.ndim > 1 else labels
            own = len(labels) if labels.is_floating_point() else int(counted.ne(-100).sum())
            weight = own / float(torch.as_tensor(items))
        else:
            weight = 1 / count
        self.run.batch(index, weight=weight)


def _loss_kind(model: nn.Module) -> str:
    """Return what transformers calls the loss of a model: ``"ForCausalLM"``, say."""
    kind = getattr(model, "loss_type", None)
    return str(kind or getattr(getattr(model, "loss_function", None), "__name__", "").removesuffix("Loss"))


def collated(dataset: Any, collate: Any, label: str = "labels") -> tuple[dict[str, Tensor], Tensor]:
    """Return a whole dataset as `ntkit.account` wants it: named inputs and labels, collated as one batch."""
    batch = dict(collate([dataset[i] for i in range(len(dataset))]))
    inputs = {name: torch.as_tensor(v) for name, v in batch.items() if name != label}
    return inputs, torch.as_tensor(batch[label])
