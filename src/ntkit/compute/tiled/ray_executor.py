"""Tiles as tasks of Ray, on this machine or on a cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np

from ntkit.compute.tiled.store import Tile
from ntkit.compute.tiled.turns import turn
from ntkit.compute.tiled.work import Made, Work, known
from ntkit.errors import BadValueError, NtkitError, TileError, one_of, real

AHEAD = 1  # tasks that wait for a processor, for each one that is computed, so that none is idle
SHARE = 0.5  # of Ray's object store that tiles on their way may take


class RayExecutor:
    """Tiles as tasks of Ray; the kernel and the samples are sent to each machine once.

    Parameters
    ----------
    num_cpus, num_gpus : float
        What a task needs. With GPUs the kernel is moved to the one that Ray gives.
    address : str, optional
        A running cluster: ``"auto"`` or ``"ray://host:10001"``. Without it, the one that this process is
        connected to, else Ray is started on this machine.
    shared : bool or "auto"
        Whether all machines see the folder, so that they write tiles themselves; else tiles come back to this
        process, which writes them. "auto": where all are this one. Addresses such as ``s3://`` are shared.

    Raises
    ------
    NtkitError
        Ray is not installed (``pip install 'ntkit[ray]'``); a task that needs more than the cluster has.

    Notes
    -----
    A lost worker or machine costs the tiles that it was making, which are made again, up to three times each.
    Of Ray's object store, tiles on their way take at most half. Where a machine runs more tasks than it has
    processors, they take turns at computing.

    Examples
    --------
    >>> import ntkit
    >>> ntkit.RayExecutor(num_cpus=2)
    RayExecutor(num_cpus=2, num_gpus=0, address=None, shared='auto')
    """

    alone: ClassVar[bool] = True

    def __init__(
        self,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
        shared: bool | Literal["auto"] = "auto",
    ) -> None:
        for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            real(name, value, "a number that is not negative", lambda v: 0 <= v < float("inf"))
        if num_cpus == num_gpus == 0:
            raise BadValueError("num_cpus=0 and num_gpus=0; a task must need something.")
        one_of("shared", shared, (True, False, "auto"))
        self.num_cpus, self.num_gpus, self.address, self.shared = num_cpus, num_gpus, address, shared

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"RayExecutor({arguments})"

    @property
    def device(self) -> str | None:
        """The type of device that tiles are computed on."""
        return "cuda" if self.num_gpus else None

    def run(self, work: Work, tiles: Iterator[Tile]) -> Iterator[Made]:
        """Make tiles, and yield each that is written, or at which a process or machine was lost."""
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        writes = work.store.root is None or (
            _on_this_machine() if self.shared == "auto" else self.shared is True
        )
        remote = ray.remote(_make).options(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0, retry_exceptions=False
        )
        handed = [ray.put(work)]  # in a list, so that a task that knows it already does not fetch it
        under_way: dict[object, Tile] = {}
        try:
            for tile in tiles:
                under_way[remote.remote(work.token, handed, tile, writes, self.device)] = tile
                while len(under_way) >= self._most(work, writes):
                    yield from self._finished(work, under_way)
            while under_way:
                yield from self._finished(work, under_way)
        finally:
            for ref in under_way:
                ray.cancel(ref, force=True)

    def _most(self, work: Work, writes: bool) -> int:
        """Return how many tasks are under way at most: as many as run at a time, and some that wait."""
        ray = _ray()
        have = ray.cluster_resources()
        slots = [
            int(have.get(name, 0) / need)
            for name, need in (("CPU", self.num_cpus), ("GPU", self.num_gpus))
            if need
        ]
        if min(slots) < 1:
            raise BadValueError(
                f"A task needs num_cpus={self.num_cpus:g} and num_gpus={self.num_gpus:g}, and the cluster "
                f"has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs. Ask for less."
            )
        most = min(slots) + max(1, int(AHEAD * min(slots)))
        if not writes:
            room = SHARE * have.get("object_store_memory", float("inf")) / work.store.layout.bytes
            most = min(most, max(1, int(min(room, 1e9))))
        return most

    def _finished(self, work: Work, under_way: dict[object, Tile]) -> Iterator[Made]:
        ray = _ray()
        done, _ = ray.wait(list(under_way), num_returns=1)
        for ref in done:
            tile = under_way.pop(ref)
            try:
                block = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # what the kernel or the disk raised, there
            except ray.exceptions.RayError as error:
                yield Made(tile, _first_line(error))
                continue
            if block is not None:
                work.store.write(tile, block)
            elif not work.store.has(tile):
                raise TileError(
                    f"A task wrote the tile {tile} where this machine does not see it: {work.store} is not "
                    f"shared. Give RayExecutor(..., shared=False)."
                )
            yield Made(tile)


def _make(token: str, handed: list[object], tile: Tile, write: bool, device: str | None) -> np.ndarray | None:
    def load() -> Work:
        work = _ray().get(handed[0])
        if device is not None:
            work.maker.move(device)
        return work

    work = known(token, load)
    with turn() if device is None else nullcontext():
        block = work.maker.make(tile).numpy()  # which processes share, and tensors they do not
    if not write:
        return block
    work.store.write(tile, block)
    return None


def _on_this_machine() -> bool:
    hosts = {node["NodeManagerHostname"] for node in _ray().nodes() if node["Alive"]}
    return hosts == {socket.gethostname()}


def _ray() -> ModuleType:
    try:
        import_module("ray.exceptions")
        return import_module("ray")
    except ImportError as error:
        raise NtkitError("Ray is not installed: pip install 'ntkit[ray]'.") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
