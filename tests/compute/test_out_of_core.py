"""Solvers on tiles against dense float64 solutions."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiles_in_memory import InMemory

import ntkit
from ntkit.compute.cg import conjugate_gradients, low_rank_inverse
from ntkit.compute.eigen import leading
from ntkit.compute.out_of_core import costs
from ntkit.compute.out_of_core.blocked import BlockedCholesky
from ntkit.compute.out_of_core.checkpoint import Checkpoint
from ntkit.compute.out_of_core.functions import matrix_functions
from ntkit.compute.out_of_core.in_place import InPlaceCholesky
from ntkit.compute.out_of_core.refine import refined
from ntkit.compute.out_of_core.source import TiledMatrix
from ntkit.compute.pivoted import pivoted_cholesky
from ntkit.machine.kernels import ReLUKernel

N, TILE, WIDTH = 233, 50, 40  # no multiples of each other


@pytest.fixture(scope="module")
def gram():
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(N, 4)))
    return ReLUKernel()(x)


@pytest.fixture
def b():
    return torch.as_tensor(np.random.default_rng(1).normal(size=(N, 3)))


def factored(kind, source, shift, folder, **options):
    if kind == "in place":
        return InPlaceCholesky(source, shift, folder, {"matrix": "a"}, width=WIDTH, **options)
    memory = int(WIDTH * N * source.dtype.itemsize / 0.7) + source.dtype.itemsize * 70
    return BlockedCholesky(source, shift, folder, {"matrix": "a"}, memory=2 * memory, **options)


@pytest.mark.parametrize("kind", ["in place", "from disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor_solves_as_the_dense_matrix_does(kind, dtype, gram, b, tmp_path):
    source = InMemory(gram.to(dtype), TILE)
    whole = source.values.double()  # what is stored is the matrix, rounded or not
    shift = 2e-3 * float(whole.diagonal().mean())
    factor = factored(kind, source, shift, tmp_path)
    system = whole + shift * torch.eye(N, dtype=torch.float64)
    exact = torch.linalg.solve(system, b)
    eps = torch.finfo(dtype).eps
    assert float((factor.solve(b) - exact).norm() / exact.norm()) < 1e3 * eps * factor.n**0.5
    assert factor.logdet == pytest.approx(float(torch.linalg.slogdet(system)[1]), rel=1e3 * eps)
    half = factor.half(b).double()
    torch.testing.assert_close(half.T @ half, b.T @ exact, rtol=3e4 * eps, atol=3e4 * eps)
    matrix = factor if kind == "in place" else TiledMatrix(source, 0)
    found = refined(matrix, factor, b, 1e-12)
    assert found.converged
    torch.testing.assert_close(found.x, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


def test_buffer_keeps_the_matrix(gram, b, tmp_path):
    source = InMemory(gram, TILE)
    factor = factored("in place", source, 0.1, tmp_path)
    torch.testing.assert_close(factor @ b, gram @ b, rtol=1e-12, atol=1e-12)
    index = torch.tensor([0, 7, N - 1])
    assert torch.equal(factor.columns(index), gram[:, index]) and torch.equal(factor.diag(), gram.diagonal())
    assert torch.equal(factor.values.triu(1), gram.triu(1))
    torch.testing.assert_close(
        factor.values.tril(),
        torch.linalg.cholesky(gram + 0.1 * torch.eye(N, dtype=torch.float64)),
        rtol=1e-10,
        atol=1e-10,
    )


def test_refinement_hands_over_to_conjugate_gradients(gram, b, tmp_path):
    source = InMemory(gram, TILE)
    factor = factored("in place", source, 1.0, tmp_path)
    factor.shift = 0.05  # the factor of a matrix far from this one: a step of refinement does not halve
    exact = torch.linalg.solve(gram + 0.05 * torch.eye(N, dtype=torch.float64), b)
    found = refined(factor, factor, b, 1e-7)
    assert found.converged and found.iterations > 3
    residual = (b - (gram @ found.x + 0.05 * found.x)).norm(dim=0) / b.norm(dim=0)
    assert float(residual.max()) < 1e-7
    torch.testing.assert_close(found.x, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", ["in place", "from disk"])
def test_factor_goes_on_with_the_same_bits(kind, gram, tmp_path):
    source = InMemory(gram.float(), TILE)
    shift = 2e-3 * float(gram.diagonal().mean())

    class Stop(Exception):
        pass

    def stop(k, count):
        if k == 2:
            raise Stop

    whole = factored(kind, source, shift, tmp_path / "whole")
    with pytest.raises(Stop):
        factored(kind, source, shift, tmp_path / "part", report=stop)
    (tmp_path / "part" / ".column-00002.torn").write_bytes(b"x")  # as a killed process leaves it
    done = []
    again = factored(kind, source, shift, tmp_path / "part", report=lambda k, count: done.append(k))
    assert again.resumed == 2 and done == list(range(3, again.count + 1))
    for k in range(whole.count):
        assert (tmp_path / "whole" / f"column-{k:05d}").read_bytes() == again.files.path(k).read_bytes()
    assert not list((tmp_path / "part").glob(".column-*"))


def test_damaged_column_is_made_again(gram, tmp_path):
    source = InMemory(gram, TILE)
    factor = factored("in place", source, 0.1, tmp_path)
    path = factor.files.path(3)
    good = path.read_bytes()
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    again = factored("in place", source, 0.1, tmp_path)
    assert again.resumed == 3 and path.read_bytes() == good and torch.equal(again.values, factor.values)


def test_refusals(gram, tmp_path):
    source = InMemory(gram.float(), TILE)
    with pytest.raises(ntkit.NtkitError, match=r"ridge of at least 0\.001 of the mean diagonal"):
        factored("in place", source, 1e-6, tmp_path / "a")
    factored("in place", source, 0.1, tmp_path / "b")
    with pytest.raises(ntkit.NtkitError, match="differs in shift"):
        factored("in place", source, 0.2, tmp_path / "b")
    bad = InMemory(gram - 3 * torch.eye(N, dtype=torch.float64), TILE)
    with pytest.raises(ntkit.NtkitError, match=r"pivot \d+ is not positive"):
        factored("in place", bad, 0.1, tmp_path / "c")
    with pytest.raises(ntkit.NtkitError, match="expected room for 64"):
        BlockedCholesky(source, 0.1, tmp_path / "d", {}, memory=1000)
    with pytest.raises(ntkit.NtkitError, match=f"expected {N}"):
        TiledMatrix(source) @ torch.ones(N + 1, 1)


@pytest.mark.parametrize("memory", [0, 6 * TILE**2 * 8, 2**30])
def test_products_stream_what_is_not_kept(memory, gram, b):
    source = InMemory(gram, TILE)
    matrix = TiledMatrix(source, memory)
    for _ in range(3):
        torch.testing.assert_close(matrix @ b, gram @ b, rtol=1e-12, atol=1e-12)
    tiles = len(list(source.tiles))
    assert source.reads == 3 * tiles - 2 * matrix.kept  # what is kept is read once
    assert matrix.kept == {0: 0, 2**30: tiles}.get(memory, matrix.kept) and matrix.kept * TILE**2 * 8 <= max(
        memory, 8 * gram.numel()
    )
    index = torch.tensor([3, 60, 3, N - 1])
    assert torch.equal(matrix.columns(index), gram[:, index])
    assert torch.equal(matrix.submatrix(index), gram[index][:, index])
    assert torch.equal(matrix.diag(), gram.diagonal())


def test_iterative_solvers_take_tiles(gram, b):
    matrix = TiledMatrix(InMemory(gram, TILE), 0)
    low = pivoted_cholesky(matrix, 40, block=10)
    found = conjugate_gradients(matrix, b, 0.5, precondition=low_rank_inverse(low, 0.5), tol=1e-11)
    exact = torch.linalg.solve(gram + 0.5 * torch.eye(N, dtype=torch.float64), b)
    torch.testing.assert_close(found.x, exact, rtol=1e-8, atol=1e-10)
    values, vectors = leading(matrix, 3)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(gram).flip(0)[:3])
    torch.testing.assert_close(gram @ vectors, vectors * values)


def test_conjugate_gradients_go_on_with_the_same_bits(gram, b, tmp_path):
    class Killed(Exception):
        pass

    class Dies(TiledMatrix):
        left = 10

        def __matmul__(self, v):
            self.left -= 1
            if not self.left:
                raise Killed
            return super().__matmul__(v)

    source, options = InMemory(gram, TILE), {"tol": 1e-9, "shift": 0.5}
    whole = conjugate_gradients(TiledMatrix(source), b, **options)
    kept = Checkpoint(tmp_path / "folder" / "state", "a", often=0.0)
    with pytest.raises(Killed):
        conjugate_gradients(Dies(source), b, kept=kept, **options)
    rest = TiledMatrix(source)
    again = conjugate_gradients(rest, b, kept=kept, **options)
    assert torch.equal(again.x, whole.x) and again.iterations == whole.iterations
    assert Checkpoint(kept.path, "another").load() is None
    data = bytearray(kept.path.read_bytes())
    data[-3] ^= 1
    kept.path.write_bytes(data)
    assert kept.load() is None  # damaged: it begins anew
    kept.remove()
    assert kept.load() is None


def test_functions_of_a_matrix(gram, b):
    values, vectors = torch.linalg.eigh(gram)
    functions = [lambda v: torch.exp(-v), lambda v: 1 / (1 + v)]
    found = matrix_functions(TiledMatrix(InMemory(gram, TILE), 2**30), functions, b, 1e-13)
    for g, x in zip(functions, found, strict=True):
        torch.testing.assert_close(x, vectors @ (g(values)[:, None] * (vectors.T @ b)), rtol=0, atol=1e-10)
    with pytest.raises(ntkit.NtkitError, match="degree above"):
        matrix_functions(TiledMatrix(InMemory(gram, TILE), 2**30), [lambda v: (v > 1).double()], b)


def test_costs_are_those_of_the_algorithms():
    n, machine = 60_000, costs.Machine("a machine", 2e11, 1e11, 1e10)
    cost = costs.cholesky_in_place(n, 4, 10, 0)
    assert cost.flops == pytest.approx(7.2e13) and cost.held == pytest.approx(
        14.4e9 + 2 * costs.WIDTH * n * 4
    )
    assert cost.seconds(machine, 4) == pytest.approx(360 + 2.88 + 2 * 7.2e9 / costs.DISK, rel=1e-3)
    streamed = costs.product(20_000, 4, 1, 2e8)
    assert streamed.read == pytest.approx(8e8 - 2e8, rel=1e-3)
    whole = costs.conjugate_gradients(20_000, 4, 1, 8e9)
    assert whole.read == pytest.approx(8e8, rel=1e-3)  # once


SCRIPT = """
import json, sys, time
from pathlib import Path
import torch, ntkit
from ntkit.compute.out_of_core.blocked import BlockedCholesky
from ntkit.compute.out_of_core.in_place import InPlaceCholesky
from ntkit.machine.kernels import ReLUKernel
torch.set_num_threads(1)
kind, folder = sys.argv[1], Path(sys.argv[2])
x = torch.randn(2500, 6, generator=torch.Generator().manual_seed(0)).double()
tiled = ntkit.TiledKernel(ReLUKernel(), x, folder=folder / "tiles", tile=500, dtype="float32").build()
print("built", flush=True)
def report(k, count):
    print(k, flush=True)
