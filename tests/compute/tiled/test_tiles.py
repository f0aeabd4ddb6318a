"""Tiles of a kernel matrix in a folder: their values, and what of them is read."""

import json
import math

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ntkit
from ntkit.compute.tiled.executors import InProcess
from ntkit.kernel import Kernel

D = torch.float64


def draw(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network(outputs=2, dtype=D):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).to(dtype)


def relu_limit(dtype=D):
    return ntkit.infinite_width(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to(dtype), draw(1, 3, dtype=dtype)
    ).ntk


class Squared(Kernel):
    """(x . x')^p, and how often it was asked."""

    def __init__(self, p=2):
        self.p = p

    def __call__(self, x1, x2=None):
        a = torch.as_tensor(x1)
        return (a @ torch.as_tensor(a if x2 is None else x2).T) ** self.p

    def diag(self, x):
        return torch.as_tensor(x).square().sum(1) ** self.p


def recorded(folder):
    torch.manual_seed(0)
    x, y, model = draw(6, 3), draw(6, 2, seed=1), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with ntkit.record(folder, model, optimizer, train=(x, y)) as run:
        for _ in range(3):
            run.batch(range(6))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return model


KERNELS = {
    "limit": lambda folder: relu_limit(),
    "limit of a softplus, to a tolerance": lambda folder: (
        ntkit.infinite_width(
            nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1)).double(), draw(1, 3), tol=1e-6
        ).nngp
    ),
    "mean": lambda folder: ntkit.EmpiricalNTK(network()),
    "trace": lambda folder: ntkit.EmpiricalNTK(network(), outputs="trace"),
    "full": lambda folder: ntkit.EmpiricalNTK(network(), outputs="full"),
    "path": lambda folder: ntkit.PathKernel(folder, recorded(folder)),
    "path, full": lambda folder: ntkit.PathKernel(folder, recorded(folder), outputs="full"),
    "sum": lambda folder: ntkit.EmpiricalNTK(network()) + 2.0 * relu_limit(),
    "cosine": lambda folder: relu_limit().normalized(),
    "composed": lambda folder: relu_limit().compose(lambda t: 2 * t),
    "a user's": lambda folder: Squared(),
}


def dense(kernel, x1, x2=None):
    """The matrix as the kernel itself gives it, all pairs of outputs as rows n o + i."""
    block = kernel(x1, x2)
    if block.ndim == 4:
        n, m, o, _ = block.shape
        block = block.permute(0, 2, 1, 3).reshape(n * o, m * o)
    return block


SLOW = ("limit of a softplus, to a tolerance", "trace", "path", "path, full", "composed", "cosine")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in KERNELS])
def test_tiles_are_the_kernels_own_blocks(name, tmp_path):
    kernel = KERNELS[name](tmp_path / "run")
    x, z = draw(11, 3), draw(5, 3, seed=1)
    tiled = ntkit.TiledKernel(kernel, x, folder=tmp_path / "k", tile=4).build()
    truth = dense(kernel, x)
    assert tiled.shape == truth.shape and tiled.dtype == truth.dtype and len(tiled) == len(truth)
    assert list(tiled.tiles) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    torch.testing.assert_close(tiled.dense(), truth, rtol=1e-12, atol=1e-12 * float(truth.abs().max()))
    for i, j in tiled.tiles:
        assert torch.equal(tiled.block(j, i), tiled.block(i, j).T)
        assert torch.equal(tiled.block(i, j), tiled.dense()[tiled.rows(i), tiled.cols(j)])
    cross = ntkit.TiledKernel(kernel, z, x, folder=tmp_path / "cross", tile=4).build()
    torch.testing.assert_close(cross.dense(), dense(kernel, z, x), rtol=1e-12, atol=1e-12)
    assert list(cross.tiles) == [(i, j) for i in range(2) for j in range(3)]
    torch.testing.assert_close(tiled.values(), kernel(x), rtol=1e-12, atol=1e-12 * float(truth.abs().max()))
    torch.testing.assert_close(
        tiled.by_number(torch.tensor([2, 9])), kernel(x[[2, 9]]), rtol=1e-9, atol=1e-12
    )
    diagonal = tiled.by_number.diag(torch.tensor([2, 9]))
    torch.testing.assert_close(diagonal, kernel.diag(x[[2, 9]]), rtol=1e-9, atol=1e-12)


