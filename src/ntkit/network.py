"""A user's network as a pure function of named weights: what every room calls, none the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import _pytree as pytree

from ntkit.errors import BadTypeError, BadValueError, NtkitError, nearest
from ntkit.faults import foreign
from ntkit.inputs import Batch, Bundle, Inputs, Picked, as_batch, batch_size
from ntkit.module_checks import Weights, check_names, check_weights
from ntkit.on_loan import noting_draws, untouched, users_device

Module = TypeVar("Module", bound=nn.Module)
No: TypeAlias = Literal[False]  # a flag that is left out, in overloads
Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Values: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.generic]]  # of any dtype
Pair: TypeAlias = tuple[Floats, Floats]  # a mean and its spread
_OF_TORCH = frozenset(vars(nn.Module()))  # attributes that every module has
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Network:
    """A network as ``call(weights, x)``: weights by name, the first axis of every input the sample.

    ``x`` is one tensor, a tuple (positional inputs), a dict (named inputs) or a `Bundle` of whatever else.
    Complex weights appear as pairs of reals, ``[..., 2]``.
    """

    call: Callable[..., Any]  # call(weights, x, buffers=None)
    fixed: dict[str, Tensor] | None = None
    module: nn.Module | None = None
    select: str | int | None = None  # of outputs that are a dict or a tuple
    counted: tuple[str, ...] | None = None  # the weights that are asked about; None: all

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights as they are now, detached."""
        if self.fixed is not None or self.module is None:
            return self.fixed or {}
        return {name: _real(w.detach()) for name, w in self.module.named_parameters()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the module as they are now."""
        return {} if self.module is None else dict(self.module.named_buffers())

    def outputs(self, weights: Weights, x: Batch, buffers: Weights | None = None) -> Tensor:
        """Return the outputs of a batch as ``[n, o]``; further axes are flattened into o."""
        return self._rows(self.call(weights, x, buffers), batch_size(x))

    def direct(self, x: Batch, leaves: Weights | None = None) -> Tensor:
        """Return the outputs ``[n, o]`` of the user's own module, not of a function made of it.

        It gets copies of the inputs, and keeps its buffers; weights other than its own are to be `lent` to
        it. By ``leaves`` (see there) the result can be differentiated.
        """
        x = pytree.tree_map(torch.clone, x)
        with taking(x):
            if self.module is None:
                y = self.call({**self.weights, **(leaves or {})}, x)
            else:
                args, kwargs = _call_arguments(x)
                with untouched(self.module), users_device(), noting_draws(self.module):
                    y = self.module(*args, **kwargs)
        return self._rows(y, batch_size(x))

    def leaves(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the tensors by which `direct` can be differentiated: a module's own parameters."""
        if self.module is None:
            return {name: self.weights[name].detach().requires_grad_() for name in names}
        own = dict(self.module.named_parameters())
        return {name: own[name].requires_grad_() for name in names}

    def selected(self, y: object) -> Any:
        """Return the part of what the network gave that its outputs are."""
        return selected(y, self.select)

    def _rows(self, y: object, n: int) -> Tensor:
        """Return what the network gave as ``[n, o]``, checked."""
        y = self.selected(y)
        if not isinstance(y, Tensor):
            raise BadTypeError(
                f"The network returned {_described(y)}, ntkit needs one tensor whose first axis is the "
                f"sample. Say with select= which part it is, or wrap the network in a module that returns it."
            )
        if y.is_nested or y.layout is not torch.strided:
            raise BadTypeError("The network returned a nested or sparse tensor; return a dense one.")
        if not y.is_floating_point():
            raise BadTypeError(
                f"The network returned {y.dtype}, ntkit needs real floating-point outputs; return the "
                f"scores, or for complex ones their real and imaginary parts (torch.view_as_real)."
            )
        if y.ndim == 0 and n == 1:
            return y.reshape(1, 1)
        if y.ndim == 0 or y.shape[0] != n:
            if n == 1:  # a network that squeezes its batch of one away
                return y.reshape(1, -1)
            raise BadValueError(
                f"The network returned shape {tuple(y.shape)} for {n} samples; the first axis must be "
                f"the sample. Return one output row per sample."
            )
        if y.numel() == 0:
            raise BadValueError(f"The network returned no outputs, shape {tuple(y.shape)}.")
        return y.reshape(n, -1)

    def sample(self, weights: Weights, x: Batch) -> Tensor:
        """Return the outputs ``[o]`` of one sample whose inputs carry no sample axis (for vmap)."""
        return self.outputs(weights, pytree.tree_map(lambda t: t.unsqueeze(0), x)).reshape(-1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that count."""
        return self._first.dtype

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The floating dtypes of all weights and buffers, that of the weights that count first."""
        tensors = {**self.weights, **self.buffers}.values()
        return list(dict.fromkeys([self.dtype, *(t.dtype for t in tensors if t.is_floating_point())]))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._first.device

    def signature(self) -> tuple:
        """Return what a trace of the network depends on besides values: its modules, flags, settings, ties.

        Settings are the attributes of all modules that are numbers, names, flags or functions, or lists and
        dicts of them; what a tensor or an object of another kind holds is not seen here.
        """
        if self.module is None:
            return ()
        modules = tuple((id(m), m.training, *_settings(m)) for m in self.module.modules())
        ties = tuple(
            (id(p), p.requires_grad, p.shape) for _, p in self.module.named_parameters(remove_duplicate=False)
        )
        return modules, ties

    @property
    def _first(self) -> Tensor:
        if self.fixed is not None or self.module is None:
            weights = self.fixed or {}
            return weights[self.counted[0]] if self.counted else next(iter(weights.values()))
        if self.counted:
            path, _, name = self.counted[0].rpartition(".")
            return _real(self.module.get_submodule(path)._parameters[name].detach())  # pyright: ignore
        trained = (p for p in self.module.parameters() if p.requires_grad)
        return _real(next(trained, next(self.module.parameters())).detach())


@contextmanager
def taking(x: Batch) -> Iterator[None]:
    """Tell what a network raises within, given some inputs, as a refusal of them."""
    try:
        yield
    except (NtkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        foreign(error, "running a network")
        raise BadValueError(
            f"The network does not take the inputs {_shapes(x)} (the first axis is the sample): it "
            f"raised {type(error).__name__}: {error}. Give inputs of the shapes and dtypes "
            f"that it is made for."
        ) from error


def _real(w: Tensor) -> Tensor:
    """Return a weight as it is differentiated: a complex one as pairs of reals, one of inference copied."""
    if w.is_inference():
        with torch.inference_mode(False):
            w = w.clone()
    return torch.view_as_real(w) if w.is_complex() else w


def real_gradient(g: Tensor) -> Tensor:
    """Return autograd's gradient of a leaf as that of its real numbers: dense, complex ones as pairs."""
    g = g.to_dense() if g.layout is not torch.strided else g
    return torch.view_as_real(g.resolve_conj()) if g.is_complex() else g


def _call_arguments(x: Batch) -> tuple[tuple, dict[str, Any]]:
    value: object = x.value if isinstance(x, Bundle) else x
    return ((), value) if isinstance(value, dict) else (value if type(value) is tuple else (value,), {})


def _shapes(x: Batch) -> str:
    shapes = pytree.tree_map(lambda t: f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}", x)
    return str(shapes.value if isinstance(shapes, Bundle) else shapes)


def _settings(module: nn.Module) -> Iterator[Any]:
    for name, value in vars(module).items():
        if name in _OF_TORCH:
            continue
        if isinstance(value, _PLAIN):
            yield name, value
        elif isinstance(value, (list, tuple, set, dict)) and len(value) <= 64:
            items = value.items() if isinstance(value, dict) else value
            parts = (i if isinstance(i, tuple) else (i,) for i in items)
            yield name, tuple(tuple(p if isinstance(p, _PLAIN) else id(p) for p in part) for part in parts)
        elif not isinstance(value, Tensor):
            yield name, id(value)


def _described(y: object) -> str:
    if isinstance(y, Mapping):
        return f"a {type(y).__name__} with {[str(k) for k in y]}"
    if isinstance(y, (tuple, list)):
        return f"a {type(y).__name__} of {', '.join(type(part).__name__ for part in y)}"
    return f"a {type(y).__name__}"


def selected(y: object, select: str | int | None) -> Any:
    """Return the part of a network's outputs of a name or place, all if it is None."""
    if select is None:
        return y
    try:
        if isinstance(y, Mapping) or (isinstance(y, (tuple, list)) and isinstance(select, int)):
            return y[select]  # pyright: ignore[reportCallIssue, reportArgumentType]
        return getattr(y, str(select))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        parts = y if isinstance(y, Mapping) else getattr(y, "__dict__", ())
        raise BadValueError(
            f"select={select!r}: the network returned {_described(y)}. Name one of its parts."
            f"{nearest(select, parts)}"
        ) from error


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of what runs it in parallel or compiled; refuse one that cannot be read."""
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            module = module.module
        elif isinstance(original := getattr(module, "_orig_mod", None), nn.Module):
            module = original
        else:
            break
    for name, m in module.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise BadTypeError(
                f"{name or 'the model'} is compiled by torch.jit ({type(m).__name__}), whose operations "
                f"ntkit cannot read. Give the torch.nn.Module that it was made of."
            )
    return module


def network(model: object, weights: Weights | None = None, select: str | int | None = None) -> Network:
    """Return the pure function behind a module, or behind ``f(weights, x)`` and its weights.

    A module keeps its training flags and is read as it is at each call (train it, and its kernel
    follows); its buffers are cloned, so that no call changes them. Tied weights appear once, under
    their first name.
    """
    if isinstance(model, nn.Module):
        module = unwrapped(model)
        known = dict(module.named_parameters())
        if weights is not None:
            check_names(weights, known)
            for name, w in known.items():
                if isinstance(weights[name], Tensor) and weights[name].shape != w.shape:
                    raise BadValueError(
                        f"weights[{name!r}] has shape {tuple(weights[name].shape)}, expected the module's, "
                        f"{tuple(w.shape)}."
                    )
        trained = {k: w for k, w in known.items() if w.requires_grad} or known
        check_weights(known if weights is None else weights, trained)
        complex_ones = [name for name, w in known.items() if w.is_complex()]

        def call(weights: Weights, x: Batch, buffers: Weights | None = None) -> Any:
            buffers = module_buffers(module) if buffers is None else buffers
            whole = {name: torch.view_as_complex(weights[name]) for name in complex_ones}
            with untouched(module), users_device():
                return call_with(module, {**buffers, **weights, **whole}, *_call_arguments(x))

        fixed = None if weights is None else {k: _real(w.detach()) for k, w in weights.items()}
        return Network(call, fixed, module, select)
    if not callable(model):
        raise BadTypeError(
            f"Expected a torch.nn.Module or a function f(weights, x), got {type(model).__name__}."
        )
    if isinstance(model, type):
        raise BadTypeError(f"Expected a torch.nn.Module, got the class {model.__name__}; make one of it.")
    if weights is None:
        raise BadTypeError(
            "A function as a network needs its weights: pass a dict of tensors as `weights`, with "
            "f(weights, x) -> outputs."
        )
    check_weights(weights, weights)
    complex_names = [name for name, w in weights.items() if w.is_complex()]

    def function(w: Weights, x: Batch, _: object = None) -> Any:
        value = x.value if isinstance(x, Bundle) else x
        with users_device():
            return model({**w, **{k: torch.view_as_complex(w[k]) for k in complex_names}}, value)

    return Network(function, {k: _real(w.detach()) for k, w in weights.items()}, None, select)


def call_with(module: nn.Module, values: Weights, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Call a module with other weights and buffers, under their first names; it keeps its own.

    Each tensor of each module is swapped once. torch, which ties the names of one tensor, would swap a module
    that has two names twice, and leave the other tensors in it.
    """
    first: dict[int, str] = {}
    swapped = []
    for path, m in module.named_modules():
        for store in (m._parameters, m._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    known = first.setdefault(id(tensor), f"{path}.{name}" if path else name)
                    if known in values:
                        swapped.append((store, name, tensor, values[known]))
    try:
        for store, name, _, value in swapped:
            store[name] = value
        return module(*args, **kwargs)
    finally:
        for store, name, own, _ in swapped:
            store[name] = own


def copy_of(module: Module) -> Module:
    """Return a copy of a module (a compiled one's original); what it stored of its last call is cut off.

    Tensors with a history, such as features stored on ``self``, have no copy of their own.
    """
    module = unwrapped(module)  # pyright: ignore[reportAssignmentType]
    memo: dict[int, Any] = {}
    for m in module.modules():
        for value in pytree.tree_leaves({k: v for k, v in vars(m).items() if k != "_modules"}):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return deepcopy(module, memo)


def module_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return clones of a module's buffers, for calls that must not change them."""
    return {name: b.clone() for name, b in module.named_buffers()}


def as_inputs(x: Inputs, net: Network, what: str = "x", picked: Picked = None) -> Batch:
    """Return inputs as tensors on the network's device, checked: a batch, finite, of its dtype.

    Those by which something is to be differentiated are refused: kernels and accounts would cut the gradient.
    """
    leaves = pytree.tree_leaves(x) if torch.is_grad_enabled() else []
    if any(isinstance(t, Tensor) and t.requires_grad for t in leaves):
        raise BadValueError(
            f"{what} requires a gradient; what ntkit returns has none by its inputs. Give {what}.detach(), "
            f"or call it under torch.no_grad()."
        )
    return as_batch(x, net.dtypes, net.device, what, picked)


def refuse_complex(net: Network, what: str) -> None:
    """Refuse a network with complex weights for what needs real ones."""
    for name, p in net.module.named_parameters() if net.module is not None else ():
        if p.is_complex() and p.requires_grad:
            raise BadValueError(
                f"Weight {name!r} has dtype {p.dtype}. {what} needs real weights: hold it as a pair of reals "
                f"(torch.view_as_real), and make the complex one in forward (torch.view_as_complex)."
            )
