"""The commands of stored matrices: ``ntkit gram``, ``ntkit gram status`` and ``ntkit fit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntkit.errors import BadValueError, one_of

if TYPE_CHECKING:
    import numpy as np

    from ntkit.compute.tiled.work import Executor
    from ntkit.inputs import Inputs
    from ntkit.kernel import Kernel

gram = typer.Typer(
    invoke_without_command=True, rich_markup_mode=None, help="Kernel matrices as tiles on disk."
)

KERNEL = "module:factory, which returns a kernel or a limit, or a name: ntk, nngp, rbf, laplace."
FILES = "A file .npy, .npz or .parquet, or a folder of zarr; data.npz:name for one of several arrays."
Kernel_ = Annotated[str, typer.Option("--kernel", help=KERNEL)]
Data = Annotated[str, typer.Option(help=f"The samples. {FILES}")]
Folder = Annotated[str, typer.Option(help="A folder, or an address such as s3://bucket/kernel.")]
Depth = Annotated[int, typer.Option(help="Hidden layers of ntk and nngp.")]
Tile = Annotated[int, typer.Option(help="Samples of a tile along each side; 0: chosen.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64; the kernel's own if left out.")]
Who = Annotated[str, typer.Option(help="Who makes tiles: process, joblib or ray.")]
Jobs = Annotated[int, typer.Option(help="Processes of joblib; -1: one for each processor.")]
Address = Annotated[str, typer.Option(help="A running cluster of Ray; without it one is started here.")]
Gpus = Annotated[float, typer.Option(help="GPUs that a task of Ray needs; the kernel is moved there.")]


@gram.callback()
def build(
    context: typer.Context,
    kernel: Kernel_ = "",
    data: Data = "",
    folder: Folder = "",
    queries: Annotated[str, typer.Option(help="Other samples: the matrix is k(queries, data).")] = "",
    depth: Depth = 3,
    tile: Tile = 0,
    dtype: Dtype = "",
    executor: Who = "process",
    jobs: Jobs = -1,
    address: Address = "",
    gpus: Gpus = 0.0,
) -> None:
    """Build a kernel matrix as tiles in a folder; killed, the same command goes on.

    For example, with a file mymodel.py that has a function kernel():

    ntkit gram --kernel mymodel:kernel --data train.npy --folder gram --executor ray --address auto
    """
    if context.invoked_subcommand is not None:
        return
    _required({"--kernel": kernel, "--data": data, "--folder": folder}, "ntkit gram")
    from ntkit.data.tables import read_samples

    x = read_samples(data)
    made = kernel_named(kernel, x, depth)
    who = _executor(executor, jobs, address, gpus)
    options = {"folder": folder, "tile": tile or "auto", "dtype": dtype or None, "executor": who}
    from ntkit.compute.tiled.kernel import TiledKernel

    first, second = (read_samples(queries, "--queries"), x) if queries else (x, None)
    tiled = TiledKernel(made, first, second, **options)  # pyright: ignore[reportArgumentType]
    typer.echo(f"{tiled}: {tiled.progress} were there")
    tiled.build()
    typer.echo(f"{tiled.progress}")


@gram.command()
def status(folder: Annotated[str, typer.Argument(help="The folder or address of the tiles.")]) -> None:
    """Say what a folder holds, how much of it is there, who builds, and the time left."""
    from ntkit.compute.tiled.kernel import TiledKernel
    from ntkit.compute.tiled.status import status_of

    for name, value in status_of(TiledKernel.open(folder)):
        typer.echo(f"{name:<12}{value}")


def fit(
    kernel: Kernel_ = "",
    data: Data = "",
    folder: Folder = "",
    targets: Annotated[str, typer.Option(help=f"The targets, of the data's file if left out. {FILES}")] = "",
    queries: Annotated[str, typer.Option(help="Samples to predict, written to predictions.npy.")] = "",
    truth: Annotated[str, typer.Option(help="Targets of the queries, which gives a score.")] = "",
    task: Annotated[str, typer.Option(help="auto, regression or classification.")] = "auto",
    alpha: Annotated[str, typer.Option(help="The penalty, or loo: chosen by leave-one-out.")] = "loo",
    depth: Depth = 3,
    tile: Tile = 0,
    dtype: Dtype = "",
    executor: Who = "process",
    jobs: Jobs = -1,
    address: Address = "",
    gpus: Gpus = 0.0,
) -> None:
    """Fit kernel ridge regression, or a classifier, on a matrix in a folder, which is built or gone on with.

    The folder gets fit.json, dual_coef.npy and, with --queries, predictions.npy. The kernel sees the samples
    as they are. For example:

    ntkit fit --kernel ntk --data train.npz --queries test.npz --folder out
    """
    _required({"--kernel": kernel, "--data": data, "--folder": folder}, "ntkit fit")
    import numpy as np

    from ntkit.compute.tiled.kernel import TiledKernel
    from ntkit.data.tables import read_samples, read_targets
    from ntkit.files import write_array, write_atomically

    if "://" in folder:
        raise BadValueError(f"--folder {folder}: what is fitted is written beside it; give a local folder.")
    one_of("--task", task, ("auto", "regression", "classification"))
    x, y = read_samples(data), read_targets(targets or data)
    made, who = kernel_named(kernel, x, depth), _executor(executor, jobs, address, gpus)
    options = {"tile": tile or "auto", "dtype": dtype or None, "executor": who}
    out = Path(folder)
    train = TiledKernel(made, x, folder=out / "train", **options).build()  # pyright: ignore[reportArgumentType]
    typer.echo(f"{train}")
    machine = _machine(task, y, alpha).fit(train, y)  # pyright: ignore[reportArgumentType]
    write_array(out / "dual_coef.npy", np.asarray(machine.dual_coef_))
    record: dict[str, object] = {"kernel": kernel, "data": data, "estimator": repr(machine)}
    if queries:
        z = read_samples(queries, "--queries")
        cross = TiledKernel(made, z, x, folder=out / "queries", **options).build()  # pyright: ignore[reportArgumentType]
        write_array(out / "predictions.npy", np.asarray(machine.predict(cross)))  # pyright: ignore[reportArgumentType]
        if truth:
            score = float(machine.score(cross, read_targets(truth, "--truth")))  # pyright: ignore
            record["score"] = score
            name = "accuracy" if type(machine).__name__ == "KernelClassifier" else "R squared"
            typer.echo(f"{name:<12}{score:.4f}")
    write_atomically(out / "fit.json", (json.dumps(record, indent=1) + "\n").encode())
    typer.echo(f"{'written to':<12}{out}")


def kernel_named(name: str, x: Inputs, depth: int) -> Kernel:
    """Return the kernel of a name, or what ``module:factory`` returns, called without arguments."""
    from ntkit.machine.distances import DistanceKernel, median_distance
    from ntkit.machine.kernels import ReLUKernel, as_kernel
    from ntkit.report.run_page import called

    if ":" in name:
        return as_kernel(called(name, "--kernel"))
    one_of("--kernel", name, ("ntk", "nngp", "rbf", "laplace", "module:factory"))
    if name in ("ntk", "nngp"):
        return ReLUKernel(depth, kind=name)  # pyright: ignore[reportArgumentType]
    import numpy as np

    few = np.asarray(x[:1000], dtype=float)  # pyright: ignore
    return DistanceKernel(name, median_distance(few))  # pyright: ignore[reportArgumentType]


def _machine(task: str, y: np.ndarray, alpha: str):
    from ntkit.machine.classifier import KernelClassifier
    from ntkit.machine.ridge import KernelRidge

    try:
        penalty: float | str = alpha if alpha == "loo" else float(alpha)
    except ValueError as error:
        raise BadValueError(f"--alpha {alpha}; expected a number or loo.") from error
    classes = y.dtype.kind in "iubOUST" if task == "auto" else task == "classification"
    if classes:
        return KernelClassifier("precomputed", alpha=penalty)
    return KernelRidge("precomputed", alpha=penalty)


def _executor(name: str, jobs: int, address: str, gpus: float) -> Executor | None:
    from ntkit.compute.tiled.executors import JoblibExecutor
    from ntkit.compute.tiled.ray_executor import RayExecutor

    one_of("--executor", name, ("process", "joblib", "ray"))
    if name != "ray" and (address or gpus):
        raise BadValueError("--address and --gpus are of Ray: give --executor ray.")
    if name == "joblib":
        return JoblibExecutor(jobs)
    return RayExecutor(num_gpus=gpus, address=address or None) if name == "ray" else None


def _required(options: dict[str, str], command: str) -> None:
    missing = [name for name, value in options.items() if not value]
    if missing:
        raise BadValueError(f"missing: {', '.join(missing)}. See {command} --help.")
