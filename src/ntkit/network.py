"""A user's network as a pure function of named weights: what every room calls, none the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils import _pytree as pytree

from ntkit.errors import BadTypeError, BadValueError, NotPerSampleError

Weights = Mapping[str, Tensor]
# A batch as it is given: its first axis is the sample.
Inputs: TypeAlias = Tensor | np.ndarray | Sequence["Inputs"] | Mapping[str, "Inputs"] | float | int
T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)
No: TypeAlias = Literal[False]  # a flag that is left out, in overloads
Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Values: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.generic]]  # of any dtype
Pair: TypeAlias = tuple[Floats, Floats]  # a mean and its spread
Batch: TypeAlias = Tensor | tuple["Batch", ...] | dict[str, "Batch"]  # the same, checked


@dataclass(frozen=True)
class Network:
    """A network as ``call(weights, x)``: weights by name, the first axis of every input the sample.

    ``x`` is one tensor, a tuple (positional inputs) or a dict (named inputs).
    """

    call: Callable[..., Any]  # call(weights, x, buffers=None)
    fixed: dict[str, Tensor] | None = None
    module: nn.Module | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights as they are now, detached."""
        if self.fixed is not None or self.module is None:
            return self.fixed or {}
        return {name: w.detach() for name, w in self.module.named_parameters()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the module as they are now."""
        return {} if self.module is None else dict(self.module.named_buffers())

    def outputs(self, weights: Weights, x: Batch, buffers: Weights | None = None) -> Tensor:
        """Return the outputs of a batch as ``[n, o]``; further axes are flattened into o."""
        y = self.call(weights, x, buffers)
        if not isinstance(y, Tensor):
            raise BadTypeError(
                f"The network returned {type(y).__name__}, ntkit needs one tensor whose first axis is "
                f"the sample. Wrap it in a module that returns the tensor that you mean."
            )
        n = batch_size(x)
        if y.ndim == 0 and n == 1:
            return y.reshape(1, 1)
        if y.ndim == 0 or y.shape[0] != n:
            if n == 1:  # a network that squeezes its batch of one away
                return y.reshape(1, -1)
            raise BadValueError(
                f"The network returned shape {tuple(y.shape)} for {n} samples; the first axis must be "
                f"the sample. Return one output row per sample."
            )
        return y.reshape(n, -1)

    def sample(self, weights: Weights, x: Batch) -> Tensor:
        """Return the outputs ``[o]`` of one sample whose inputs carry no sample axis (for vmap)."""
        return self.outputs(weights, pytree.tree_map(lambda t: t.unsqueeze(0), x)).reshape(-1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._first.device

    def signature(self) -> tuple:
        """Return what a trace of the network depends on besides values: its modules, flags, settings, ties.

        A module that was replaced, or whose printed settings changed, has another signature; an attribute
        of the user's own that no ``repr`` shows is not seen.
        """
        if self.module is None:
            return ()
        modules = tuple((id(m), m.training) for m in self.module.modules())
        ties = tuple(id(p) for _, p in self.module.named_parameters(remove_duplicate=False))
        return modules, ties, repr(self.module)

    @property
    def _first(self) -> Tensor:
        if self.fixed is not None or self.module is None:
            return next(iter((self.fixed or {}).values()))
        return next(self.module.parameters())


def network(model: Any, weights: Weights | None = None) -> Network:
    """Return the pure function behind a module, or behind ``f(weights, x)`` and its weights.

    A module keeps its training flags and is read as it is at each call (train it, and its kernel
    follows); its buffers are cloned, so that no call changes them. Tied weights appear once, under
    their first name.
    """
    if isinstance(model, nn.Module):
        module = getattr(model, "_orig_mod", model)
        known = dict(module.named_parameters())
        if weights is not None:
            if set(weights) != set(known):
                raise BadValueError(
                    f"weights must name the parameters of the module; unknown: "
                    f"{sorted(set(weights) - set(known))}, missing: {sorted(set(known) - set(weights))}."
                )
        check_weights(known if weights is None else weights)

        def call(weights: Weights, x: Batch, buffers: Weights | None = None) -> Any:
            buffers = module_buffers(module) if buffers is None else buffers
            args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            return call_with(module, {**buffers, **weights}, args, kwargs)

        fixed = None if weights is None else {k: w.detach() for k, w in weights.items()}
        return Network(call, fixed, module)
    if not callable(model):
        raise BadTypeError(
            f"Expected a torch.nn.Module or a function f(weights, x), got {type(model).__name__}."
        )
    if weights is None:
        raise BadTypeError(
            "A function as a network needs its weights: pass a dict of tensors as `weights`, with "
            "f(weights, x) -> outputs."
        )
    check_weights(weights)
    return Network(lambda w, x, _=None: model(w, x), {k: w.detach() for k, w in weights.items()})


def call_with(module: nn.Module, values: Weights, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Call a module with other weights and buffers, under their first names; it keeps its own.

    Each tensor of each module is swapped once. torch, which ties the names of one tensor, would swap a module
    that has two names twice, and leave the other tensors in it.
    """
    first: dict[int, str] = {}
    swapped: dict[str, Tensor] = {}
    for path, m in module.named_modules():
        for name, tensor in (*m._parameters.items(), *m._buffers.items()):
            if tensor is not None:
                name = f"{path}.{name}" if path else name
                known = first.setdefault(id(tensor), name)
                if known in values:
                    swapped[name] = values[known]
    return functional_call(module, swapped, args, dict(kwargs), tie_weights=False)


def copy_of(module: Module) -> Module:
    """Return a copy of a module (a compiled one's original); what it stored of its last call is cut off.

    Tensors with a history, such as features stored on ``self``, have no copy of their own.
    """
    module = getattr(module, "_orig_mod", module)
    memo: dict[int, Any] = {}
    for m in module.modules():
        for value in pytree.tree_leaves({k: v for k, v in vars(m).items() if k != "_modules"}):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return deepcopy(module, memo)


def module_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return clones of a module's buffers, for calls that must not change them."""
    return {name: b.clone() for name, b in module.named_buffers()}


def check_weights(weights: Weights) -> None:
    """Refuse weights that are not real floating-point tensors of one dtype and one device."""
    if not weights:
        raise BadValueError("The network has no parameters, so it has no tangent kernel.")
    for name, w in weights.items():
        if not isinstance(w, Tensor) or is_lazy(w):
            raise BadTypeError(
                f"Weight {name!r} is a {type(w).__name__}, expected an initialized tensor; run a lazy "
                f"module once before giving it to ntkit."
            )
        if not w.is_floating_point():
            raise BadValueError(
                f"Weight {name!r} has dtype {w.dtype}; tangent kernels need real floating-point "
                f"weights. Turn it into a buffer, or leave it out of `weights`."
            )
    for what in ("dtype", "device"):
        seen = {str(getattr(w, what)) for w in weights.values()}
        if len(seen) > 1:
            raise BadValueError(
                f"The weights have mixed {what}s {sorted(seen)}; bring the network to one with model.to(...)."
            )


def as_inputs(x: Inputs, net: Network, what: str = "x") -> Batch:
    """Return inputs as tensors on the network's device, checked: a batch, finite, of its dtype.

    Arrays and lists are converted (floating ones to the network's dtype); tensors of another
    floating dtype are refused, since a silent cast would hide a mistake.
    """

    def leaf(value: object) -> Tensor:
        if isinstance(value, Tensor):
            t = value.detach()
            if t.is_floating_point() and t.dtype != net.dtype:
                raise BadValueError(
                    f"{what} has dtype {t.dtype} but the network {net.dtype}; convert one of them, "
                    f"for instance {what}.to({net.dtype})."
                )
            if t.device != net.device:
                raise BadValueError(f"{what} is on {t.device}, the network on {net.device}; move one.")
        else:
            try:
                t = torch.as_tensor(np.array(value) if not np.isscalar(value) else value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise BadTypeError(
                    f"{what} is a {type(value).__name__} that torch cannot read as a tensor: {error}"
                ) from error
            t = t.to(net.device, net.dtype if t.is_floating_point() else None)
        if t.ndim == 0:
            raise BadValueError(f"{what} is a single number; its first axis must be the sample.")
        if t.shape[0] == 0:
            raise BadValueError(f"{what} is an empty batch of shape {tuple(t.shape)}.")
        if t.is_floating_point() and not t.sum().isfinite() and not t.isfinite().all():
            rows = (~torch.isfinite(t)).reshape(t.shape[0], -1).any(1).nonzero().flatten().tolist()
            raise BadValueError(
                f"{what} holds NaN or infinite values in sample(s) {rows[:10]}; clean or drop them."
            )
        return t

    if isinstance(x, dict):
        batch: Batch = {key: leaf(value) for key, value in x.items()}
    elif isinstance(x, tuple):
        batch = tuple(leaf(value) for value in x)
    else:
        batch = leaf(x)
    sizes = {t.shape[0] for t in pytree.tree_leaves(batch)}
    if len(sizes) != 1:
        raise BadValueError(f"The inputs in {what} disagree in their number of samples: {sorted(sizes)}.")
    return batch


def batch_size(x: Inputs) -> int:
    """Return the number of samples of a batch."""
    return pytree.tree_leaves(x)[0].shape[0]


def take(x: T, index: slice | int | list[int] | Tensor) -> T:
    """Return some samples of a batch, by a slice or a tensor of indices."""
    return pytree.tree_map(lambda t: t[index], x)


def refuse_stateful(module: nn.Module | None) -> None:
    """Refuse modules that have no function of a single sample as they are set now, by name."""
    for name, m in module.named_modules() if module is not None else ():
        where = f"{name or 'the model'} ({type(m).__name__})"
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.training or m.running_mean is None:
                why = "is in training mode" if m.training else "keeps no running statistics"
                raise NotPerSampleError(
                    f"{where} {why}: its output for one sample depends on the others of the batch. "
                    f"Call model.eval(), with track_running_stats=True."
                )
        elif m.training and _iterates(m):
            raise NotPerSampleError(
                f"{where} is a spectral norm in training mode: its power iteration changes the weights at "
                f"each call. Call model.eval()."
            )
        elif isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0:
            raise NotPerSampleError(
                f"{where} drops at random (p={m.p}) in training mode: the network is not a function of "
                f"its input. Call model.eval(), or set p=0."
            )


def _iterates(m: nn.Module) -> bool:
    """Return whether a module holds a spectral norm, as a parametrization or as torch's older hook."""
    hooks = m._forward_pre_hooks.values()
    return isinstance(m, parametrizations._SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)