def test_it_is_an_array_of_zarr_with_checksums(tmp_path):
    x = draw(10, 3)
    ntkit.TiledKernel(relu_limit(), x, folder=tmp_path, tile=4, dtype="float32").build()
    array = zarr.open_array(tmp_path / "tiles", mode="r")
    assert array.dtype == np.float32 and array.chunks == (4, 4) and array.metadata.zarr_format == 3
    assert [type(codec).__name__ for codec in array.metadata.codecs] == ["BytesCodec", "Crc32cCodec"]
    held, truth = array[:], relu_limit()(x).numpy()
    upper = np.arange(10)[:, None] // 4 <= np.arange(10) // 4
    np.testing.assert_allclose(held[upper], truth[upper], rtol=1e-6)
    assert np.isnan(held[~upper]).all()
    other = zarr.open_array(tmp_path / "tiles", mode="r+")  # what zarr writes, ntkit reads
    other[0:4, 4:8] = np.ones((4, 4), np.float32)
    assert torch.equal(ntkit.TiledKernel.open(tmp_path).block(0, 1), torch.ones(4, 4))


def test_the_lazy_array_is_indexed_as_numpy_does(tmp_path):
    x = draw(10, 3)
    tiled = ntkit.TiledKernel(relu_limit(), x, folder=tmp_path, tile=4).build()
    a, truth = tiled.array, tiled.dense().numpy()
    mask = np.arange(10) % 3 == 0
    for index in (
        3,
        -1,
        slice(2, 9),
        slice(None, None, -2),
        [1, 9, 1],
        mask,
        (2, 5),
        (-1, slice(3, 7)),
        (mask, 0),
    ):
        np.testing.assert_array_equal(a[index], truth[index])
    np.testing.assert_array_equal(a[[1, 8], [0, 5, 9]], truth[np.ix_([1, 8], [0, 5, 9])])
    np.testing.assert_array_equal(a[np.ix_([1, 8], [0, 5, 9])], truth[np.ix_([1, 8], [0, 5, 9])])
    np.testing.assert_array_equal(np.asarray(a), truth)
    np.testing.assert_array_equal(np.asarray(tiled), truth)
    assert a.shape == (10, 10) and len(a) == 10 and a.dtype == np.float64
    assert isinstance(a[2, 5], float)
    with pytest.raises(IndexError, match="row 10 is out of bounds"):
        a[10]
    for index in ((1, 2, 3), (None, 2), [0.5], np.ones(3, bool)):
        with pytest.raises(ntkit.NtkitError):
            a[index]


def test_the_operator_reads_each_tile_once(tmp_path, monkeypatch):
    x, z, v = draw(10, 3), draw(6, 3, seed=1), draw(10, 2, seed=2)
    tiled = ntkit.TiledKernel(relu_limit(), x, folder=tmp_path / "k", tile=4).build()
    read = []
    block = ntkit.TiledKernel.block
    monkeypatch.setattr(
        ntkit.TiledKernel, "block", lambda self, i, j: read.append((i, j)) or block(self, i, j)
    )
    operator, truth = tiled.operator(), relu_limit()(x)
    torch.testing.assert_close(operator @ v, truth @ v)
    assert sorted(read) == list(tiled.tiles)
    torch.testing.assert_close(operator @ v[:, 0], truth @ v[:, 0])
    torch.testing.assert_close(operator.diagonal(), truth.diagonal())
    torch.testing.assert_close(tiled.diag(), truth.diagonal())
    assert torch.equal(operator.to_dense(), tiled.dense())
    cross = ntkit.TiledKernel(relu_limit(), z, x, folder=tmp_path / "cross", tile=4).build().operator()
    torch.testing.assert_close(cross @ v, relu_limit()(z, x) @ v)
    torch.testing.assert_close(cross.mT @ v[:6], relu_limit()(x, z) @ v[:6])
    with pytest.raises(ntkit.NtkitError, match="not square"):
        ntkit.TiledKernel(relu_limit(), z, x, folder=tmp_path / "cross", tile=4).diag()


class Few(Dataset):
    """Samples with targets, and which of them were read."""

    def __init__(self, x):
        self.x, self.read = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[i], 7


def samples(kind, x, folder):
    if kind == "a memory map":
        np.save(folder / "x.npy", x.numpy())
        return np.load(folder / "x.npy", mmap_mode="r")
    if kind == "an array of zarr":
        array = zarr.create_array(folder / "x.zarr", shape=x.shape, chunks=(3, 3), dtype="float64")
        array[:] = x.numpy()
        return array
    if kind == "a dataset":
        return Few(x)
    return {"an array": x.numpy(), "a list": x.tolist(), "a tensor that is a view": x.T.contiguous().T}[kind]


