"""``ntkit gram``, ``ntkit gram status``, ``ntkit fit``, and the files that they read."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

import ntkit
from ntkit.cli import app
from ntkit.data.tables import read_samples, read_targets
from ntkit.machine.kernels import ReLUKernel

X = np.random.default_rng(0).normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)
MODULE = """
import ntkit, torch
def kernel():
    torch.manual_seed(0)
    return ntkit.EmpiricalNTK(torch.nn.Linear(3, 2).double())
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.savez("d.npz", x=X, y=Y)
    np.savez("t.npz", x=X[:7] + 0.01, y=Y[:7])
    group = zarr.open_group("d.zarr", mode="w")
    for name, value in (("x", X), ("y", Y)):
        group.create_array(name, shape=value.shape, dtype=value.dtype, chunks=value.shape)[:] = value
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def refused(*arguments):
    """What the command says when it refuses."""
    error = run(*arguments).exception
    assert isinstance(error, ntkit.NtkitError)
    return str(error)


def test_a_matrix_is_built_and_asked_for(here):
    told = run(
        "gram", "--kernel", "ntk", "--data", "x.npy", "--folder", "k", "--tile", "15", "--dtype", "float32"
    )
    assert told.exit_code == 0 and "6 of 6 tiles" in told.output, told.output
    truth = ReLUKernel()(X).float()
    torch.testing.assert_close(ntkit.TiledKernel.open("k").dense(), truth)
    (here / "k/tiles/c/1/2").unlink()
    told = run("gram", "status", "k")
    assert (
        "5 of 6 tiles (83%" in told.output and "ReLUKernel" in told.output and "none at work" in told.output
    )
    told = run("gram", "--kernel", "ntk", "--data", "d.zarr", "--folder", "k", "--dtype", "float32")
    assert "5 of 6 tiles" in told.output and "6 of 6 tiles" in told.output
    assert (
        run("gram", "--kernel", "ntk", "--data", "x.npy", "--queries", "t.npz", "--folder", "q").exit_code
        == 0
    )
    torch.testing.assert_close(ntkit.TiledKernel.open("q").dense(), ReLUKernel()(X[:7] + 0.01, X))


def test_a_machine_is_fitted_and_scored(here):
    data = ("--data", "d.npz", "--queries", "t.npz", "--truth", "t.npz")
    told = run("fit", "--kernel", "rbf", *data, "--folder", "out")
    assert told.exit_code == 0 and "accuracy" in told.output, told.output
    assert json.loads((here / "out/fit.json").read_text())["score"] >= 0.8
    assert np.load("out/predictions.npy").shape == (7,)
    told = run("fit", "--kernel", "ntk", *data, "--folder", "other", "--task", "regression", "--alpha", "0.1")
    machine = ntkit.KernelRidge("precomputed", 0.1).fit(ReLUKernel()(X), Y)
    np.testing.assert_allclose(np.load("other/dual_coef.npy"), machine.dual_coef_, rtol=1e-6)
    assert "R squared" in told.output


@pytest.mark.slow
def test_a_kernel_of_a_module_by_processes(here):
    (here / "mymodel.py").write_text(MODULE)
    command = [sys.executable, "-m", "ntkit.cli", "gram", "--kernel", "mymodel:kernel", "--data", "x.npy"]
    options = ["--folder", "k", "--executor", "joblib", "--jobs", "2", "--tile", "10"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and "10 of 10 tiles" in done.stdout, done.stderr
    torch.manual_seed(0)
    kernel = ntkit.EmpiricalNTK(torch.nn.Linear(3, 2).double())
    torch.testing.assert_close(ntkit.TiledKernel.open("k").dense(), kernel(torch.as_tensor(X)))


def test_what_is_wrong_is_told(here):
    given = ("--kernel", "ntk", "--data", "x.npy", "--folder", "k")
    assert refused("gram") == "missing: --kernel, --data, --folder. See ntkit gram --help."
    assert "Did you mean 'ntk'" in refused("gram", "--kernel", "ntkk", *given[2:])
    assert "nothing.npy does not exist" in refused("gram", *given[:3], "nothing.npy", *given[4:])
    assert "no 'q' in it" in refused("gram", *given[:3], "d.npz:q", *given[4:])
    assert "Did you mean 'ray'" in refused("gram", *given, "--executor", "rayy")
    assert "give --executor ray" in refused("gram", *given, "--address", "auto")
    assert "not a folder of tiles" in refused("gram", "status", "nowhere")
    assert "expected a number or loo" in refused(
        "fit", *given[:3], "d.npz", "--folder", "f", "--alpha", "some"
    )
    assert "local folder" in refused("fit", *given[:3], "d.npz", "--folder", "s3://bucket/k")


def test_files_of_samples(here):
    np.savez("several.npz", images=X, labels=Y, more=X[:3])
    np.savez("one.npz", anything=X)
    for source in ("x.npy", "d.npz", "d.npz:x", "d.zarr", "d.zarr:x", "several.npz:images", "one.npz"):
        np.testing.assert_array_equal(np.asarray(read_samples(source)), X)
    for source in ("d.npz", "d.zarr", "several.npz", "d.npz:y"):
        np.testing.assert_array_equal(read_targets(source), Y)
    assert isinstance(read_samples("x.npy"), np.memmap)
    (here / "torn.npz").write_bytes((here / "d.npz").read_bytes()[:200])
    (here / "note.txt").write_text("x")
    for source, message in {
        "several.npz": "name one of them",
        "d.npz:z": r"no 'z' in it, but \['x', 'y'\]",
        "torn.npz": "cannot be read",
        "note.txt": "expected a file .npy, .npz or .parquet",
        "none.npz": "does not exist",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_samples(source)


def test_tables(here):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="pandas reads parquet with it: pip install pyarrow")
    pandas.DataFrame(X, columns=["a", "b", "c"]).assign(y=Y).to_parquet("d.parquet")
    np.testing.assert_array_equal(np.asarray(read_samples("d.parquet")), X)
    np.testing.assert_array_equal(np.asarray(read_samples("d.parquet:b")), X[:, 1:2])
    np.testing.assert_array_equal(read_targets("d.parquet"), Y)
    with pytest.raises(ValueError, match="no 'z' in it"):
        read_targets("d.parquet:z")
