"""The tangent kernel by autograd through the module itself, one sample and one output at a time."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree


def jacobian(model, x, names=None, call=None):
    """Return J ``[n, o, P]``; ``call(model, one)`` runs one sample (by default a tensor, tuple or dict)."""
    parameters = [
        p for k, p in model.named_parameters() if (p.requires_grad if names is None else k in names)
    ]
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_()
    rows = []
    for i in range(pytree.tree_leaves(x)[0].shape[0]):
        one = pytree.tree_map(lambda t, i=i: t[i : i + 1].clone(), x)
        if call is not None:
            y = call(model, one)
        elif isinstance(one, dict):
            y = model(**one)
        else:
            y = model(*one) if isinstance(one, tuple) else model(one)
        of_outputs = []
        for v in y.reshape(-1):
            grads = torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True)
            flat = [
                _real(torch.zeros_like(p) if g is None else g) for g, p in zip(grads, parameters, strict=True)
            ]
            of_outputs.append(torch.cat(flat))
        rows.append(torch.stack(of_outputs))
    for p, requires in zip(parameters, before, strict=True):
        p.requires_grad_(requires)
    return torch.stack(rows).detach()


def _real(g):
    g = g.to_dense() if g.layout is not torch.strided else g
    return (torch.view_as_real(g.resolve_conj()) if g.is_complex() else g).reshape(-1)


def mean_kernel(model, x, names=None, call=None):
    """Return the kernel averaged over outputs, ``[n, n]``."""
    j = jacobian(model, x, names, call)
    return torch.einsum("nop,mop->nm", j, j) / j.shape[1]


def assert_kernel(found, expected, rtol=1e-10):
    """Compare kernels, relative to the largest entry."""
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error <= rtol, f"relative error {error:.1e}"