if kind == "in place":
    f = InPlaceCholesky(tiled, 0.1, folder / "factor", {}, width=100, report=report)
else:
    f = BlockedCholesky(tiled, 0.1, folder / "factor", {}, memory=2**21, report=report)
print(json.dumps([f.resumed, f.count]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["in place", "from disk"])
def test_killed_in_the_middle_it_goes_on(kind, tmp_path):
    """Killed ten times at random points of build and solve: the same bits, and only the rest is done."""

    def started(folder):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, kind, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )

    begin = time.monotonic()
    whole = started(tmp_path / "whole")
    lines = whole.communicate()[0].split("\n")
    took = time.monotonic() - begin
    assert whole.returncode == 0
    count = json.loads(lines[-2])[1]
    rng, deaths = np.random.default_rng(0), 0
    for _ in range(10):
        process = started(tmp_path / "killed")
        time.sleep(took * rng.uniform(0.3, 0.9))
        deaths += process.poll() is None
        process.send_signal(signal.SIGKILL)
        seen = process.communicate()[0].split()
        finished = [int(k) for k in seen if k.isdigit()]
        files = len(list((tmp_path / "killed" / "factor").glob("column-*")))
        assert not finished or files in (finished[-1], finished[-1] + 1)
    last = started(tmp_path / "killed")
    lines = last.communicate()[0].split("\n")
    resumed, of = json.loads(lines[-2])
    assert deaths and of == count
    assert [int(k) for k in lines if k.isdigit()] == list(range(resumed + 1, count + 1))
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file() and ("column-" in path.name or path.parent.parent.name == "c"):
            assert (
                path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
            )
