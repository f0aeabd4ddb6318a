"""Where a wrong value can be given for a matrix in tiles, and for who makes them."""

from __future__ import annotations

from functools import cache
from typing import Any

from wrong_places import SECOND, Call
from wrong_setting import PLACE, Thing, data, ntk
from wrong_values import KINDS, Bad, near, values

import ntkit


def tiled(kernel: Any = None, x1: Any = None, *more: Any, **given: Any) -> ntkit.TiledKernel:
    folder = given.pop("folder", PLACE["root"] / "tiles")
    kernel, x1 = ntk() if kernel is None else kernel, data()[0] if x1 is None else x1
    return ntkit.TiledKernel(kernel, x1, *more, folder=folder, **given)


@cache
def built() -> ntkit.TiledKernel:
    return ntkit.TiledKernel(ntk(), data()[0], folder=PLACE["root"] / "built").build()


NONE = [b for b in KINDS["batch"] if b.label != "None"]
TILES: dict[str, tuple[str | list[Bad], Call]] = {
    "TiledKernel kernel": (
        [b for b in KINDS["kernel"] if b.label != "None"],
        lambda v: tiled(v),
    ),
    "TiledKernel x1": (NONE, lambda v: tiled(None, v)),
    "TiledKernel x2": (SECOND, lambda v: tiled(None, None, v)),
    "TiledKernel folder": (values(3.5, None, ["k"], Thing()), lambda v: tiled(folder=v)),
    "TiledKernel tile": (values(0, -1, 1.5, "3", True, "aut"), lambda v: tiled(tile=v)),
    "TiledKernel dtype": (near("float32", "int8", 32), lambda v: tiled(dtype=v)),
    "TiledKernel executor": (
        [*near("joblib", 3), Bad("a thing", Thing, "a thing")],
        lambda v: tiled(executor=v),
    ),
    "TiledKernel.open": (values(3.5, None, "nowhere"), lambda v: ntkit.TiledKernel.open(v)),
    "TiledKernel.build check": ("flag", lambda v: built().build(check=v)),
    "TiledKernel array": (
        values("a", 1.5, (1, 2, 3), None),
        lambda v: built().array[v],
    ),
    "JoblibExecutor n_jobs": (values(0, -2, 1.5, "2", True), lambda v: ntkit.JoblibExecutor(v)),
    "RayExecutor num_cpus": (values(-1, "1", None, float("nan")), lambda v: ntkit.RayExecutor(v)),
    "RayExecutor num_gpus": (values(-1, "1", None, float("inf")), lambda v: ntkit.RayExecutor(1, v)),
    "RayExecutor shared": ("flag", lambda v: ntkit.RayExecutor(shared=v)),
}
