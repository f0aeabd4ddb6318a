"""The contestant in JAX for limits: neural-tangents, compiled, the whole at once or by `nt.batch`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from worker import serve

JOB, INPUTS, SIGMA_W, SIGMA_B, BATCH = (
    sys.argv[1],
    sys.argv[2],
    float(sys.argv[3]),
    float(sys.argv[4]),
    int(sys.argv[5]),
)
DEPTH = 3


def prepare() -> Callable[[], object]:
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt
    from neural_tangents import stax

    x = jnp.asarray(np.load(INPUTS))
    sigmas = {"W_std": SIGMA_W, "b_std": SIGMA_B}
    layers: list = []
    for _ in range(DEPTH):
        if "mlp" in JOB:
            layers.append(stax.Dense(32, **sigmas))
        else:
            layers.append(stax.Conv(8, (3, 3), padding="SAME", **sigmas))
        layers.append(stax.Relu())
    ends = [stax.GlobalAvgPool()] * ("gap" in JOB) + [stax.Flatten()] * ("flatten" in JOB)
    kernel = stax.serial(*layers, *ends, stax.Dense(1, **sigmas))[2]
    if BATCH:
        compiled = jax.jit(kernel, static_argnums=(2,))
        batched = nt.batch(compiled, batch_size=BATCH, device_count=0, store_on_device=False)
        return lambda: np.asarray(batched(x, None, "ntk"))
    whole = jax.jit(lambda x: kernel(x, None, "ntk"))
    return lambda: np.asarray(whole(x))


if __name__ == "__main__":
    serve(prepare)
