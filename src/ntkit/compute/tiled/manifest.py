"""What a folder of tiles is of: written when it begins, compared whenever it is opened."""

from __future__ import annotations

import sys

import numpy as np
import torch

from ntkit.compute.tiled.store import TileStore
from ntkit.errors import BadValueError, TileError
from ntkit.files import Json, sealed, unsealed
from ntkit.version import __version__

MANIFEST = "manifest.json"
FORMAT = 1
VALUES = "values"  # of the kernel at the first samples, compared up to rounding
_CLOSE = {"float32": 1e-4, "float64": 1e-9}  # of values, relative: machines round differently
_SHOWN = 5


def versions() -> Json:
    """Return the versions that the bits of a tile hang on."""
    return {"ntkit": __version__, "torch": torch.__version__, "numpy": np.__version__}


def begin(store: TileStore, content: Json) -> Json:
    """Write the manifest of a new folder, or compare with that of an old one; return the one that holds."""
    whole = {"format": FORMAT, **content}
    if read(store) is None:
        for tile in store.stored():
            raise TileError(
                f"{store} holds tile {tile} but no {MANIFEST}: nothing says of which kernel. Restore it "
                f"from a copy, or give another folder."
            )
        store.create(MANIFEST, sealed(whole))
    held = read(store)
    assert held is not None
    compare(held, whole, str(store))
    return held


def read(store: TileStore) -> Json | None:
    """Return the manifest of a folder, checked; None where there is none."""
    there = store.root is None or store.root.exists()  # zarr makes folders that it reads
    data = store.get(MANIFEST) if there else None
    if data is None:
        return None
    try:
        content = unsealed(data)
    except ValueError:
        content = None
    if content is None:
        raise TileError(
            f"{MANIFEST} in {store} was edited or damaged: it does not match its own hash. Restore it from a "
            f"copy, or build in another folder."
        )
    if content["format"] != FORMAT:
        raise TileError(
            f"{store} has format {content['format']}, this ntkit reads {FORMAT}. Use the version of ntkit "
            f"that wrote it ({content['versions']['ntkit']})."
        )
    return content


def compare(held: Json, given: Json, where: str) -> None:
    """Refuse another kernel, other data or another layout than those of a folder, by name."""
    one, two = flat(held), flat(given)
    apart = [name for name in dict.fromkeys([*one, *two]) if not _same(name, one, two)]
    if not apart:
        return
    rows = [f"  {name}: {one.get(name, 'not there')}, now {two.get(name, 'not there')}" for name in apart]
    if len(rows) > _SHOWN:
        rows[_SHOWN:] = [f"  and {len(rows) - _SHOWN} more"]
    changed = {name.partition(".")[0].partition("[")[0] for name in apart}
    what = " and ".join(sorted(changed - {VALUES}) or ["kernel"])
    raise BadValueError(
        f"{where} holds tiles of another {what}:\n" + "\n".join(rows) + "\nGive what it was begun with, or "
        "another folder."
    )


def compare_versions(held: Json, where: str) -> None:
    """Refuse to add tiles with other versions than those of a folder: their bits may differ."""
    old, new = held["versions"], versions()
    apart = [f"{name} {old.get(name)}, now {new[name]}" for name in new if old.get(name) != new[name]]
    if apart:
        raise TileError(
            f"{where} was begun with {'; '.join(apart)}: tiles would differ in rounding. What is there can "
            f"be read; to add tiles, use those versions, or build in another folder."
        )


def flat(content: Json) -> dict[str, object]:
    """Return what is compared of a manifest, by name."""
    parts = {k: v for k, v in content.items() if k not in ("format", "versions", "kernel", "data", "python")}
    return {**content["kernel"], **content["data"], **parts}


def _same(name: str, one: dict[str, object], two: dict[str, object]) -> bool:
    if name != VALUES:
        return one.get(name) == two.get(name)
    a, b = (np.asarray(side[VALUES], dtype=float) for side in (one, two))
    close = _CLOSE.get(str(one["dtype"]), 1e-4)
    return a.shape == b.shape and bool(
        np.abs(a - b).max() <= close * max(np.abs(a).max(), sys.float_info.min)
    )
