"""The backward sweep of derivatives through training: by the weight of each sample's loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkit.compute.threads import fitting_threads
from ntkit.errors import NtkitError
from ntkit.inputs import Batch, batch_size
from ntkit.training.accounts.averaged_account import Averages
from ntkit.training.functional.flat_network import FlatNetwork, cast
from ntkit.training.functional.losses import checked_loss
from ntkit.training.replay.clipping import Clipping
from ntkit.training.replay.moving_statistics import MovingStatistics
from ntkit.training.replay.pull_back import PullBack
from ntkit.training.replay.step_vectors import StepVectors
from ntkit.training.replay.steps import Replay, ReplayedBatch

_STEP = 1e-6  # of a weight
_ALIKE = 1e-3


@dataclass
class Rows:
    """Rows of derivatives on their way back through training: how far they are, and by what they are."""

    position: int  # the steps before it are still to be done
    of_w: Tensor  # [r, P]
    of_average: Tensor  # of the weights, [r, P]
    of_buffers: dict[str, Tensor]  # statistics of batch norm, [r, ...]
    of_state: Tensor  # of the optimizer, [r, S, P]
    slow: Tensor  # of the slow weights of Lookahead, [r, P]
    by_eps: Tensor  # [r, n], the result

    def tensors(self) -> dict[str, Tensor]:
        """Return all that there is but the position, by name."""
        own = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return own | {f"buffer {name}": value for name, value in self.of_buffers.items()}

    def restore(self, tensors: dict[str, Tensor], position: int) -> None:
        """Go to where rows with these tensors were."""
        self.position = position
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


class DerivativeSweep:
    """d f / d eps_n of rows of outputs f, with eps_n the weight of sample n's terms of all batch losses.

    With the step (w, s)' = T_k(w, s, g), g = sum_n eps_n J(x_n; w)^T c_n, and rows lambda of derivatives by
    what it made, going backwards from d f / d w at the end::

        (lambda_w, lambda_g, lambda_s) <- pull-back of T_k
        d f / d eps_n += lambda_g . J(x_n; w_k)^T c_n
        lambda_w      += H_k lambda_g

    with H_k the second derivative of the batch loss. Both products come from one backward pass through the
    backward pass of the batch. Running statistics of batch norm carry derivatives, too.
    """

    def __init__(
        self,
        replay: Replay,
        clipping: Clipping,
        pull: PullBack,
        gradients: StepVectors | None = None,
        averages: Averages | None = None,
    ) -> None:
        self.replay, self.run, self.clipping, self.pull = replay, replay.run, clipping, pull
        self.gradients = gradients  # where those of the steps are kept, if they are wanted
        self.averages = averages  # the network is that of averaged weights
        self.statistics = MovingStatistics(replay.run, replay.net.module)
        self.recurrent = any(isinstance(m, nn.RNNBase) for m in replay.net.module.modules())

    def ends(self, net: FlatNetwork, queries: Batch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the outputs of queries, ``[r]``, with the leaves behind them: weights, statistics."""
        run = self.run
        net.take_buffers(run.buffers(run.steps))
        w = (self.averages or run).weights(run.steps).requires_grad_()
        leaves = [net.buffers[name].clone().requires_grad_() for name in self.statistics.names]
        given = dict(zip(self.statistics.names, leaves, strict=True))
        with self.statistics.evaluated(net.module, given):
            out = net.outputs(w, queries)
        return out.reshape(-1), [w], leaves

    def begin(self, net: FlatNetwork, queries: Batch, sums: Tensor) -> Rows:
        """Return rows behind the last step, for sums of the q x o outputs, ``sums [r, q o]``."""
        run = self.run
        with self._differentiable(), torch.enable_grad():
            out, (w,), leaves = self.ends(net, queries)
            of_w, *found = batched_gradients([out], [w, *leaves], [sums.to(out)])
        r, total = of_w.shape
        of_average = torch.zeros_like(of_w)
        if self.averages is not None:
            of_w, of_average = of_average, of_w
        return Rows(
            run.steps,
            of_w,
            of_average,
            dict(zip(self.statistics.names, found, strict=True)),
            of_w.new_zeros(r, self.pull.states, total),
            of_w.new_zeros(r, total),
            of_w.new_zeros(r, batch_size(self.replay.data[0])),
        )

    @contextmanager
    def going(self) -> Iterator[None]:
        """Hold what all steps backwards are made in."""
        with self._differentiable(), torch.no_grad():
            yield

    def back(self, rows: Rows) -> None:
        """Take rows one step back, within `going`."""
        rows.position = k = rows.position - 1
        step = self.run.step(k)
        if self.averages is not None:  # v' = v + tau (w' - v)
            tau = self.averages.taus[k + 1]
            rows.of_w += tau * rows.of_average
            rows.of_average *= 1 - tau
        if step.kept is not None:  # w' = s + kept (w - s), which is the next s
            both = rows.of_w + rows.slow
            rows.of_w, rows.slow = step.kept * both, (1 - step.kept) * both
            return
        w = self.run.shaped_weights(k)
        with fitting_threads():
            graphs = [self._graph(w, k, part) for part in self.replay.parts(step)]
            g = self._gradient(k, graphs)
            if self.run.ungraded(k):
                g = g * self.run.graded(k)
            clipped = self.clipping.clipped(k, g)
            rows.of_w, of_g, rows.of_state = self.pull(k, step, clipped, rows.of_w, rows.of_state)
            of_g = self.clipping.pulled(k, g, of_g)
            counts = self.statistics.counts(k + 1)
            of_parts = self._shaped(of_g)
            for graph in reversed(graphs):
                by = of_parts
                if graph.statistics:
                    by = by + self.statistics.pulled(rows.of_buffers, graph.used, counts)
                *by_w, by_c = batched_gradients([*graph.g, *graph.statistics], [*graph.w, graph.c], by)
                for of_w, more in zip(self._shaped(rows.of_w), by_w, strict=True):
                    of_w += more
                by_eps = (by_c * graph.c.detach()).reshape(*by_c.shape[:2], -1).sum(2)  # g is linear in c
                rows.by_eps.index_add_(1, graph.batch, by_eps)

    def _shaped(self, rows: Tensor) -> list[Tensor]:
        """Return views ``[r, ...]`` of rows ``[r, P]``, one for each weight."""
        net = self.replay.net
        r, parts = len(rows), zip(rows.split(net.sizes, 1), net.shapes.values(), strict=True)
        return [part.view(r, *shape) for part, shape in parts]

    def _gradient(self, k: int, graphs: list[_Graph]) -> Tensor:
        """Return the gradient of a step, flat, and keep it if that is wanted."""
        first, *others = ([g.detach().reshape(-1) for g in graph.g] for graph in graphs)
        held = self.gradients if first[0].device.type == "cpu" else None
        room = None if held is None else held.row(k)
        total = torch.cat(first) if room is None else torch.cat(first, out=room)
        for more in others:
            total += torch.cat(more)
        if self.gradients is not None and room is None:
            self.gradients[k] = total
        return total

    def _graph(self, w: list[Tensor], k: int, part: ReplayedBatch) -> _Graph:
        """Return the gradient of a batch as a function of the weights and of c_n = d loss / d y_n."""
        replay = self.replay
        with torch.enable_grad():
            leaves = [some.detach().requires_grad_() for some in w]
            self.statistics.refuse_frozen(part.forward.modes, k)
            with self.statistics.noted() as made:
                outputs = replay.outputs(leaves, k, part)
            used = [*self.statistics.used]
            value = checked_loss(replay.loss, outputs, cast(part.y, replay.dtype))
            value = value if part.weight == 1 else part.weight * value
            (c,) = torch.autograd.grad(value, outputs, create_graph=True)
            c = c if c.requires_grad else c.requires_grad_()
            found = torch.autograd.grad(outputs, leaves, c, create_graph=True, allow_unused=True)
            g = [torch.zeros_like(w) if one is None else one for one, w in zip(found, leaves, strict=True)]
        return _Graph(part.batch, leaves, c, g, made, used)

    def refuse_wrong_second_derivatives(self) -> None:
        """Compare products with second derivatives with differences of gradients, at the first and last step.

        They differ where something is detached, or an operation's backward pass is no function of its inputs.
        """
        for k in {0, self.run.steps - 1}:
            if self.run.step(k).kept is not None:
                continue
            offs = []
            for seed in range(3):  # on one of them there may be a kink: a wrong derivative is so on all
                offs.append(self._off(k, seed))
                if offs[-1] <= _ALIKE:
                    break
            if offs[-1] > _ALIKE:
                raise NtkitError(
                    f"The gradient of step {k} has a derivative that torch does not see: along drawn "
                    f"directions, products with the second derivative are {min(offs):.2g} off the "
                    f"differences of gradients. Something is detached in the loss or the network, or the "
                    f"backward pass of an operation (a function of your own, weight_norm, an embedding's "
                    f"padding_idx) is not differentiable. ntkit.retrain tells what would have happened "
                    f"without a set of samples."
                )

    def _off(self, k: int, seed: int) -> float:
        """Return how far the product with the second derivative of step k is off along a drawn direction."""
        run, replay, step = self.run, self.replay, self.run.step(k)
        w, draw = run.weights(k), torch.Generator().manual_seed(k + seed * run.steps)
        v = torch.rand(w.shape, generator=draw).to(w).sub_(0.5) * (w.abs() + w.std())
        h = _STEP / 10**seed
        change = (replay.gradient(w + h * v, k, step) - replay.gradient(w - h * v, k, step)) / (2 * h)
        if not change.any():
            return 0.0
        with self._differentiable():
            graphs = [self._graph(run.shaped_weights(k), k, part) for part in replay.parts(step)]
            rows, ways = self._shaped(change[None]), self._shaped(v[None])
            found = sum(
                float((by_w * way).sum())
                for graph in graphs
                for by_w, way in zip(batched_gradients(graph.g, graph.w, rows), ways, strict=True)
            )
        off = abs(found / float(change @ change) - 1)
        return off if off == off else float("inf")

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Choose kernels that can be differentiated twice."""
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.recurrent:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield


class _Graph:
    """The gradient of one batch with what it depends on."""

    def __init__(
        self,
        batch: Tensor,
        w: list[Tensor],
        c: Tensor,
        g: list[Tensor],
        statistics: list[Tensor],
        used: list[str],
    ) -> None:
        self.batch, self.w, self.c, self.g, self.statistics, self.used = batch, w, c, g, statistics, used


def batched_gradients(outputs: list[Tensor], leaves: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """Return rows ``[r, ...]`` by outputs times their Jacobian, by each leaf: ``[r, ...]``.

    The graph behind the outputs may be freed.
    """
    used = [(o, row) for o, row in zip(outputs, rows, strict=True) if o.requires_grad]
    if not used:
        return [row.new_zeros(len(row), *leaf.shape) for leaf in leaves for row in rows[:1]]
    values, weights = [o for o, _ in used], [row for _, row in used]
    r = len(weights[0])
    if r > 1:
        try:
            found = torch.autograd.grad(
                values, leaves, weights, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
            return _filled(found, leaves, r)
        except RuntimeError:  # an operation that vmap does not take
            pass
    try:
        each = [
            torch.autograd.grad(
                values, leaves, [row[i] for row in weights], retain_graph=i < r - 1, allow_unused=True
            )
            for i in range(r)
        ]
    except RuntimeError as error:
        raise NtkitError(
            f"An operation of the network or its loss cannot be differentiated twice: {error}. What would "
            f"have "
            f"happened without a set of samples is told by ntkit.retrain."
        ) from error
    if r == 1:
        return _filled([None if one is None else one[None] for one in each[0]], leaves, r)
    stacked = [
        None if each[0][j] is None else torch.stack([one[j] for one in each]) for j in range(len(leaves))
    ]
    return _filled(stacked, leaves, r)


def _filled(found: object, leaves: list[Tensor], r: int) -> list[Tensor]:
    pairs = zip(found, leaves, strict=True)  # pyright: ignore[reportArgumentType]
    return [leaf.new_zeros(r, *leaf.shape) if f is None else f for f, leaf in pairs]
