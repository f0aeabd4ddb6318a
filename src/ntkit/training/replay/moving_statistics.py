"""Running statistics of batch norm as functions of the weights: what evaluation uses, and training moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ntkit.errors import NtkitError
from ntkit.training.folder.run import Run

_NORM = nn.modules.batchnorm._BatchNorm


class MovingStatistics:
    """Derivatives by the running means and variances of a network, ``[r, size]`` each, carried backwards.

    A forward pass in training mode makes r' = (1 - m) r + m s of each, with the mean s of the batch or its
    variance (divided by n - 1), and m the momentum or 1 / the number of batches until then.
    """

    def __init__(self, run: Run, module: nn.Module) -> None:
        self._run = run
        self._norms = {
            name: m
            for name, m in module.named_modules()
            if isinstance(m, _NORM) and m.running_mean is not None and run.changes_buffers
        }
        self.names = [
            f"{name}.{key}".lstrip(".") for name in self._norms for key in ("running_mean", "running_var")
        ]
        others = [
            name
            for name, b in module.named_buffers()
            if b.is_floating_point() and name not in self.names and self._moved(name)
        ]
        if others:
            raise NtkitError(
                f"The buffer {others[0]!r} changed in this run, and ntkit does not know how it depends on "
                f"the weights "
                f"(known are the running statistics of batch norm). ntkit.retrain tells what would have "
                f"happened."
            )

    def _moved(self, name: str) -> bool:
        run = self._run
        if not run.changes_buffers:
            return False
        last = run.buffers(run.steps)
        return name in last and not torch.equal(last[name], run.start[f"buffer/{name}"])

    @contextmanager
    def noted(self) -> Iterator[list[Tensor]]:
        """Collect the statistics of norms in training mode, in the order of their forward passes."""
        found: list[tuple[str, Tensor, Tensor]] = []
        hooks = []

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(m: nn.Module, args: tuple[Tensor, ...]) -> None:
                if m.training:
                    x = args[0].transpose(0, 1).flatten(1)
                    found.append((name, x.mean(1), x.var(1)))

            return hook

        for name, m in self._norms.items():
            hooks.append(m.register_forward_pre_hook(note(name)))
        made: list[Tensor] = []
        self.used: list[str] = []
        try:
            yield made
        finally:
            for hook in hooks:
                hook.remove()
        for name, *both in found:
            made += both
            self.used += [f"{name}.running_mean".lstrip("."), f"{name}.running_var".lstrip(".")]

    @contextmanager
    def evaluated(self, module: nn.Module, given: dict[str, Tensor]) -> Iterator[None]:
        """Normalize by statistics that derivatives go through, which torch's own operation does not have."""
        norms = {name: m for name, m in module.named_modules() if name in self._norms}

        def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            mean, var = (given[f"{name}.{key}".lstrip(".")] for key in ("running_mean", "running_var"))

            def hook(m: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
                assert isinstance(m, _NORM)
                x = args[0]
                shape = (1, -1, *[1] * (x.ndim - 2))
                out = (x - mean.view(shape)) * (var + m.eps).rsqrt().view(shape)
                return out if m.weight is None else out * m.weight.view(shape) + m.bias.view(shape)

            return hook

        hooks = [m.register_forward_hook(hook_of(name)) for name, m in norms.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def refuse_frozen(self, modes: tuple[str, ...], k: int) -> None:
        """Refuse a step that normalizes by running statistics that training moves."""
        frozen = [
            name
            for name in self._norms
            if name not in modes and self._moved(f"{name}.running_mean".lstrip("."))
        ]
        if frozen:
            raise NtkitError(
                f"At step {k} the batch norm {frozen[0]!r} is in evaluation mode, after it was trained: "
                f"the step "
                f"depends on its running statistics, through which ntkit takes no derivatives. "
                f"ntkit.retrain tells "
                f"what would have happened without a set of samples."
            )

    def pulled(self, rows: dict[str, Tensor], used: list[str], counts: dict[str, int]) -> list[Tensor]:
        """Return rows by the statistics of a batch; turn ``rows`` into those by the running ones before it.

        ``counts`` are the numbers of batches behind it, of each norm, and become those before it.
        """
        out: list[Tensor] = []
        for name in reversed(used):  # a norm may be used several times
            m = self._norms[name.rpartition(".")[0]].momentum
            part = 1.0 / max(1, counts.get(name, 1)) if m is None else m
            counts[name] = counts.get(name, 1) - 1
            out.append(part * rows[name])
            rows[name] = (1 - part) * rows[name]
        return out[::-1]

    def counts(self, k: int) -> dict[str, int]:
        """Return how many batches each running statistic has seen before step k."""
        held = self._run.buffers(k) if self._run.changes_buffers else {}
        found = {}
        for name in self.names:
            tracked = f"{name.rpartition('.')[0]}.num_batches_tracked".lstrip(".")
            if tracked in held:
                found[name] = int(held[tracked])
        return found