@pytest.mark.parametrize(
    "kind",
    ["an array", "a list", "a tensor that is a view", "a memory map", "an array of zarr", "a dataset"],
)
def test_samples_may_be(kind, tmp_path):
    x = draw(10, 3)
    kernel = ntkit.EmpiricalNTK(network(), inputs=0) if kind == "a dataset" else ntkit.EmpiricalNTK(network())
    given = samples(kind, x, tmp_path)
    tiled = ntkit.TiledKernel(kernel, given, folder=tmp_path / "k", tile=4)
    maker = tiled._checked_maker()
    torch.testing.assert_close(
        tiled.build().dense(), ntkit.EmpiricalNTK(network())(x), rtol=1e-12, atol=1e-12
    )
    if kind == "a dataset":
        given.read.clear()
        maker.make((1, 2))
        assert sorted(given.read) == list(range(4, 10))
    if kind not in ("a dataset", "a list"):  # the same data, as another container: the same folder
        again = ntkit.TiledKernel(kernel, x, folder=tmp_path / "k")
        assert again.progress.share == 1


def test_samples_of_several_tensors(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x, scale):
            return torch.tanh(self.a(x)) * scale

    torch.manual_seed(0)
    model, x = Two().double(), {"x": draw(7, 3), "scale": draw(7, 1, seed=1)}
    kernel = ntkit.EmpiricalNTK(model)
    tiled = ntkit.TiledKernel(kernel, x, folder=tmp_path, tile=3).build()
    torch.testing.assert_close(tiled.dense(), kernel(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="another x1"):
        ntkit.TiledKernel(kernel, {"x": x["scale"].expand(7, 3), "scale": x["x"][:, :1]}, folder=tmp_path)


@pytest.mark.slow
def test_bits_hang_on_the_tile_only(tmp_path):
    """Not on the order, nor on what was computed before: also where a tolerance is refined, call by call."""
    for number, name in enumerate(("limit", "limit of a softplus, to a tolerance", "mean", "sum")):
        kernel = KERNELS[name](tmp_path / f"run{number}")
        one = ntkit.TiledKernel(kernel, draw(20, 3), folder=tmp_path / f"{number}one", tile=6).build()
        two = ntkit.TiledKernel(kernel, draw(20, 3), folder=tmp_path / f"{number}two", tile=6)
        for tile in reversed(list(two.tiles)):
            kernel(draw(50, 3, seed=3))
            assert torch.equal(two.block(*tile), one.block(*tile))


def test_chosen_tiles_and_their_size():
    from ntkit.compute.tiled.kernel import _chosen

    assert _chosen(60_000, 1, 4) == 4000 and _chosen(20_000, 1, 4) == 2500 and _chosen(20_000, 1, 8) == 2500
    assert _chosen(100, 1, 4) == 100 and _chosen(1000, 1, 4) == 250 and _chosen(10**6, 1, 4) == 4082
    assert (
        _chosen(5000, 10, 4) <= 409 and math.ceil(5000 / _chosen(5000, 10, 4)) * _chosen(5000, 10, 4) < 5100
    )


def test_values_that_do_not_fit_are_told_with_their_samples(tmp_path):
    x = draw(10, 3)
    x[7] *= 1e40
    with pytest.raises(
        ValueError, match=r"samples 7 and 0 is not finite in float32|samples \d and 7 is not finite"
    ):
        ntkit.TiledKernel(Squared(), x, folder=tmp_path, tile=4, dtype="float32").build()
    with pytest.raises(ValueError, match="finite") as caught:
        ntkit.TiledKernel(Squared(200), x, folder=tmp_path / "2", tile=4).build()
    assert "samples" in str(caught.value)


def test_what_is_refused_at_once(tmp_path):
    kernel, x = ntkit.EmpiricalNTK(network(), outputs="diagonal"), draw(10, 3)
    with pytest.raises(ValueError, match="one matrix for each output"):
        ntkit.TiledKernel(kernel, x, folder=tmp_path / "a")
    with pytest.raises(TypeError, match="give its dataset"):
        ntkit.TiledKernel(relu_limit(), DataLoader(TensorDataset(x)), folder=tmp_path / "b")
    with pytest.raises(ntkit.NtkitError, match="not a folder of tiles"):
        ntkit.TiledKernel.open(tmp_path / "c")
    assert not list(tmp_path.iterdir())
    with pytest.raises(IndexError, match="no tile"):
        ntkit.TiledKernel(relu_limit(), x, folder=tmp_path / "d").block(3, 0)


def of_forty(folder):
    x, z = draw(40, 3), draw(6, 3, seed=1)
    y = torch.stack([x[:, 0].sin(), x[:, 1]], 1)
    train = ntkit.TiledKernel(relu_limit(), x, folder=folder / "k", tile=15).build()
    cross = ntkit.TiledKernel(relu_limit(), z, x, folder=folder / "cross", tile=15).build()
    return x, y, z, train, cross


def agree(machine, x, y, z, train, cross):
    found = machine.fit(train, y).predict(cross)
    truth = machine.fit(relu_limit()(x), y).predict(relu_limit()(z, x))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-12)


