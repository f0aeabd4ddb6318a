"""The contestants in torch for limits: ntkit, in float32 and in float64 as the truth."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from limits import SIGMA_B, SIGMA_W, build
from worker import serve

WHO, JOB, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])


def prepare() -> Callable[[], object]:
    if WHO == "gemm":
        a = torch.randn(2048, 2048)
        return lambda: (a @ a).numpy()
    import ntkit

    model, x = build(JOB, torch.float64 if WHO == "float64" else torch.float32)
    limit = ntkit.infinite_width(model, x[:1], sigma_w=SIGMA_W, sigma_b=SIGMA_B, compile=True)
    return lambda: limit.ntk(x).numpy()


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    serve(prepare)
