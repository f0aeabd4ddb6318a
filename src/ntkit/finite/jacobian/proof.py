"""What must hold before a kernel is believed: one sample at a time, no randomness, the right gradient.

Proved with the module itself as the oracle: once for a model and its shapes its gradients, at each call its
outputs (`differing`).
"""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Iterator
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
from ntkit.finite.jacobian.rounding import Lowered, tolerance
from ntkit.finite.jacobian.truth import Truth
from ntkit.finite.rules import RuleError
from ntkit.graph import Graph, trace
from ntkit.inputs import Batch, batch_size, take
from ntkit.module_checks import refuse_stateful
from ntkit.network import Network


def prove(net: Network, x: Batch, wanted: tuple[str, ...]) -> Recipe:
    """Return the recipe of a network's Jacobian, every part of it compared with autograd through the module.

    It is read at the first sample. A weight whose structured Jacobian disagrees with autograd is contracted
    whole; a network whose graph disagrees with the network is not read from its graph at all.
    """
    refuse_stateful(net.module)
    pair = sample_pair(x)
    outputs, lowest = check_samples(net, pair)
    truth = Truth(net, pair, wanted, outputs, lowest)
    recipe = _proved(truth)
    same = not recipe.by_sample and not recipe.reads  # else other samples may use other weights
    unused = truth.unused if same else []
    if unused:
        warnings.warn(
            f"No output depends on the parameter(s) {_listed(unused)} for the samples given: their part of "
            f"the tangent kernel is zero. Some networks store what depends on their weights when in eval.",
            stacklevel=2,
        )
    return recipe


def _proved(truth: Truth) -> Recipe:
    net, pair = truth.net, truth.pair
    reason = ""
    for start in (0, 1):
        try:
            graph = trace(net, take(pair, slice(start, None)))
        except NtkitError:
            raise
        except Exception as error:  # whatever a user's network may raise when it is traced
            return whole(truth, f"not traceable: {first_line(foreign(error, 'tracing'))}")
        for oracle in (truth, truth.for_a_batch()):
            recipe, reason = _from_graph(graph, oracle)
            if recipe is not None:
                return recipe
        if not (graph.reads or graph.decided):  # else what was read at the other sample may serve both
            break
    return whole(truth, reason)


def _from_graph(graph: Graph, truth: Truth) -> tuple[Recipe | None, str]:
    """Return the recipe of a graph without what disagrees with autograd; None, and why, if all does."""
    coverage = cover(graph, frozenset(truth.wanted))
    for _ in range(len(truth.wanted) + 1):
        recipe = Recipe(truth.net, truth.wanted, graph, coverage, truth.lowest)
        recipe.tapes.off = True
        try:
            wrong = _disagreements(recipe, truth)
        except RuleError as error:
            foreign(error, "a rule")
            text = "".join(traceback.format_exception(error.__cause__))
            warnings.warn(
                f"{error}; {_listed(sorted(error.weights))} by contraction instead.\n{text}", stacklevel=2
            )
            wrong = dict.fromkeys(error.weights, first_line(error))
        except NtkitError:
            raise
        except Exception as error:  # an operation that vmap or a rule cannot take
            return None, f"not batchable: {first_line(foreign(error, 'the batched passes of a network'))}"
        if not wrong:
            recipe.tapes.off = False
            return recipe, ""
        if all(name in coverage.uncovered for name in wrong):
            break
        coverage = _uncover(coverage, wrong)
    return None, "its graph and the network disagree"


def by_sample(known: Recipe, reason: str) -> Recipe:
    """Return the recipe that runs the user's own module on one sample after the other."""
    coverage = Coverage((), dict.fromkeys(known.wanted, reason), ())
    return Recipe(known.net, known.wanted, None, coverage, known.lowest, by_sample=True)


def differing(recipe: Recipe, x: Batch, size: int) -> int | None:
    """Return the first sample whose outputs by the recipe are not those of the network itself, or None."""
    n = batch_size(x)
    for start in range(0, n, size):
        part = take(x, slice(start, start + size))
        with torch.no_grad():
            truth = recipe.net.direct(part)
            try:
                outputs = recipe.outputs(part)
            except NtkitError:
                raise
            except Exception as error:  # sizes that were baked in, and others that vmap refuses
                foreign(error, "running the graph of a network")
                return start
        if outputs.shape != truth.shape:
            return start
        row = disagreeing_row(recipe, outputs, truth)
        if row is not None:
            return start + row
    return None


def disagreeing_row(recipe: Recipe, outputs: Tensor, truth: Tensor) -> int | None:
    """Return the first row where outputs are not those of the network itself, or None."""
    holds = (outputs - truth).abs() <= recipe.tolerance * truth.abs().max()
    if holds.all():
        return None
    if not torch.isfinite(truth).all():
        count = int((~torch.isfinite(truth)).any(1).sum())
        raise BadValueError(
            f"The network returned NaN or infinite outputs for {count} of {len(truth)} samples; a tangent "
            f"kernel needs finite ones. Check the inputs' scale and the weights."
        )
    return int((~holds).any(1).nonzero()[0])


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


