"""What tells a kernel from another, by name: settings as text, weights and code as hashes."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.errors import BadTypeError
from ntkit.files import hash_data
from ntkit.kernel import Kernel

_SHORT = 16  # digits of a hash that stand in a manifest
_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)


def identity(value: object, name: str) -> dict[str, str]:
    """Return what tells a value from others, by the names of its parts.

    >>> identity({"depth": 3, "name": "ntk"}, "kernel")
    {'kernel.depth': '3', 'kernel.name': "'ntk'"}
    """
    if isinstance(value, Kernel):
        return {name: _type_name(value)} | identity(value.identity(), name)
    if isinstance(value, nn.Module):
        return {name: structure(value)} | _weights(value, name)
    if isinstance(value, Tensor):
        return {name: _tensor(value)}
    if isinstance(value, np.ndarray | np.generic):
        return {name: _tensor(torch.as_tensor(np.array(value)))}
    if isinstance(value, Mapping):
        parts = (identity(value[key], f"{name}.{key}") for key in sorted(value, key=str))
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(value, list | tuple):
        parts = (identity(item, f"{name}.{i}") for i, item in enumerate(value))
        return {name: f"{len(value)} parts"} | {k: v for part in parts for k, v in part.items()}
    if isinstance(value, _PLAIN):
        return {name: repr(value)}
    if isinstance(value, functools.partial):
        return identity({"function": value.func, "args": value.args, "keywords": value.keywords}, name)
    if isinstance(value, type) or inspect.isroutine(value):
        return {name: _code(value)}
    return _of_object(value, name)


def device_of(kernel: Kernel) -> str:
    """Return the type of device that a kernel computes on: that of the first tensor that it holds."""
    for value in kernel.get_params(deep=False).values():
        if isinstance(value, Kernel):
            return device_of(value)
        held = value.parameters() if isinstance(value, nn.Module) else pytree.tree_leaves(value)
        for leaf in held:
            if isinstance(leaf, Tensor):
                return leaf.device.type
    return "cpu"


def structure(module: nn.Module) -> str:
    """Return what a network is without the values of its weights, in a few words and a hash.

    The modules with their settings as they print, training flags, shapes, which weights count and are tied,
    and the code of classes that are not torch's.
    """
    seen: dict[int, int] = {}
    rows = [str(module)]
    for path, part in module.named_modules():
        rows.append(f"{path} {_type_name(part)} {part.training} {_code(type(part))}")
    for path, p in module.named_parameters(remove_duplicate=False):
        tied = seen.setdefault(id(p), len(seen))
        rows.append(f"{path} {p.dtype} {tuple(p.shape)} {p.requires_grad} {tied}")
    rows += [f"{path} {b.dtype} {tuple(b.shape)}" for path, b in module.named_buffers()]
    return f"{_type_name(module)} {_hash(rows)}"


def _weights(module: nn.Module, name: str) -> dict[str, str]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {f"{name}[{path!r}]": _tensor(value) for path, value in named.items()}


def _tensor(value: Tensor) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {list(value.shape)} {hash_data(value)[:_SHORT]}"


def _type_name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(value: type | Callable[..., object]) -> str:
    """Return the name of a class or function, and a hash of its code if that is not a library's."""
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
    if name.startswith(("torch.", "builtins.", "numpy.", "ntkit.", "_operator.")):
        return name
    name = re.sub(r"^__main__\.|^None\.", "", name)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))  # layout and comments do not count
        text = [ast.dump(tree)]
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or a part of an expression
        code = getattr(value, "__code__", None)
        text = _bytecode(code) if isinstance(code, CodeType) else [name]
    closure = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
    text += [f"{k}={v}" for key, held in closure.items() for k, v in identity(held, key).items()]
    return f"{name} {_hash(text)}"


def _bytecode(code: CodeType) -> list[str]:
    held = [f"{c!r}" for c in code.co_consts if not isinstance(c, CodeType)]
    inner = [row for c in code.co_consts if isinstance(c, CodeType) for row in _bytecode(c)]
    return [code.co_code.hex(), *code.co_names, *held, *inner]


def _of_object(value: object, name: str) -> dict[str, str]:
    """Return the identity of an object by its parameters or by what it prints."""
    parameters = getattr(value, "get_params", None)
    if callable(parameters):
        return {name: _code(type(value))} | identity(parameters(deep=False), name)
    text = repr(value)
    if " at 0x" in text:
        held = getattr(value, "__dict__", None)
        if held is None:
            raise BadTypeError(
                f"{name} is {text}, which nothing tells from another: a folder of tiles would not know its "
                f"kernel again. Give a class of your own a __repr__ that names what it holds."
            )
        return {name: _code(type(value))} | identity(held, name)
    return {name: f"{_code(type(value))} {text if len(text) < 80 else _hash([text])}"}


def _hash(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:_SHORT]
