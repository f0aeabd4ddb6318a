"""What must hold before a kernel is believed: one sample at a time, no randomness, the right gradient.

Run once for a model and its shapes, never per call.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.errors import BadValueError, NotPerSampleError, NtkitError
from ntkit.faults import first_line, foreign
from ntkit.finite.factors import form
from ntkit.finite.jacobian.coverage import Coverage, cover
from ntkit.finite.jacobian.index_maps import join_index_maps
from ntkit.finite.jacobian.recipe import Recipe, batch_factors
from ntkit.graph import Graph, trace
from ntkit.network import Batch, Network, batch_size, refuse_stateful, take


def prove(net: Network, x: Batch, wanted: tuple[str, ...]) -> Recipe:
    """Return the recipe of a network's Jacobian, every part of it compared with autograd.

    A weight whose structured Jacobian disagrees with autograd is contracted whole; a network whose
    graph disagrees with the network is not read from its graph at all.
    """
    refuse_stateful(net.module)
    pair = sample_pair(x)
    o = check_samples(net, pair)
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(1, o, generator=generator, dtype=torch.float64).to(net.device, net.dtype)
    truth = _gradient(net, pair, wanted, cotangent)
    try:
        graph = trace(net, x)
    except NtkitError:
        raise
    except Exception as error:  # whatever a user's network may raise when it is traced
        reason = f"not traceable: {first_line(foreign(error, 'tracing'))}"
        return _whole(net, pair, wanted, cotangent, truth, reason)
    coverage = cover(graph, frozenset(wanted))
    for _ in range(len(wanted) + 1):
        recipe = Recipe(net, wanted, graph, coverage)
        try:
            wrong = _disagreements(recipe, pair, cotangent, truth)
        except NtkitError:
            raise
        except Exception as error:  # an operation that vmap or a rule cannot take
            reason = f"not batchable: {first_line(foreign(error, 'the batched passes of a network'))}"
            return _whole(net, pair, wanted, cotangent, truth, reason)
        if not wrong:
            return recipe
        if all(name in coverage.uncovered for name in wrong):
            break
        coverage = _uncover(graph, coverage, wrong)
    return _whole(net, pair, wanted, cotangent, truth, "its graph and the network disagree")


def last_layer(net: Network, x: Batch, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the weights of the last operation of a network that uses any of the names."""
    try:
        coverage = cover(trace(net, x), frozenset(names))
    except NtkitError:
        raise
    except Exception as error:
        foreign(error, "tracing")
        raise NtkitError(
            f"params='last' needs a network that can be traced ({first_line(error)}); name the parameters "
            f"of the last layer instead."
        ) from error
    last = coverage.order[-1][1]
    return tuple(k for k in names if k in last)


def check_samples(net: Network, pair: Batch) -> int:
    """Refuse a network that is random or whose outputs mix samples; return its number of outputs."""
    with torch.no_grad():
        both = net.outputs(net.weights, pair)
        again = net.outputs(net.weights, pair)
        try:
            alone = net.outputs(net.weights, take(pair, slice(0, 1)))
        except NtkitError:
            raise
        except Exception as error:
            foreign(error, "running one sample alone")
            raise NotPerSampleError(
                f"The network takes a batch of two samples but not one sample alone ({first_line(error)}). "
                f"A tangent kernel needs a function of one sample; batch norm in training mode is a usual "
                f"cause."
            ) from error
        swapped = net.outputs(net.weights, take(pair, torch.tensor([1, 0], device=net.device)))
    scale = both.abs().max() if both.numel() else both.new_zeros(())
    if not torch.isfinite(both).all():
        raise BadValueError(
            "The network returned NaN or infinite outputs for the samples given; a tangent kernel needs "
            "finite ones. Check the inputs' scale and the weights."
        )
    tolerance = 1e4 * torch.finfo(both.dtype).eps * scale if both.is_floating_point() else 0
    if ((both - again).abs() > tolerance).any():
        raise NotPerSampleError(
            "The network gave two different outputs for the same inputs: it is random or changes its "
            "own state when called. Call model.eval(), or remove the randomness."
        )
    if ((both[:1] - alone).abs() > tolerance).any() or ((both[:1] - swapped[1:]).abs() > tolerance).any():
        raise NotPerSampleError(
            "The network's output for one sample depends on the other samples of the batch (batch "
            "statistics, attention across the batch, one axis taken for another). A tangent kernel needs a "
            "function of one sample: check that the first axis of the inputs is the sample, and that "
            "nothing averages over it."
        )
    return both.shape[1]