def check_samples(net: Network, pair: Batch) -> tuple[int, torch.dtype]:
    """Refuse a network that is random or whose outputs mix samples.

    Returns its number of outputs, and the lowest precision that it computes in.
    """
    lowered = Lowered(net.dtype)
    with torch.no_grad():
        with lowered:
            both = net.direct(pair)
        again = net.direct(pair)
        try:
            alone = net.direct(take(pair, slice(0, 1)))
        except BadValueError as error:
            if error.__cause__ is None:
                raise
            raise NotPerSampleError(
                f"The network takes a batch of two samples but not one sample alone "
                f"({first_line(error.__cause__)}). A tangent kernel needs a function of one sample; batch "
                f"norm in training mode is a usual cause."
            ) from error
        swapped = net.direct(take(pair, torch.tensor([1, 0], device=net.device)))
    scale = both.abs().max()
    if not torch.isfinite(both).all():
        raise BadValueError(
            "The network returned NaN or infinite outputs for the samples given; a tangent kernel needs "
            "finite ones. Check the inputs' scale and the weights."
        )
    lowest = max(lowered.dtype, both.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    bound = tolerance(lowest) * scale
    mixed = ((both[:1] - alone).abs() > bound).any() or ((both[:1] - swapped[1:]).abs() > bound).any()
    if mixed:  # a few random numbers may happen to be the same twice
        with torch.no_grad():
            again = torch.stack([net.direct(pair) for _ in range(8)])
    if ((both - again).abs() > bound).any():
        raise NotPerSampleError(
            "The network gave two different outputs for the same inputs: it is random or changes its "
            "own state when called. Call model.eval(), or remove the randomness."
        )
    if mixed:
        raise NotPerSampleError(
            "The network's output for one sample depends on the other samples of the batch (batch "
            "statistics, attention across the batch, one axis taken for another). A tangent kernel needs a "
            "function of one sample: check that the first axis of the inputs is the sample, and that "
            "nothing averages over it."
        )
    return both.shape[1], lowest


def sample_pair(x: Batch) -> Any:
    """Return two different samples, the first and one drawn, or the first and a changed copy of it."""
    n = batch_size(x)
    if n > 1:
        other = random.Random(0).randrange(1, n)
        for place in dict.fromkeys((other, n - 1)):
            two = pytree.tree_map(lambda t, place=place: t[[0, place]], x)
            if any(not torch.equal(t[0], t[1]) for t in pytree.tree_leaves(two)):
                return two

    def changed(t: Tensor) -> Tensor:
        first = t[:1]
        if t.is_floating_point() or t.is_complex():
            return torch.cat([first, first * 0.75])
        return torch.cat([first, first.flip(-1) if t.ndim > 1 else first])

    return pytree.tree_map(changed, x)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _disagreements(recipe: Recipe, truth: Truth) -> dict[str, str]:
    """Return the weights whose Jacobian is not autograd's, and why, after grouping their uses."""
    reason = "its rule and autograd disagree"
    pair, rows = truth.pair, truth.rows
    if recipe.graph is not None:
        weights = {
            k: w.detach().requires_grad_() if k in recipe.wanted else w for k, w in recipe.net.weights.items()
        }
        covered = [k for k in recipe.wanted if k not in recipe.coverage.uncovered]
        uses, _, out = batch_factors(recipe, pair, rows[:1], recipe.coverage.edges, (), weights)
        leaking = []
        if covered and out.requires_grad:
            leaks = torch.autograd.grad(out.sum(), [weights[k] for k in covered], allow_unused=True)
            leaking = [k for k, g in zip(covered, leaks, strict=True) if g is not None]
        unknown = [k for e, f in uses.items() if f is None for k in e.weights]
        if leaking or unknown:
            return dict.fromkeys([*leaking, *unknown], reason)
        join_index_maps(recipe, {e: f for e, f in uses.items() if f is not None})
    return dict.fromkeys(_wrong(recipe, truth), reason)


def _wrong(recipe: Recipe, truth: Truth) -> Iterator[str]:
    """Go through the weights whose Jacobian of the two samples is not autograd's."""
    seen: set[str] = set()
    for sample in (0, 1):
        gradients = truth.gradients(sample)
        jacobian = recipe.jacobian(take(truth.pair, slice(sample, sample + 1)), truth.rows)
        largest = max(
            [g.abs().max().item() for g in gradients.values() if g is not None and g.numel()], default=0.0
        )
        for name in recipe.wanted:
            if name in seen:
                continue
            size = recipe.net.weights[name].numel()
            formed = truth.rows.new_zeros(1, len(truth.rows), size)
            form(jacobian.get(name, []), formed)
            gradient = gradients[name]
            if gradient is not None:
                formed[0] -= gradient
            length = 0.0 if gradient is None else torch.linalg.vector_norm(gradient, dim=1)
            bound = length + 1e-2 * largest * size**0.5
            if not (torch.linalg.vector_norm(formed[0], dim=1) <= recipe.tolerance * bound).all():
                seen.add(name)
                yield name


def whole(truth: Truth, reason: str) -> Recipe:
    """Return the recipe that contracts every weight, from the network and not from its graph."""
    coverage = Coverage((), dict.fromkeys(truth.wanted, reason), ())
    recipe = Recipe(truth.net, truth.wanted, None, coverage, truth.lowest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not _disagreements(recipe, truth):
                return recipe
    except NtkitError:
        raise
    except Exception as error:
        foreign(error, "running a network under vmap")
    recipe = by_sample(recipe, reason)
    if _disagreements(recipe, truth):
        raise NtkitError(
            "Two runs of this network give different gradients: it changes its own state when called, or "
            "draws random numbers. Call model.eval(), or remove what changes."
        )
    return recipe


def _uncover(coverage: Coverage, reasons: dict[str, str]) -> Coverage:
    """Move weights, and those that they are tied to in a derived weight, to contraction."""
    bad = dict(reasons)
    while True:
        more = {
            k: why
            for e in coverage.edges
            for why in [next((bad[b] for b in sorted(e.weights & bad.keys())), None)]
            if why is not None
            for k in e.weights - bad.keys()
        }
        if not more:
            break
        bad |= more
    uncovered = {**bad, **coverage.uncovered}
    edges = tuple(e for e in coverage.edges if not e.weights & bad.keys())
    return Coverage(edges, uncovered, coverage.order)
