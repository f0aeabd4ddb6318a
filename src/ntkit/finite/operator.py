"""The tangent kernel as a matrix-free operator: one vjp and one jvp for each product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.compute.plan import Plan, chunks
from ntkit.compute.scripted import LinearOperator, jvp
from ntkit.compute.surroundings import undisturbed
from ntkit.finite.factors import form
from ntkit.finite.jacobian.backward import quiet, quiet_vmap
from ntkit.finite.jacobian.recipe import Recipe, by_sample
from ntkit.finite.kinds import Kind
from ntkit.inputs import Batch, batch_size, take
from ntkit.kernel import Kernel


@dataclass(frozen=True)
class Setting:
    """What an operator needs besides its inputs."""

    recipe: Recipe
    plan: Plan
    structure: Any
    kind: Kind
    o: int
    kernel: Kernel


class TangentOperator(LinearOperator):
    """K(x1, x2) as a linear operator that never forms the matrix.

        K v = J(x1) (J(x2)^T v)

    ``[n1 o, n2 o]`` for full outputs (the output runs fastest), ``[n1, n2]`` for trace and mean, whose
    product costs a vjp and a jvp for each output. Products are summed over chunks of samples. Made by
    `EmpiricalNTK.operator`; solves, eigenvalues and sums come from linear_operator.
    """

    def __init__(self, *leaves: Tensor, setting: Setting) -> None:
        super().__init__(*leaves, setting=setting)
        half = len(leaves) // 2
        self._halves = leaves[:half], leaves[half:]
        self._setting = setting
        self._x1, self._x2 = (pytree.tree_unflatten(list(h), setting.structure) for h in self._halves)

    def _size(self) -> torch.Size:
        rows = self._setting.o if self._setting.kind.pairs_outputs else 1
        return torch.Size((batch_size(self._x1) * rows, batch_size(self._x2) * rows))

    def _matmul(self, rhs: Tensor) -> Tensor:
        vector = rhs.ndim == 1
        v = rhs.unsqueeze(-1) if vector else rhs
        out = self._product(v)
        return out.squeeze(-1) if vector else out

    def _product(self, v: Tensor) -> Tensor:
        """Return K v for columns ``[n2 (o), r]``."""
        n2, r, o = batch_size(self._x2), v.shape[-1], self._setting.o
        if self._setting.kind.pairs_outputs:
            cotangents = v.T.reshape(r, n2, o)
            return self._apply(cotangents).reshape(r, -1).T
        out = v.new_zeros(batch_size(self._x1), r)
        for i in range(o):
            cotangents = v.new_zeros(r, n2, o)
            cotangents[..., i] = v.T
            out += self._apply(cotangents)[..., i].T
        return self._setting.kind.view(out, o)

    def _apply(self, cotangents: Tensor) -> Tensor:
        """Return J(x1) J(x2)^T applied to ``[r, n2, o]``, as ``[r, n1, o]``."""
        with undisturbed(self._setting.recipe.net), quiet():
            return self._applied(cotangents)

    def _applied(self, cotangents: Tensor) -> Tensor:
        recipe, size = self._setting.recipe, self._setting.plan.samples
        weights = recipe.net.weights
        wanted = {k: weights[k] for k in recipe.wanted}
        total = {k: w.new_zeros(cotangents.shape[0], *w.shape) for k, w in wanted.items()}
        for s in chunks(batch_size(self._x2), size):
            part = pull(recipe, take(self._x2, s), cotangents[:, s])
            total = {k: total[k] + part[k] for k in total}
        rows = [push(recipe, take(self._x1, s), total) for s in chunks(batch_size(self._x1), size)]
        return torch.cat(rows, 1)

    def _transpose_nonbatch(self) -> TangentOperator:
        return TangentOperator(*self._halves[1], *self._halves[0], setting=self._setting)

    def _diagonal(self) -> Tensor:
        if not all(a is b for a, b in zip(*self._halves, strict=True)):
            return torch.diagonal(self.to_dense())
        diagonal = self._setting.kernel.diag(self._x1)
        return torch.diagonal(diagonal, dim1=-2, dim2=-1).reshape(-1) if diagonal.ndim == 3 else diagonal

    def to_dense(self) -> Tensor:
        """Return the matrix, by structured products and not column by column."""
        block = self._setting.kernel(self._x1, self._x2)
        return block.transpose(1, 2).reshape(self.shape) if block.ndim == 4 else block

    def to_scipy(self) -> ScipyOperator:
        """Return the operator for SciPy, on NumPy arrays (for `scipy.sparse.linalg.eigsh`, `cg`, ...)."""
        return _Scipy(self)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network (its inputs may be integers)."""
        return self._setting.recipe.net.dtype

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self._setting.recipe.net.device


