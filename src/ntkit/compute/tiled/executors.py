"""Who makes tiles: this process, or several of joblib's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np

from ntkit.compute.threads import passive_workers
from ntkit.compute.tiled.ray_executor import RayExecutor
from ntkit.compute.tiled.store import Tile
from ntkit.compute.tiled.work import Executor, Made, Work, known
from ntkit.errors import BadTypeError, BadValueError, one_of, whole
from ntkit.files import Scratch

GROWTH = 2**34  # bytes


class InProcess:
    """Tiles one after the other in this process, each written while the next is computed."""

    alone: ClassVar[bool] = True
    device = None

    def run(self, work: Work, tiles: Iterator[Tile]) -> Iterator[Made]:
        """Make tiles, and yield each that is written."""
        with ThreadPoolExecutor(1) as writer:
            last: tuple[Tile, Future[None]] | None = None
            for tile in tiles:
                block = work.maker.make(tile)
                if last is not None:
                    last[1].result()
                    yield Made(last[0])
                last = tile, writer.submit(work.store.write, tile, block.numpy())
            if last is not None:
                last[1].result()
                yield Made(last[0])


class JoblibExecutor:
    """Tiles in processes of joblib, on this machine or, under its Dask backend, on others.

    Parameters
    ----------
    n_jobs : int, optional
        The number of processes, -1 for as many as there are processors; None for what
        ``joblib.parallel_config`` says, else -1.

    Examples
    --------
    >>> import ntkit
    >>> ntkit.JoblibExecutor(n_jobs=2)
    JoblibExecutor(n_jobs=2)
    """

    alone: ClassVar[bool] = False
    device = None

    def __init__(self, n_jobs: int | None = None) -> None:
        if n_jobs is not None and n_jobs != -1:
            whole("n_jobs", n_jobs)
        self.n_jobs = n_jobs

    def __repr__(self) -> str:
        return f"JoblibExecutor(n_jobs={self.n_jobs})"

    def run(self, work: Work, tiles: Iterator[Tile]) -> Iterator[Made]:
        """Make tiles, and yield each that is written; where a process died, all that were under way."""
        import joblib
        from joblib.externals.loky.process_executor import BrokenProcessPool
        from joblib.parallel import get_active_backend

        backend, active = get_active_backend()
        if getattr(backend, "supports_sharedmem", False):
            raise BadValueError(
                f"joblib's backend {type(backend).__name__} computes in threads, of which kernels take one "
                f"at a time; use 'loky' or 'dask'."
            )
        local = type(backend).__name__ in ("LokyBackend", "MultiprocessingBackend")
        jobs = (active if active not in (None, 1) else -1) if self.n_jobs is None else self.n_jobs
        under_way: dict[Tile, None] = {}
        scratch = Scratch("tiles") if local else None
        source: Work | Path = work if scratch is None else dumped(work, scratch.path)
        wanted = local or work.store.root is None  # whether processes write; else what they made comes back

        def handed() -> Iterator[object]:
            for tile in tiles:
                under_way[tile] = None
                yield joblib.delayed(_make)(work.token, source, tile, wanted, os.getpid())

        try:
            with passive_workers():
                pool = joblib.Parallel(
                    n_jobs=jobs,
                    return_as="generator_unordered",
                    batch_size=1,  # pyright: ignore[reportArgumentType]
                    pre_dispatch="n_jobs + 1",
                )
                for tile, block in pool(handed()):  # pyright: ignore[reportGeneralTypeIssues]
                    if block is not None:
                        work.store.write(tile, block)
                    del under_way[tile]
                    yield Made(tile)
        except BrokenProcessPool as error:
            deaths = [Made(tile, str(error).partition("\n")[0]) for tile in under_way]
            yield from deaths
        finally:
            if scratch is not None:
                scratch.remove()


def dumped(work: Work, folder: Path) -> Path:
    """Write what processes of this machine need into a folder of temporary files, which they share."""
    import joblib

    path = folder / "work"
    joblib.dump(work, path)
    return path


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: loky's would wait for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _keep_worker() -> None:
    """Let this worker of loky grow: it ends those that grew by 300 MB, which a few tiles do.

    The one that takes its place would load torch again.
    """
    from joblib.externals.loky import process_executor

    if hasattr(process_executor, "_MAX_MEMORY_LEAK_SIZE"):
        process_executor._MAX_MEMORY_LEAK_SIZE = GROWTH  # pyright: ignore[reportPrivateUsage]


def _make(
    token: str, source: Work | Path, tile: Tile, write: bool, parent: int
) -> tuple[Tile, np.ndarray | None]:
    import joblib

    def load() -> Work:
        if not isinstance(source, Path):
            return source
        if os.getpid() != parent:
            _keep_worker()
            if os.name == "posix":
                _end_with(parent)
        return joblib.load(source, mmap_mode="r")

    work = known(token, load)
    if not write:
        return tile, work.maker.make(tile).numpy()
    work.make(tile)
    return tile, None


def as_executor(executor: object) -> Executor:
    """Return who makes tiles: None for this process, ``"joblib"``, ``"ray"``, or an executor."""
    if executor is None:
        return InProcess()
    if isinstance(executor, str | bytes):
        one_of("executor", executor, ("joblib", "ray"))
        return JoblibExecutor() if executor == "joblib" else RayExecutor()
    if not callable(getattr(executor, "run", None)):
        raise BadTypeError(
            f"executor={executor!r}; expected None, 'joblib', 'ray', ntkit.JoblibExecutor(n_jobs) or "
            f"ntkit.RayExecutor(...)."
        )
    return executor  # pyright: ignore[reportReturnType]
