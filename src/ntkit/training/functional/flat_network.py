"""The recorded network as a function of one flat vector of its trained weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.utils import _pytree as pytree

from ntkit.errors import NtkitError
from ntkit.inputs import Batch, T, take
from ntkit.network import Network, copy_of, network
from ntkit.training.folder.run import Run
from ntkit.training.functional.losses import BatchLoss, checked_loss
from ntkit.training.functional.structure import Structure
from ntkit.training.functional.transforms import Transforms, backward

Head = Callable[[Tensor, Any], Tensor]

VMAP_LIMIT = 2**22  # numbers in the result up to which calls for many weights are made as one


class FlatNetwork(Transforms):
    """A copy of the user's module in a dtype, with a run's frozen weights and buffers.

    Weights ``w`` are flat, ``[P]``, in the order of ``run.trained``; the user's module stays as it is.
    ``head(outputs, extra)`` turns raw outputs to ``[n, o]``; inputs are then pairs ``(x, extra)``.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        dtype: torch.dtype,
        head: Head | None = None,
        select: str | int | None = None,
    ) -> None:
        module = copy_of(model).to(dtype)
        module.requires_grad_(False)
        for m in module.modules():  # to compute activations anew saves memory, and changes no number
            for flag in ("gradient_checkpointing", "grad_checkpointing"):
                if getattr(m, flag, None) is True:
                    setattr(m, flag, False)
        for name, buffer in module.named_buffers():
            buffer.copy_(run.start[f"buffer/{name}"])
        self.module = module
        self.dtype = dtype
        self.fixed = {
            name: run.start[f"w/{name}"].to(run.device, dtype)
            for name in run.shapes
            if name not in run.trained
        }
        self.shapes = run.trained
        self.sizes = [shape.numel() for shape in run.trained.values()]
        self.total = sum(self.sizes)
        # fused recurrent operations run under no vmap; a graph has them written out
        self.batchable = not any(isinstance(m, nn.RNNBase) for m in module.modules())
        # convolutions with weights of their own are slow
        self.convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
        self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._structures: dict[Hashable, Structure | None] = {}
        self._modes: tuple[str, ...] | None = None  # in which modules are in training mode, once set
        self.net = network(module, select=select)
        if head is not None:
            inner = self.net
            self.net = Network(
                lambda w, x, buffers=None: head(inner.selected(inner.call(w, x[0], buffers)), x[1]),
                module=module,
            )

    def take_buffers(self, given: Mapping[str, Tensor]) -> None:
        """Use other buffers from now on, those of a later step."""
        for name, value in given.items():
            self.buffers[name].copy_(value)

    def set_modes(self, training: Collection[str]) -> None:
        """Put the submodules of these names in training mode, all others in evaluation mode."""
        if self._modes != (modes := tuple(training)):
            self._modes = modes
            for name, m in self.module.named_modules():
                m.training = name in modes

    def structure(self, x: Batch) -> Structure | None:
        """Return the structure of the network, in its modes and at inputs of a shape, if it has one."""
        modes = tuple(m.training for m in self.module.modules())
        key = modes, tuple((t.shape[1:], t.dtype) for t in pytree.tree_leaves(x))
        if key not in self._structures:
            self._structures[key] = self._structure(x)
        return self._structures[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_structures": {}}  # other processes find them again

    def _structure(self, x: Batch) -> Structure | None:
        found = Structure.of(self.net, tuple(self.shapes), x)
        if found is None and self.transforms:
            weights = self.net.weights
            w = torch.cat([weights[name].reshape(-1) for name in self.shapes])
            self.try_transforms(lambda w, x: self.sample(self.unflatten(w), x), w, take(x, slice(0, 2)))
        return found

    def unflatten(self, w: Tensor | list[Tensor]) -> dict[str, Tensor]:
        """Return all weights by name; those that are not flat are a list in the order of ``shapes``."""
        if isinstance(w, list):
            return {**self.fixed, **dict(zip(self.shapes, w, strict=True))}
        parts = w.to(self.dtype).split(self.sizes)
        shaped = {name: p.view(s) for (name, s), p in zip(self.shapes.items(), parts, strict=True)}
        return {**self.fixed, **shaped}

    def raw(self, w: Tensor | list[Tensor], x: Batch) -> Tensor:
        """Return the outputs of a batch in the module's own shape, as its loss takes them."""
        return self.net.selected(self.net.call(self.unflatten(w), x, self._own_buffers()))

    def outputs(self, w: Tensor, x: Batch) -> Tensor:
        """Return the outputs of a batch, ``[n, o]``."""
        return self.net.outputs(self.unflatten(w), x, self._own_buffers())

    def sample(self, weights: Mapping[str, Tensor], x: Batch) -> Tensor:
        """Return the outputs ``[o]`` of one sample whose inputs carry no sample axis (for vmap)."""
        x = pytree.tree_map(lambda t: t.unsqueeze(0), x)
        return self.net.outputs(weights, x, self._own_buffers()).reshape(-1)

    def _own_buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.buffers.items()}

    def gradient(self, w: Tensor, x: Batch, y: Batch, loss: BatchLoss) -> Tensor:
        """Return the gradient of the batch loss, ``[P]``, as an ordinary backward pass makes it."""
        with torch.enable_grad():
            leaf = w.detach().to(self.dtype).requires_grad_()
            value = checked_loss(loss, self.raw(leaf, x), y)
            if not value.requires_grad:
                raise NtkitError("The loss does not depend on the weights: was it given detached outputs?")
            return torch.autograd.grad(value, leaf)[0]

    def losses(self, w: Tensor, x: Batch, y: Batch, losses: Sequence[BatchLoss]) -> Tensor:
        """Return the losses ``[T]`` of batches of several steps: ``[T, P], [T, n, ...]``."""
        return _each(losses, self._over(self.raw, w, x, size=self.total), y)

    def cotangents(self, w: Tensor, x: Batch, y: Batch, losses: Sequence[BatchLoss]) -> Tensor:
        """Return c_n = d loss / d y_n for batches of several steps: ``[T, P], [T, n, ...] -> [T, n, o]``."""
        raw = self._over(self.raw, w, x, size=self.total)
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            c = torch.autograd.grad(_each(losses, leaf, y).sum(), leaf)[0]
        return c.reshape(len(w), pytree.tree_leaves(x)[0].shape[1], -1)

    def sample_gradients(self, w: Tensor, x: Batch, c: Tensor) -> Tensor:
        """Return J(x_n; w_k)^T c_n for batches of several steps: ``[T, P], [T, n, ...] -> [T, n, P]``."""

        def one(w: Tensor, x: Batch, c: Tensor) -> Tensor:
            def output(w: Tensor) -> Tensor:
                return self.sample(self.unflatten(w), x)

            return self.either(lambda: vjp(output, w)[1](c)[0], lambda: backward(output, w, c[None])[0])

        return self._over(self.mapped(one, in_dims=(None, 0, 0)), w, x, c, size=c.shape[1] * self.total)

    def slopes(self, w: Tensor, direction: Tensor, x: Batch) -> Tensor:
        """Return J(x; w) . direction for several weights: ``[S, P], [S, P] -> [S, n, o]``."""

        def one(w: Tensor, direction: Tensor) -> Tensor:
            return self.slope(lambda s: self.outputs(w + s * direction, x), w.new_zeros(()))

        return self._over(one, w, direction, size=self.total)

    def many_outputs(self, w: Tensor, x: Batch) -> Tensor:
        """Return the outputs of a batch at several weights: ``[S, P] -> [S, n, o]``."""
        return self._over(lambda w: self.outputs(w, x), w, size=self.total)

    def _over(self, function: Any, *args: Any, size: int) -> Tensor:
        """Apply a function along the first axis of all arguments, in one call where that is small."""
        count = args[0].shape[0]
        if count > 1 and count * size <= VMAP_LIMIT and not self.convolves:
            return self.mapped(function)(*args)
        return torch.stack([function(*take(args, i)) for i in range(count)])


def _each(losses: Sequence[BatchLoss], outputs: Tensor, targets: Batch) -> Tensor:
    pairs = (pytree.tree_map(lambda v, t=t: v[t], (outputs, targets)) for t in range(len(losses)))
    return torch.stack([checked_loss(loss, *pair) for loss, pair in zip(losses, pairs, strict=True)])


def cast(data: T, dtype: torch.dtype) -> T:
    """Return data with its floating tensors in a dtype."""
    if isinstance(data, Tensor):
        return data.to(dtype) if data.is_floating_point() else data  # pyright: ignore[reportReturnType]
    return pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, data)
