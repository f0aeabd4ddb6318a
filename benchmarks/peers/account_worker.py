"""One account of a recorded run as a contestant: those of `benchmarks/sweep.py`, shorter."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from worker import serve

sys.path.insert(0, str(Path(__file__).parents[1]))
from sweep import OPTIMIZERS, record, record_deep

WHO, JOB, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3])
NAMES = {"account-sgd": "SGD", "account-momentum": "SGD, momentum 0.9", "account-adam": "Adam"}


def prepare() -> Callable[[], np.ndarray]:
    folder = tempfile.mkdtemp() + "/run"
    account = (
        record_deep(folder, 20) if JOB == "account-deep" else record(folder, OPTIMIZERS[NAMES[JOB]], 200)
    )
    return lambda: account().contributions.numpy()


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    serve(prepare)
