"""A folder of tiles knows its kernel, data and versions; what is damaged or missing is made again."""

import os

import pytest
import torch
from torch import nn

import ntkit
from ntkit.compute.tiled.making import Maker
from ntkit.compute.tiled.manifest import versions
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


def other_network():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-12
    return model


def evaluated():
    model = network()
    model[1].eval()
    return model


REFUSED = {
    "weights": (lambda: ntkit.EmpiricalNTK(other_network()), {}, r"another kernel:.*0\.weight"),
    "outputs": (
        lambda: ntkit.EmpiricalNTK(network(), outputs="trace"),
        {},
        "kernel.outputs: 'mean', now 'trace'",
    ),
    "parameters": (
        lambda: ntkit.EmpiricalNTK(network(), params="last"),
        {},
        "kernel.params: None, now 'last'",
    ),
    "flags": (lambda: ntkit.EmpiricalNTK(evaluated()), {}, "kernel.model"),
    "class": (
        lambda: 1.0 * ntkit.EmpiricalNTK(network()),
        {},
        "kernel: .*EmpiricalNTK, now ntkit.kernel.Scaled",
    ),
    "data": (lambda: ntkit.EmpiricalNTK(network()), {"x1": draw(10, 3) + 1e-12}, "another x1"),
    "order": (lambda: ntkit.EmpiricalNTK(network()), {"x1": draw(10, 3).flip(0)}, "another x1"),
    "tile": (lambda: ntkit.EmpiricalNTK(network()), {"tile": 5}, "another tile:\n  tile: 4, now 5"),
    "dtype": (lambda: ntkit.EmpiricalNTK(network()), {"dtype": "float32"}, "dtype: float64, now float32"),
    "symmetry": (lambda: ntkit.EmpiricalNTK(network()), {"x2": draw(10, 3)}, "x2: not there, now"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_kernel_or_other_data_is_refused_by_name(what, tmp_path):
    make, changed, message = REFUSED[what]
    ntkit.TiledKernel(ntkit.EmpiricalNTK(network()), draw(10, 3), folder=tmp_path, tile=4)
    given = {"x1": draw(10, 3), "folder": tmp_path, "tile": 4} | changed
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ntkit.TiledKernel(make(), **given)


@pytest.mark.slow
def test_the_same_kernel_made_again_is_known(tmp_path):
    def doubled(t):
        return 2 * t

    for _ in range(2):
        torch.manual_seed(torch.initial_seed() + 1)  # other weights of a limit, which forgets them
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        kernel = ntkit.infinite_width(model, draw(2, 3, seed=int(model[0].weight.sum() * 1e6) % 100)).ntk
        ntkit.TiledKernel(kernel.compose(doubled), draw(10, 3), folder=tmp_path)
    with pytest.raises(ValueError, match=r"kernel\.transform"):
        ntkit.TiledKernel(kernel.compose(lambda t: 3 * t), draw(10, 3), folder=tmp_path)
    scaled = ntkit.infinite_width(model, draw(1, 3), sigma_b=0.1).ntk
    with pytest.raises(ValueError, match=r"kernel.kernel.sigma_b: 0.0, now 0.1"):
        ntkit.TiledKernel(scaled.compose(doubled), draw(10, 3), folder=tmp_path)


def test_standard_scales_show_in_the_values(tmp_path):
    def kernel(scale):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 1)).double()
        with torch.no_grad():
            model[0].weight.mul_(scale)
        return ntkit.infinite_width(model, draw(1, 3), parameterization="standard").ntk

    ntkit.TiledKernel(kernel(1.0), draw(10, 3), folder=tmp_path)
    with pytest.raises(ValueError, match="another kernel:\n  values"):
        ntkit.TiledKernel(kernel(2.0), draw(10, 3), folder=tmp_path)


def test_a_network_that_is_trained_meanwhile_is_refused(tmp_path):
    model = network()
    tiled = ntkit.TiledKernel(ntkit.EmpiricalNTK(model), draw(10, 3), folder=tmp_path, tile=4)
    tiled.block(0, 0)
    with torch.no_grad():
        model[2].bias.add_(1)
    with pytest.raises(ValueError, match=r"2\.bias"):
        tiled.build()


def test_other_versions_may_read_but_not_add(tmp_path, monkeypatch):
    kernel, x = ntkit.EmpiricalNTK(network()), draw(10, 3)
    ntkit.TiledKernel(kernel, x, folder=tmp_path, tile=4).build()
    later = versions() | {"torch": "99.0"}
    monkeypatch.setattr("ntkit.compute.tiled.manifest.versions", lambda: later)
    tiled = ntkit.TiledKernel(kernel, x, folder=tmp_path, tile=4).build()
    tiled.dense()
    os.remove(tmp_path / "tiles/c/0/1")
    with pytest.raises(ntkit.NtkitError, match=r"begun with torch .*, now 99\.0"):
        tiled.build()


def test_damage_is_found_and_mended(tmp_path):
    tiled = ntkit.TiledKernel(relu_limit(), draw(10, 3), folder=tmp_path, tile=4).build()
    truth, file = tiled.dense(), tmp_path / "tiles/c/0/1"
    whole = file.read_bytes()
    for damage in (
        lambda: file.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]),
        lambda: file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 128])),
        lambda: file.write_bytes(whole[:60]),
        lambda: file.write_bytes(b""),
        lambda: file.unlink(),
    ):
        damage()
        assert torch.equal(tiled.block(0, 1), truth[:4, 4:8])
        assert file.read_bytes() == whole
        damage()
        assert torch.equal(tiled.build(check=True).dense(), truth) and file.read_bytes() == whole
        damage()
        with pytest.raises(ntkit.NtkitError, match=r"does not match|has \d+ bytes|missing"):
            ntkit.TiledKernel.open(tmp_path).block(0, 1)
        tiled.block(0, 1)


def test_a_manifest_that_was_edited_or_lost_is_refused(tmp_path):
    given = {"folder": tmp_path, "tile": 4}
    ntkit.TiledKernel(relu_limit(), draw(10, 3), **given).build()
    file = tmp_path / "manifest.json"
    whole = file.read_text()
    for text in (whole.replace('"tile": 4', '"tile": 5'), whole[:100], "[]"):
        file.write_text(text)
        with pytest.raises(ntkit.NtkitError, match="edited or damaged"):
            ntkit.TiledKernel(relu_limit(), draw(10, 3), **given)
    file.unlink()
    with pytest.raises(ntkit.NtkitError, match=r"holds tile \(\d, \d\) but no manifest.json"):
        ntkit.TiledKernel(relu_limit(), draw(10, 3), **given)


def test_only_missing_tiles_are_made(tmp_path, monkeypatch):
    made = []
    make = Maker.make
    tiled = ntkit.TiledKernel(relu_limit(), draw(20, 3), folder=tmp_path, tile=4).build()
    truth = tiled.dense()
    monkeypatch.setattr(Maker, "make", lambda self, tile: made.append(tile) or make(self, tile))
    gone = [(0, 3), (1, 1), (4, 4)]
    for i, j in gone:
        os.remove(tmp_path / f"tiles/c/{i}/{j}")
    assert str(tiled.progress).startswith("12 of 15 tiles (80%")
    again = ntkit.TiledKernel(relu_limit(), draw(20, 3), folder=tmp_path)
    made.clear()
    assert torch.equal(again.build().dense(), truth) and made == gone
    assert again.build().progress.share == 1 and made == gone
    assert not list((tmp_path / "claims").iterdir()) and not list((tmp_path / "builders").iterdir())