def test_an_estimator_takes_it(tmp_path):
    x, y, z, train, cross = of_forty(tmp_path)
    agree(ntkit.KernelRidge("precomputed", 1e-3), x, y, z, train, cross)
    with pytest.raises(TypeError, match="give kernel='precomputed'"):
        ntkit.KernelRidge().fit(train, y)
    with pytest.raises(ValueError, match="numbers 0 to 39"):
        train.by_number(torch.tensor([40]))


@pytest.mark.slow
def test_estimators_and_diagnoses_take_it(tmp_path):
    x, y, z, train, cross = of_forty(tmp_path)
    for machine in (ntkit.GradientFlow("precomputed", t=3.0), ntkit.GaussianProcess("precomputed")):
        agree(machine, x, y, z, train, cross)
    labels = (y[:, 0] > 0).long()
    agree(ntkit.KernelClassifier("precomputed"), x, labels, z, train, cross)
    kernel = relu_limit()
    one, two = ntkit.diagnose.spectrum(train), ntkit.diagnose.spectrum(kernel, x)
    assert one.eigenvalues == pytest.approx(two.eigenvalues)
    ways = ((train, (None, labels)), (kernel, (x, labels)))
    found, truth = (ntkit.diagnose.alignment(k, *of) for k, of in ways)
    assert found.overall.value == pytest.approx(truth.overall.value)


def test_full_values_in_an_estimator(tmp_path):
    x, y, kernel = draw(20, 3), draw(20, 2, seed=1), ntkit.EmpiricalNTK(network(), outputs="full")
    train = ntkit.TiledKernel(kernel, x, folder=tmp_path / "k", tile=6).build()
    one, two = (ntkit.KernelRidge("precomputed", 1e-3).fit(k, y).dual_coef_ for k in (train, kernel(x)))
    np.testing.assert_allclose(one, two, rtol=1e-9)


@pytest.mark.slow
def test_addresses_of_fsspec(tmp_path):
    pytest.importorskip("fsspec")
    x, name = draw(10, 3), tmp_path.name
    tiled = ntkit.TiledKernel(relu_limit(), x, folder=f"file://{tmp_path}/k", tile=4).build()
    there = ntkit.TiledKernel(relu_limit(), x, folder=f"memory://{name}/k", tile=4).build()
    assert torch.equal(ntkit.TiledKernel.open(f"memory://{name}/k").dense(), tiled.dense())
    assert there.progress.share == 1 and "memory" in repr(there)
    assert torch.equal(ntkit.TiledKernel.open(tmp_path / "k").dense(), tiled.dense())
    memory = zarr.storage.MemoryStore()
    other = ntkit.TiledKernel(relu_limit(), x, folder=memory, tile=4).build()
    assert torch.equal(other.dense(), tiled.dense()) and other.progress.share == 1
    assert json.loads((tmp_path / "k/manifest.json").read_text())["tile"] == 4


def test_the_executor_is_asked_tile_by_tile(tmp_path):
    """Tiles are claimed when they are handed out, not before."""
    tiled = ntkit.TiledKernel(relu_limit(), draw(10, 3), folder=tmp_path, tile=4)
    held = []

    class Watched(InProcess):
        def run(self, work, tiles):
            for made in super().run(work, tiles):
                held.append(len(list((tmp_path / "claims").iterdir())))
                yield made

    tiled.executor = Watched()
    tiled.build()
    assert len(held) == 6 and max(held) <= 2
