"""The contestant in JAX for gradient flow: neural-tangents' predict on the same Gram matrix, in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from machines import TIME, read
from worker import serve

JOB, FILE = sys.argv[1], sys.argv[2]


def prepare() -> Callable[[], object]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import neural_tangents as nt

    tt, qt, _, y = (jnp.asarray(a) for a in read(JOB, FILE))

    def run() -> np.ndarray:
        predict = nt.predict.gradient_descent_mse(tt, y)
        # its loss is a mean over samples and outputs, so its time runs slower by the number of outputs
        return np.asarray(predict(TIME * y.shape[1], 0.0, 0.0, qt)[1])

    return run


if __name__ == "__main__":
    serve(prepare)
