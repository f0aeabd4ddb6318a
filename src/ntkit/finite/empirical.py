"""The empirical tangent kernel: the kernel of a network as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.compute.plan import Plan, parse_memory
from ntkit.compute.surroundings import undisturbed
from ntkit.errors import BadTypeError, BadValueError, NotPerSampleError, nearest, one_of
from ntkit.finite import blocks
from ntkit.finite.blocks import Measure
from ntkit.finite.explain import Explanation, explain
from ntkit.finite.jacobian.proof import by_sample, differing, disagreeing_row, last_layer, prove
from ntkit.finite.jacobian.recipe import Recipe
from ntkit.finite.kinds import Outputs, kind_of
from ntkit.finite.operator import TangentOperator, tangent_operator
from ntkit.finite.project import Projection
from ntkit.inputs import Batch, Inputs, Picked, batch_size, check_alike, drawn_rows, take
from ntkit.kernel import Kernel
from ntkit.module_checks import check_weights
from ntkit.network import Network, No, Weights, as_inputs, network

_log = logging.getLogger("ntkit")
Block: TypeAlias = Float[Tensor, "n1 n2 *v"]
_KEPT = 16  # recipes, of the last kinds of inputs
_TRACES = 4  # samples at which a network is read, before it goes sample by sample
_DRAWN_ROWS = 8  # samples whose outputs are compared at each call
Params = str | Sequence[str] | nn.Module | nn.Parameter | None


def _from(x: Batch, row: int) -> Batch:
    """Return a batch that begins with one of its samples."""
    n = batch_size(x)
    return take(x, [(row + i) % n for i in range(n)]) if row else x


class EmpiricalNTK(Kernel):
    """The tangent kernel of a network at its present weights.

    With the Jacobian J(x) = d f(x; w) / d w in R^{o x P} (the features),

        K(x, x') = J(x) J(x')^T  in R^{o x o}

    Parameters
    ----------
    model : torch.nn.Module or callable
        The network. A module is read at each call as it then is: train it, and the kernel follows. A
        function ``f(weights, x)`` needs ``weights``. The first axis of every input and of the output
        is the sample; inputs are a tensor, a tuple (positional) or a dict (named).
    weights : dict of tensors, optional
        The weights of a function, or other values for the weights of the module.
    outputs : {"mean", "trace", "diagonal", "full"}
        What is kept of the o x o matrix of two samples. ``"full"``: all, ``[n1, n2, o, o]``;
        ``"diagonal"``: ``[n1, n2, o]``; ``"trace"``: the sum over outputs, ``[n1, n2]``; ``"mean"``:
        trace / o, the one that tends to the kernel of the infinite-width limit.
    params : optional
        Which parameters count: None for those that require a gradient, ``"last"`` for those of the
        last layer, a name or a list of names (``*`` and ``?`` match), a module or a parameter of the
        model. Kernels of disjoint sets add up.
    memory : str or int
        Bytes to work in besides the result, such as ``"2GiB"``; chunks are chosen to fit. The result
        does not depend on it, rounding apart.
    inputs : optional
        What of an item of a ``DataLoader`` or ``Dataset`` goes into the network: a place (0), a name
        (``"input_ids"``), a list of them, or a function of the item; targets must not.
    select : str or int, optional
        Which part of outputs that are a dict, a tuple or an object, such as ``"logits"``.
    check : {"rows", "all"}
        The samples whose outputs are compared at each call with the network's own: 8, drawn from what
        the batch holds, or all. All are compared the first time, and where a network reads values.

    Raises
    ------
    NotPerSampleError
        Train-mode batch norm, active dropout, an output that mixes samples.
    NtkitError
        NaN in the inputs, mixed dtypes or devices, unknown names, integer weights.

    Notes
    -----
    No unit but that of outputs squared over weights squared; no parameterization is applied: this is
    the network as it is. Weights used by linear maps, convolutions, norms, embeddings and elementwise
    operations are never expanded to Jacobians: their structure gives the kernel. All other weights go
    through Jacobian contraction. What is found is compared with autograd through the module itself once
    for a model and its shapes, and with the module's outputs at each call; where they differ, it is read
    again, and if need be each sample goes through the module by itself. Complex weights count as pairs of
    reals. ``k.explain(x)`` says which weight went which way. Neither the module nor torch's settings
    around the call matter or change (autocast, inference mode, random states).

    References
    ----------
    Jacot, Gabriel, Hongler, "Neural tangent kernel" (2018); Courtois, Morel, Arias (2022), Def. 1, 2
    and 5.

    Examples
    --------
    >>> import torch, ntkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(5, 3)
    >>> ntkit.EmpiricalNTK(model)(x).shape
    torch.Size([5, 5])
    >>> k = ntkit.EmpiricalNTK(model, outputs="full")
    >>> j = k.features(x)  # [n, o, P]
    >>> torch.allclose(k(x), torch.einsum("nop,mqp->nmoq", j, j), rtol=1e-4, atol=1e-5)
    True
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        weights: Weights | None = None,
        *,
        outputs: Outputs = "mean",
        params: Params = None,
        memory: str | int = "2GiB",
        inputs: Picked = None,
        select: str | int | None = None,
        check: Literal["rows", "all"] = "rows",
    ) -> None:
        self._kind = kind_of(outputs)
        self.model, self.outputs, self.params, self.memory = model, outputs, params, memory
        self.weights, self.inputs, self.select, self.check = weights, inputs, select, check
        one_of("check", check, ("rows", "all"))
        self._net = network(model, weights, select)
        self._budget = parse_memory(memory)
        self._recipes: dict[Any, list[tuple[Recipe, Measure]]] = {}
        self._plans: dict[Any, Plan] = {}
        self._counting()

    @overload
    def __call__(self, x1: Inputs, x2: Inputs | None = None, *, per_parameter: No = ...) -> Block: ...
    @overload
    def __call__(
        self, x1: Inputs, x2: Inputs | None = None, *, per_parameter: Literal[True]
    ) -> dict[str, Block]: ...
    def __call__(
        self, x1: Inputs, x2: Inputs | None = None, *, per_parameter: bool = False
    ) -> Block | dict[str, Block]:
        """Return the kernel between two batches; ``per_parameter=True``: a dict of parts that add up."""
        first, second = self._inputs(x1, x2)
        with undisturbed(self._net):
            if second is None and not per_parameter and (block := self._proved_on_the_way(first)) is not None:
                return block
            recipe, size = self._recipe(first, second)
            plan = self._plan(recipe, size, first, second)
            _log.debug("tangent kernel: %s", plan)
            if not per_parameter:
                return blocks.block(recipe, plan, first, second, self._kind, size.outputs, None)
            parts: dict[str, Tensor] = {}
            for name in recipe.wanted:
                only = frozenset([name])
                parts[name] = blocks.block(recipe, plan, first, second, self._kind, size.outputs, only)
            return parts

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return each sample with itself, ``[n]``, ``[n, o]`` or ``[n, o, o]``; no n x n matrix is formed."""
        batch, _ = self._inputs(x, None)
        with undisturbed(self._net):
            recipe, size = self._recipe(batch)
            plan = self._plan(recipe, size, batch, None)
            return blocks.diagonal(recipe, plan, batch, self._kind, size.outputs)

    def features(
        self, x: Inputs, project: int | None = None, *, seed: int = 0, kind: str = "rademacher"
    ) -> Float[Tensor, "n o p"]:
        """Return the Jacobian J ``[n, o, P]``, parameters one after the other as in the network.

        K(x, x')_op = sum_P J(x)_oP J(x')_pP, with no factor: the mean over outputs is taken by kernels
        only. With ``project=m`` J S ``[n, o, m]`` for a random S with E[S S^T] = I, drawn from ``seed``:
        its Gram matrix is an unbiased estimate of the kernel, of relative error about 1 / sqrt(m).
        ``kind="rademacher"`` has entries +-1 / sqrt(m), ``"sparse"`` two thirds of zeros.
        """
        projection = None if project is None else Projection(project, seed, kind)
        batch, _ = self._inputs(x, None)
        with undisturbed(self._net):
            recipe, size = self._recipe(batch)
            plan = self._plan(recipe, size, batch, None)
            return blocks.features(recipe, plan, batch, size.outputs, projection)

    def operator(self, x1: Inputs, x2: Inputs | None = None) -> TangentOperator:
        """Return ``k(x1, x2)`` as a `linear_operator.LinearOperator` that never forms the matrix.

        ``[n1 o, n2 o]`` for ``outputs="full"`` (row n o + i is output i of sample n), ``[n1, n2]`` for
        ``"trace"`` and ``"mean"``. A product with several columns costs one vjp and one jvp, batched over
        the columns; the scalar ones cost that for each output. ``.to_scipy()`` is for SciPy's solvers.

        >>> import torch, ntkit
        >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(3, 2), outputs="full")
        >>> x = torch.randn(4, 3)
        >>> (k.operator(x) @ torch.ones(8, 5)).shape
        torch.Size([8, 5])
        """
        if self.outputs == "diagonal":
            raise BadValueError(
                "outputs='diagonal' is one matrix for each output, not one operator; choose 'full', 'trace' "
                "or 'mean'."
            )
        first, second = self._inputs(x1, x2)
        with undisturbed(self._net):
            recipe, size = self._recipe(first, second)
            plan = self._plan(recipe, size, first, second)
            return tangent_operator(recipe, plan, first, second, self._kind, size.outputs, self)

    def plan(self, x1: Inputs, x2: Inputs | None = None) -> Plan:
        """Return the chunks, bytes and floating-point operations of ``k(x1, x2)``, before it runs."""
        first, second = self._inputs(x1, x2)
        with undisturbed(self._net):
            return self._plan(*self._recipe(first, second), first, second)

    def explain(self, x: Inputs) -> Explanation:
        """Return a table of each parameter's uses, rule or fallback, order of summation, FLOPs, bytes.

        The figures are those of ``k(x)``; print it, or read its ``rows``.
        """
        batch, _ = self._inputs(x, None)
        with undisturbed(self._net):
            recipe, size = self._recipe(batch)
            return explain(recipe, size, self._plan(recipe, size, batch, None), self._kind)

    def _plan(self, recipe: Recipe, size: Measure, x1: Batch, x2: Batch | None) -> Plan:
        n, m = batch_size(x1), batch_size(x1 if x2 is None else x2)
        key = (id(size), n, m, x2 is None)
        if key not in self._plans:
            self._plans[key] = blocks.plan(recipe, size, n, m, self._kind, x2 is None, self._budget)
        return self._plans[key]

    def _inputs(self, x1: Inputs, x2: Inputs | None) -> tuple[Batch, Batch | None]:
        first = as_inputs(x1, self._net, "x1", self.inputs)
        if x2 is None:
            return first, None
        second = as_inputs(x2, self._net, "x2", self.inputs)
        check_alike(first, second)
        return first, second

    def _proved_on_the_way(self, x: Batch) -> Block | None:
        """Return the block of a batch whose outputs one pass makes: some are compared with the network's.

        None where nothing is known of such a batch, where several passes are needed, or where they differ.
        """
        known = self._known(x)[0]
        if not known or known[0][0].reads or known[0][0].by_sample or self.check == "all":
            return None
        recipe, size = known[0]
        plan = self._plan(recipe, size, x, None)
        n = batch_size(x)
        if plan.samples < n or plan.outputs < size.outputs or len(plan.weights) > 1:
            return None
        rows, recipe.seen = drawn_rows(x, _DRAWN_ROWS), []
        try:
            block = blocks.block(recipe, plan, x, None, self._kind, size.outputs, None)
            outputs = recipe.seen
        finally:
            recipe.seen = None
        with torch.no_grad():
            truth = recipe.net.direct(take(x, rows))
        if len(outputs) != 1 or outputs[0].shape != (n, truth.shape[1]):
            return None
        return block if disagreeing_row(recipe, outputs[0][rows], truth) is None else None

    def _known(self, x: Batch) -> tuple[list[tuple[Recipe, Measure]], Network]:
        """Return the recipes that are known for such inputs and the network as it is set now."""
        leaves, structure = pytree.tree_flatten(x)
        inputs = tuple((t.shape[1:], t.dtype) for t in leaves)
        net = self._counting()
        structure = "" if isinstance(x, Tensor) else str(structure)
        key = (structure, inputs, net.signature(), net.counted, net.dtype, net.device)
        known = self._recipes.pop(key, [])
        self._recipes[key] = known  # the last used stand last
        while len(self._recipes) > _KEPT:
            del self._recipes[next(iter(self._recipes))]
        return known, net

    def _recipe(self, *batches: Batch | None) -> tuple[Recipe, Measure]:
        """Return what is proved of the network for such inputs, and holds for these batches.

        Known recipes are compared with the network's own outputs; where none holds, one is made and proved.
        """
        x, *more = [b for b in batches if b is not None]
        known, net = self._known(x)
        for recipe, size in known:
            if self._wrong_row(recipe, size, [x, *more], bool(recipe.reads)) is None:
                return recipe, size
        if self.params == "last":
            net = replace(net, counted=last_layer(net, x, net.counted or ()))
        at, tried = (x, 0), set()
        while True:
            place, row = at
            recipe = prove(net, _from(place, row), net.counted or ())
            size = blocks.measure(recipe, x)
            wrong = self._wrong_row(recipe, size, [x, *more], True)
            if wrong is None:
                break
            if recipe.by_sample or (recipe.graph is None or len(tried) == _TRACES):
                recipe = by_sample(recipe, "its graph is not that of all samples")
                size = blocks.measure(recipe, x)
                if self._wrong_row(recipe, size, [x, *more], True) is not None:
                    raise NotPerSampleError(
                        "The network's output for a sample depends on the other samples of its batch, or is "
                        "another at each call. A tangent kernel needs a function of one sample."
                    )
                break
            tried.add(wrong[1])
            at = wrong
        known.insert(0, (recipe, size))
        del known[_KEPT:]
        return recipe, size

    def _wrong_row(
        self, recipe: Recipe, size: Measure, batches: list[Batch], every: bool
    ) -> tuple[Batch, int] | None:
        """Return a batch, and the place in it, of a sample for which a recipe is not the network's."""
        chunk = max(1, self._budget // max(1, 4 * (size.per_sample + size.per_output)))
        for batch in batches:
            if every or self.check == "all":
                row = differing(recipe, batch, chunk)
            else:
                rows = drawn_rows(batch, _DRAWN_ROWS)
                row = differing(recipe, take(batch, rows), chunk)
                row = None if row is None else rows[row]
            if row is not None:
                return batch, row
        return None

    def _counting(self) -> Network:
        """Return the network with the names of the parameters that count."""
        counted = self._select()
        if counted != self._net.counted:
            self._net = replace(self._net, counted=counted)
            check_weights(self._net.weights, {k: self._net.weights[k] for k in counted})
        return self._net

    def _select(self) -> tuple[str, ...]:
        """Return the names of the parameters that count."""
        params, module = self.params, self._net.module
        if module is None:
            named: dict[str, Tensor] = dict(self._net.weights)
        else:
            named = dict(module.named_parameters())
        if params is None or params == "last":
            chosen = [k for k, w in named.items() if module is None or w.requires_grad]
            if not chosen:
                raise BadValueError(
                    "No parameter of the model requires a gradient, so its tangent kernel is zero. Call "
                    "model.requires_grad_(True), or name the parameters that count with params=..."
                )
        elif isinstance(params, (nn.Module, nn.Parameter)):
            inside = {id(p) for p in (params.parameters() if isinstance(params, nn.Module) else [params])}
            chosen = [k for k, w in named.items() if id(w) in inside]
        else:
            several = isinstance(params, Iterable) and not isinstance(params, str)
            patterns: list[Any] = list(params) if several else [params]
            for pattern in patterns:
                if not isinstance(pattern, str):
                    raise BadTypeError(
                        f"params holds a {type(pattern).__name__}; expected 'last', names of parameters, a "
                        f"module or a parameter of the model."
                    )
                if not any(fnmatchcase(k, pattern) for k in named):
                    raise BadValueError(
                        f"params: no parameter is called {pattern!r}; there are {list(named)}."
                        f"{nearest(pattern, ('last', *named))}"
                    )
            chosen = [k for k in named if any(fnmatchcase(k, p) for p in patterns)]
        if not chosen:
            raise BadValueError(f"params={params!r} holds no parameter of the model; it has {list(named)}.")
        return tuple(chosen)
