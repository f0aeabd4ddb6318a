"""The contestants in torch for limits: ntkit, in float32 and in float64 as the truth."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from limits import AFTER, FIRST, SIGMA_B, SIGMA_W, build, cnn
from worker import serve

WHO, JOB, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])


def prepare() -> Callable[[], object]:
    if WHO == "gemm":
        a = torch.randn(2048, 2048)
        return lambda: (a @ a).numpy()
    import ntkit

    model, x = build(JOB, torch.float64 if WHO == "float64" else torch.float32)
    if JOB.startswith(FIRST):
        if JOB.endswith(AFTER):
            other = cnn(6, False)
            pictures = torch.randn(3, 3, 6, 6)
            ntkit.infinite_width(other, pictures, sigma_w=SIGMA_W, sigma_b=SIGMA_B).ntk(pictures)
        of = ntkit.infinite_width  # imported here, as the other's functions are
        return lambda: of(model, x[:1], sigma_w=SIGMA_W, sigma_b=SIGMA_B).ntk(x).numpy()
    limit = ntkit.infinite_width(model, x[:1], sigma_w=SIGMA_W, sigma_b=SIGMA_B, compile=True)
    return lambda: limit.ntk(x).numpy()


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    serve(prepare)
