"""One model of the zoo: its tangent kernel beside autograd's, ways, time and memory."""

from __future__ import annotations

import ctypes
import gc
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from entry import OUTPUTS, Entry
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import ntkit

BAR, BAR_FLOAT32 = 1e-9, 1e-5
ONCE = 2.0  # seconds: what takes longer is not repeated
T = TypeVar("T")


def measure(
    entry: Entry, tell: Callable[[dict[str, Any]], None] = lambda _: None, peers: bool = True
) -> dict[str, Any]:
    """Return what is to be said of a model; ``tell`` hears of it in between, should the process end."""
    result: dict[str, Any] = {"name": entry.name, "note": entry.note, "per_sample": entry.per_sample}
    x = entry.samples()
    model = entry.make()
    wanted = {k: p for k, p in model.named_parameters() if p.requires_grad}
    result["weights"] = sum(p.numel() for p in wanted.values())
    with torch.no_grad(), Casts() as casts:
        call(model, x)  # what a model raises by itself is not ntkit's
    result["float32"] = casts.found
    truth = None
    if entry.per_sample:
        result["alone"] = alone(model, x)
        tell({**result, "status": "crashed", "words": "in the plain loop"})
        model = entry.make()  # each has a model of its own, in which no call before left anything
        truth, result["loop"] = timed(lambda: (together if entry.together else loop)(model, x))
    tell({**result, "status": "crashed", "words": "in ntkit"})
    result |= ours(entry.make(), entry.others(), x, truth, BAR_FLOAT32 if casts.found else BAR)
    if truth is not None and peers:
        tell({**result, "vmap": "crashed"})
        try:
            fresh = entry.make()
            kernel, result["vmap"] = timed(lambda: vmapped(fresh, x))
            result["vmap"]["error"] = difference(kernel, truth)
        except Exception as error:
            result["vmap"] = told(error)
    return result


class Casts(TorchDispatchMode):
    """Whether a network whose weights are float64 turns numbers into float32 on its way."""

    found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the operations that give another dtype."""
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            self.found |= result.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return result


def ours(model: nn.Module, others: Any, x: Any, truth: Tensor | None, bar: float) -> dict[str, Any]:
    """Return how ntkit did: served, refused, wrong, or failed with another error than its own.

    The first call sees other samples: what it finds must hold for these.
    """
    try:
        with warnings.catch_warnings(record=True):
            select = getattr(model, "select", None)
            k = ntkit.EmpiricalNTK(model, select=select)
            begin = time.perf_counter()
            k(others)
            first = time.perf_counter() - begin
            mean, figures = timed(lambda: k(x))
            full = ntkit.EmpiricalNTK(model, outputs="full", select=select)(x)
            rows = k.explain(x).rows
    except ntkit.NtkitError as error:
        return {"status": "refused", "words": told(error)}
    except Exception as error:
        return failed(error)
    shares: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        size = torch.Size(row.shape).numel()
        shares[row.way] += size
        if row.way != "structure":
            reasons[f"{row.way}: {row.reason}"] += size
    result = {"ntkit": {**figures, "first": first}, "shares": dict(shares), "reasons": dict(reasons)}
    if truth is None:
        return {**result, "status": "served"}
    expected = truth.diagonal(dim1=2, dim2=3).mean(-1)
    result["error"] = max(difference(mean, expected), difference(full, truth))
    return {**result, "status": "served" if result["error"] <= bar else "wrong"}


def failed(error: Exception) -> dict[str, Any]:
    """Return the row of a model at which ntkit raised another error than its own."""
    place = traceback.extract_tb(error.__traceback__)
    inside = [f for f in place if "ntkit" in Path(f.filename).parts] or place
    lines = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in (inside[-1], place[-1])]
    return {"status": "foreign", "words": told(error), "traceback": lines}


def loop(model: nn.Module, x: Any) -> Tensor:
    """Return the kernel ``[n, n, o, o]`` by one backward pass for each sample and output of the module."""
    n = pytree.tree_leaves(x)[0].shape[0]
    samples = (pytree.tree_map(lambda t, i=i: t[i : i + 1], x) for i in range(n))
    return gram(model, (call(model, sample).reshape(-1) for sample in samples), n)


def together(model: nn.Module, x: Any) -> Tensor:
    """Return the same by one backward pass for each sample and output of the batch."""
    return gram(model, call(model, x), len(pytree.tree_leaves(x)[0]))


def gram(model: nn.Module, outputs: Iterable[Tensor], n: int) -> Tensor:
    """Return the products of the gradients of the outputs of n samples."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    rows: list[list[Tensor]] = []
    for y in outputs:
        for output in y:
            grads = torch.autograd.grad(output, wanted, retain_graph=True, allow_unused=True)
            rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(grads, wanted, strict=True)])
    kernel = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for parts in zip(*rows, strict=True):
        j = torch.stack([part.reshape(-1) for part in parts]).double()
        kernel += j @ j.T
    return kernel.reshape(n, len(rows) // n, n, -1).transpose(1, 2)


def vmapped(model: nn.Module, x: Any) -> Tensor:
    """Return the same by ``vmap(jacrev)`` of torch's functional call, as its tutorial does."""
    weights = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def one(w: dict[str, Tensor], sample: Any) -> Tensor:
        sample = pytree.tree_map(lambda t: t.unsqueeze(0), sample)
        args, kwargs = arguments(sample)
        return chosen(model, functional_call(model, w, args, kwargs)).reshape(-1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jacobian = torch.vmap(jacrev(one), (None, 0))(weights, x)
    parts = [j.flatten(2).double() for j in jacobian.values()]
    return torch.stack([torch.einsum("nop,mqp->nmoq", j, j) for j in parts]).sum(0)


def arguments(x: Any) -> tuple[tuple, dict[str, Any]]:
    """Return positional and named arguments."""
    return ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})


def call(model: nn.Module, x: Any) -> Any:
    """Return the output of a module, called as ntkit does."""
    args, kwargs = arguments(x)
    return chosen(model, model(*args, **kwargs))


def chosen(model: nn.Module, y: Any) -> Any:
    """Return the output that a model of the zoo names."""
    select = getattr(model, "select", None)
    return y if select is None else y[select]


def alone(model: nn.Module, x: Any) -> float:
    """Return by how much a batch and its samples one by one differ: 0 for a function of one sample."""
    with torch.no_grad():
        whole = call(model, x)
        n = whole.shape[0]
        single = torch.cat([call(model, pytree.tree_map(lambda t, i=i: t[i : i + 1], x)) for i in range(n)])
    assert whole.shape[1] <= OUTPUTS and whole.isfinite().all(), f"{whole}"
    return difference(whole, single)


def difference(found: Tensor, truth: Tensor) -> float:
    """Return the largest difference over the largest value."""
    if found.shape != truth.shape:
        return float("inf")
    return float((found.detach() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def timed(function: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Return what a function gives, its seconds, and by how many bytes the resident memory grew at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    begin = time.perf_counter()
    value = function()
    seconds = time.perf_counter() - begin
    peak = _resident("VmHWM") - before
    if seconds < ONCE:
        begin = time.perf_counter()
        function()
        seconds = min(seconds, time.perf_counter() - begin)
    return value, {"seconds": seconds, "peak": max(0, peak)}


def told(error: BaseException) -> str:
    """Return the class of an error and what it says, files as from their packages on."""
    text = re.sub(r"/[^\s:]*/(?:site-packages/|(?=zoo/))", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:500]}"


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