def sample_pair(x: Batch) -> Any:
    """Return two different samples: the first and the last, or the first and a changed copy of it."""
    n = batch_size(x)
    if n > 1:
        last = pytree.tree_map(lambda t: t[[0, n - 1]], x)
        if any(not torch.equal(t[0], t[1]) for t in pytree.tree_leaves(last)):
            return last

    def changed(t: Tensor) -> Tensor:
        first = t[:1]
        if t.is_floating_point():
            return torch.cat([first, first * 0.75])
        return torch.cat([first, first.flip(-1) if t.ndim > 1 else first])

    return pytree.tree_map(changed, x)


def _gradient(net: Network, pair: Batch, wanted: tuple[str, ...], cotangent: Tensor) -> dict[str, Tensor]:
    """Return the gradient of cotangent . sum_n f(x_n), by autograd through the user's own network."""
    with torch.enable_grad():
        weights = {k: w.detach().requires_grad_(k in wanted) for k, w in net.weights.items()}
        total = (net.outputs(weights, pair) @ cotangent[0]).sum()
        if not total.requires_grad:
            return {k: torch.zeros_like(weights[k]) for k in wanted}
        grads = torch.autograd.grad(total, [weights[k] for k in wanted], allow_unused=True)
    return {k: torch.zeros_like(weights[k]) if g is None else g for k, g in zip(wanted, grads, strict=True)}


def _disagreements(recipe: Recipe, pair: Batch, cotangent: Tensor, truth: dict[str, Tensor]) -> list[str]:
    """Return the weights whose Jacobian is not autograd's, after grouping their uses."""
    if recipe.graph is not None:
        weights = {k: w.detach().requires_grad_() for k, w in recipe.net.weights.items()}
        covered = [k for k in recipe.wanted if k not in recipe.coverage.uncovered]
        uses, _, out = batch_factors(recipe, pair, cotangent, recipe.coverage.edges, (), weights)
        leaking = []
        if covered and out.requires_grad:
            leaks = torch.autograd.grad(out.sum(), [weights[k] for k in covered], allow_unused=True)
            leaking = [k for k, g in zip(covered, leaks, strict=True) if g is not None]
        unknown = [k for e, f in uses.items() if f is None for k in e.weights]
        if leaking or unknown:
            return [*leaking, *unknown]
        join_index_maps(recipe, {e: f for e, f in uses.items() if f is not None})
    jacobian = recipe.jacobian(pair, cotangent)
    sizes = {k: g.abs().max() for k, g in truth.items()}
    largest = max([s.item() for s in sizes.values()], default=0.0)
    eps = torch.finfo(cotangent.dtype).eps
    wrong = []
    for name, grad in truth.items():
        formed = grad.new_empty(batch_size(pair), 1, grad.numel())
        form(jacobian.get(name, []), formed)
        difference = torch.linalg.vector_norm(formed.sum((0, 1)) - grad.reshape(-1))
        bound = torch.linalg.vector_norm(grad) + 1e-2 * largest * grad.numel() ** 0.5
        if not difference <= 1e4 * eps * bound:
            wrong.append(name)
    return wrong


def _whole(
    net: Network, pair: Batch, wanted: tuple[str, ...], cotangent: Tensor, truth: dict, reason: str
) -> Recipe:
    """Return the recipe that contracts every weight, from the network and not from its graph."""
    coverage = Coverage((), dict.fromkeys(wanted, reason), ())
    for by_sample in (False, True):
        recipe = Recipe(net, wanted, None, coverage, by_sample=by_sample)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not _disagreements(recipe, pair, cotangent, truth):
                    return recipe
        except NtkitError:
            raise
        except Exception as error:
            if by_sample:
                raise
            foreign(error, "running a network under vmap")
    raise NtkitError(
        "Two ways of differentiating this network disagree (autograd over a batch, and sample by sample). "
        "It may change its own state when called, or have a custom backward that is not its derivative."
    )


def _uncover(graph: Graph, coverage: Coverage, names: list[str]) -> Coverage:
    """Move weights, and those that they are tied to in a derived weight, to contraction."""
    bad = set(names)
    while True:
        more = {k for e in coverage.edges if e.weights & bad for k in e.weights} - bad
        if not more:
            break
        bad |= more
    reason = "its rule and autograd disagree"
    uncovered = {**coverage.uncovered, **{k: reason for k in sorted(bad) if k not in coverage.uncovered}}
    edges = tuple(e for e in coverage.edges if not e.weights & bad)
    return Coverage(edges, uncovered, coverage.order)
