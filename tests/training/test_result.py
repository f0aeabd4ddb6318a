from __future__ import annotations

import pytest
import torch
from runs import GRID, ball, batches, mlp, square, train
from torch import optim

import ntkit


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    model, data = mlp(), ball(16)
    folder = tmp_path_factory.mktemp("result") / "run"
    train(folder, model, optim.AdamW(model.parameters(), 1e-2), data, batches(16, 4, 20))
    return ntkit.account(folder, model, square, train=data, queries=GRID)


def test_save_and_load_give_the_same_account(account, tmp_path):
    account.save(tmp_path / "a.safetensors")
    again = ntkit.Account.load(tmp_path / "a.safetensors")
    for name, value in vars(account).items():
        same = (
            torch.equal(value, getattr(again, name))
            if isinstance(value, torch.Tensor)
            else value == getattr(again, name)
        )
        assert same, name
    assert repr(again) == repr(account)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_damaged_files_are_refused(account, tmp_path):
    path = tmp_path / "a.safetensors"
    account.save(path)
    whole = path.read_bytes()
    for broken in (
        whole[:-8],
        whole[: len(whole) // 2] + b"\x3f" * 40 + whole[len(whole) // 2 + 40 :],
        b"",
        b"junk" * 9,
    ):
        path.write_bytes(broken)
        with pytest.raises(ntkit.NtkitError, match=r"a\.safetensors"):
            ntkit.Account.load(path)
    with pytest.raises(ntkit.NtkitError, match="cannot be read"):
        ntkit.Account.load(tmp_path / "none")
    with pytest.raises(ntkit.NtkitError, match="cannot be written"):
        account.save(tmp_path / "none" / "a")


def test_xarray_has_named_dimensions_and_the_identity(account):
    table = account.to_xarray()
    assert table["contributions"].dims == ("query", "output", "sample")
    parts = ("initial", "decay", "start", "buffers", "rounding", "residual")
    total = table["contributions"].sum("sample") + sum(table[name] for name in parts)
    assert float(abs(total - table["prediction"]).max()) <= 1e-13
    assert "units" in table["prediction"].attrs


def test_summary_says_what_it_is(account):
    text = repr(account)
    assert "residual / movement" in text and "not what would have happened" in text


def test_top_checks_its_arguments(account):
    assert len(account.top(0, k=100)) == 16
    assert account.top(-1) == account.top(len(GRID) - 1)
    for arguments in ({"query": 999}, {"query": 0, "output": 1}, {"query": 0, "k": -1}):
        with pytest.raises(ntkit.NtkitError):
            account.top(**arguments)
