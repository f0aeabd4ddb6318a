"""The contestant in JAX: neural-tangents, in an environment of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from worker import serve

IMPLEMENTATION, WEIGHTS, OUTPUTS = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def prepare() -> Callable[[], object]:
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt

    stored = np.load(WEIGHTS)
    x = jnp.asarray(stored["x"])
    names = [k for k in stored.files if k != "x"]
    weights = {k: jnp.asarray(stored[k]) for k in names}
    layers = sorted({int(k.split(".")[0]) for k in names})

    def f(w: dict, x: jax.Array) -> jax.Array:
        for i in layers:
            kernel = w[f"{i}.weight"]
            if kernel.ndim == 4:
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
                )
                x = jax.nn.relu(x + w[f"{i}.bias"])
            else:
                x = x.mean((2, 3)) if x.ndim == 4 else x
                x = x @ kernel + w[f"{i}.bias"]
                x = jax.nn.relu(x) if i != layers[-1] else x
        return x

    axes = () if OUTPUTS == "full" else (-1,)
    kernel = nt.empirical_ntk_fn(f, trace_axes=axes, vmap_axes=0, implementation=IMPLEMENTATION)
    compiled = jax.jit(lambda w, x: kernel(x, None, w))
    scale = weights[f"{layers[-1]}.bias"].size if OUTPUTS == "trace" else 1  # its trace is a mean
    return lambda: np.asarray(compiled(weights, x).block_until_ready()) * scale


if __name__ == "__main__":
    serve(prepare)