def pull(recipe: Recipe, x: Batch, cotangents: Tensor) -> dict[str, Tensor]:
    """Return J(x)^T u for each of ``[r, n, o]``: the vjp, batched."""
    if recipe.by_sample:
        return {k: j.sum(0) for k, j in by_sample(recipe, x, cotangents, recipe.wanted).items()}
    with torch.enable_grad():
        weights = {k: recipe.net.weights[k].detach().requires_grad_() for k in recipe.wanted}
        out = recipe.outputs_of(x)(weights)
        grads = recipe.backward.gradients(out, list(weights.values()), cotangents.to(out.dtype))
    r = cotangents.shape[0]
    return {
        k: w.new_zeros(r, *w.shape) if g is None else g
        for (k, w), g in zip(weights.items(), grads, strict=True)
    }


def push(recipe: Recipe, x: Batch, directions: dict[str, Tensor]) -> Tensor:
    """Return J(x) w ``[r, n, o]`` for each of r directions: the jvp, batched."""
    if recipe.by_sample:
        return _by_jacobian(recipe, x, directions)
    if recipe.forward_mode is None:
        recipe.forward_mode = _forward_mode_holds(recipe, x)
    if recipe.forward_mode:
        weights = {k: recipe.net.weights[k] for k in recipe.wanted}
        function = recipe.outputs_of(x)
        return quiet_vmap(lambda d: jvp(function, (weights,), (d,))[1])(directions)
    try:
        return _push_backwards(recipe, x, directions)
    except NotImplementedError:  # an operation without second derivatives
        return _by_jacobian(recipe, x, directions)


def _by_jacobian(recipe: Recipe, x: Batch, directions: dict[str, Tensor]) -> Tensor:
    """Form J, a chunk at a time, and multiply."""
    n, o = batch_size(x), recipe.net.direct(take(x, slice(0, 1))).shape[1]
    like = next(iter(directions.values()))
    jacobian = recipe.jacobian(x, torch.eye(o, dtype=like.dtype, device=like.device))
    total = like.new_zeros(like.shape[0], n, o)
    for name, parts in jacobian.items():
        formed = like.new_empty(n, o, directions[name][0].numel())
        form(parts, formed)
        total = total + torch.einsum("nop,rp->rno", formed, directions[name].flatten(1))
    return total


def _push_backwards(recipe: Recipe, x: Batch, directions: dict[str, Tensor]) -> Tensor:
    """Return the jvp as the vjp of the vjp, which is linear in its cotangent."""
    with torch.enable_grad():
        weights = {k: recipe.net.weights[k].detach().requires_grad_() for k in recipe.wanted}
        out = recipe.outputs_of(x)(weights)
        u = torch.zeros_like(out, requires_grad=True)
        grads = torch.autograd.grad(out, list(weights.values()), u, create_graph=True, allow_unused=True)
        pairs = [(g, d) for g, d in zip(grads, directions.values(), strict=True) if g is not None]
        total = sum((g * d).flatten(1).sum(1) for g, d in pairs)
        assert isinstance(total, Tensor)
        rows = torch.eye(total.shape[0], dtype=total.dtype, device=total.device)
        (result,) = recipe.backward.gradients(total, [u], rows)
    return torch.zeros_like(out).expand(total.shape[0], *out.shape) if result is None else result


def _forward_mode_holds(recipe: Recipe, x: Batch) -> bool:
    """Return whether forward mode exists and is the transpose of the vjp (that of embeddings is not)."""
    x = take(x, slice(0, 2))
    generator = torch.Generator().manual_seed(0)
    weights = {k: recipe.net.weights[k] for k in recipe.wanted}

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    direction = {k: draw(w) for k, w in weights.items()}
    try:
        forward = jvp(recipe.outputs_of(x), (weights,), (direction,))[1]
    except (RuntimeError, NotImplementedError):
        return False
    u = draw(forward)
    back = pull(recipe, x, u[None])
    there, here = (forward * u).sum(), sum((back[k][0] * direction[k]).sum() for k in weights)
    scale = forward.norm() * u.norm()
    return bool((there - here).abs() <= 1e3 * torch.finfo(u.dtype).eps * scale)


class _Scipy(ScipyOperator):
    """A tangent operator on NumPy arrays."""

    def __init__(self, operator: TangentOperator) -> None:
        self.operator = operator
        dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
        super().__init__(dtype=dtype, shape=tuple(operator.shape))

    def _matmat(self, V: Any) -> np.ndarray:
        vectors = torch.as_tensor(np.array(V), dtype=self.operator.dtype, device=self.operator.device)
        return (self.operator @ vectors).cpu().numpy()

    def _adjoint(self) -> _Scipy:
        return _Scipy(self.operator._transpose_nonbatch())


def tangent_operator(
    recipe: Recipe, plan: Plan, x1: Batch, x2: Batch | None, kind: Kind, o: int, kernel: Kernel
) -> TangentOperator:
    """Return the operator between two batches (``x2=None``: the first)."""
    leaves, structure = pytree.tree_flatten(x1)
    second = leaves if x2 is None else pytree.tree_leaves(x2)
    return TangentOperator(*leaves, *second, setting=Setting(recipe, plan, structure, kind, o, kernel))
