"""What of a prediction is accounted for: its logits, the class it predicts, a margin, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import BadValueError, nearest
from ntkit.inputs import Batch, batch_size, take
from ntkit.training.functional.flat_network import Head, cast
from ntkit.training.functional.losses import BatchLoss, cast_loss, checked_loss

Target = str | int | Sequence[Any]

_FORMS = (
    '"outputs" (all of them), "predicted" (the output that is largest in the end), "margin" (that one less '
    'the second), ("margin", a, b) (output a less output b), "loss", or one or several numbers of outputs'
)


def head_of(target: Target, loss: BatchLoss, labels: Batch | None, final: Tensor) -> tuple[Head | None, Any]:
    """Return what is done to the outputs of a query, and what it takes besides them, one for each query.

    ``final [q, o]`` are the outputs in the end, in the dtype that the head is for.
    """
    q, o = final.shape
    if isinstance(target, str) and target == "outputs":
        return None, None
    if isinstance(target, str) and target == "predicted":
        return _gathered, final.argmax(1, keepdim=True)
    if isinstance(target, str) and target == "margin":
        if o < 2:
            raise BadValueError(f"{o} output has no margin; that takes two. Take target='outputs'.")
        return _margin, final.topk(2, dim=1).indices
    if isinstance(target, str) and target == "loss":
        if labels is None:
            raise BadValueError("target='loss' takes the targets of the queries: give labels=.")
        if batch_size(labels) != q:
            raise BadValueError(f"There are {q} queries but {batch_size(labels)} labels; give one for each.")
        return _losses(cast_loss(loss, final.dtype)), cast(labels, final.dtype)
    numbers = [target] if isinstance(target, int) and not isinstance(target, bool) else target
    if isinstance(numbers, (list, tuple, range)) and len(numbers) > 0:
        margin = numbers[0] == "margin" and len(numbers) == 3
        wanted = list(numbers[1:] if margin else numbers)
        if all(isinstance(i, int) and not isinstance(i, bool) and -o <= i < o for i in wanted):
            index = torch.tensor([i % o for i in wanted], device=final.device).repeat(q, 1)
            return (_margin if margin else _gathered), index
    near = nearest(target, ("outputs", "predicted", "margin", "loss"))
    raise BadValueError(f"target={target!r} is not one of the {o} outputs; expected {_FORMS}.{near}")


def _gathered(outputs: Tensor, index: Tensor) -> Tensor:
    return outputs.reshape(len(index), -1).gather(1, index)


def _margin(outputs: Tensor, index: Tensor) -> Tensor:
    both = outputs.reshape(len(index), -1).gather(1, index)
    return both[:, :1] - both[:, 1:]


def _losses(loss: BatchLoss) -> Head:
    def head(outputs: Tensor, labels: Batch) -> Tensor:
        places = [slice(i, i + 1) for i in range(len(outputs))]
        losses = [checked_loss(loss, outputs[place], take(labels, place)) for place in places]
        return torch.cat([each.reshape(1, 1) for each in losses])

    return head


def name_of(target: Target, chosen: list[int] | None, output: int, classes: Sequence[str] | None) -> str:
    """Return what one output of a query is: an output of the network, a margin of two, a loss.

    ``chosen`` are the numbers of the outputs that the query is about, None if all or none; ``classes`` the
    names of all outputs of the network, their numbers if left out.
    """
    numbers = [output] if chosen is None else chosen
    if classes is not None and max(numbers) >= len(classes):
        raise BadValueError(
            f"There are {len(classes)} classes, and a query is about output {max(numbers)}: give a name "
            f"for each "
            f"output of the network."
        )
    names = [str(i) if classes is None else str(classes[i]) for i in numbers]
    if target == "loss":
        return "loss" if chosen is None else f"loss for {names[0]}"
    if target == "margin" or (isinstance(target, list) and target[0] == "margin"):
        return f"{names[0]} less {names[1]}"
    return names[0 if len(names) == 1 else output]
