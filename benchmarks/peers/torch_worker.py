"""The contestants in torch: ntkit, torch.func contraction, nngeometry; float64 as the truth."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from networks import build
from worker import serve

WHO, JOB, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])


def ntkit_kernel(dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    import ntkit

    model, x, outputs = build(JOB, dtype)
    k = ntkit.EmpiricalNTK(model, outputs=outputs)
    return lambda: k(x)


def torch_func() -> Callable[[], object]:
    """Return the recipe of torch's tutorial: per-sample Jacobians, then a contraction."""
    model, x, outputs = build(JOB)
    weights = {k: w.detach() for k, w in model.named_parameters()}

    def one(w: dict, sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, w, (sample.unsqueeze(0),)).squeeze(0)

    equation = {"full": "Naf,Mbf->NMab", "trace": "Naf,Maf->NM"}[outputs]

    def run() -> torch.Tensor:
        jacobian = torch.vmap(torch.func.jacrev(one), (None, 0))(weights, x)
        return sum(torch.einsum(equation, j.flatten(2), j.flatten(2)) for j in jacobian.values())

    return run


def nngeometry() -> Callable[[], object]:
    from nngeometry import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    model, x, outputs = build(JOB)
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), batch_size=len(x))

    def run() -> torch.Tensor:
        gram = GramMatrix(model, loader, function=lambda x, _: model(x)).to_torch()  # [o, n, o, n]
        full = gram.permute(1, 3, 0, 2)
        return full if outputs == "full" else torch.diagonal(full, dim1=2, dim2=3).sum(-1)

    return run


def gemm() -> Callable[[], object]:
    """Return a product of two square matrices: the rate that the machine gives."""
    a = torch.randn(2048, 2048)
    return lambda: a @ a


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    ways = {
        "ntkit": ntkit_kernel,
        "float64": lambda: ntkit_kernel(torch.float64),
        "torch.func": torch_func,
        "nngeometry": nngeometry,
        "gemm": gemm,
    }

    def prepare() -> Callable[[], object]:
        run = ways[WHO]()
        return lambda: run().detach().numpy()

    serve(prepare)
