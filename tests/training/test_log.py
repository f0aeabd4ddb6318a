from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest
import safetensors.torch
import torch
from runs import ball, batches, mlp, square, train
from torch import optim

import ntkit
from ntkit.errors import RunFolderError
from ntkit.training.folder import log
from ntkit.training.folder.run import Run


@pytest.fixture
def folder(tmp_path):
    model = mlp()
    return train(tmp_path / "run", model, optim.Adam(model.parameters()), ball(16), batches(16, 4, 12))


def test_kill_keeps_all_finished_steps(tmp_path):
    script = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import os, signal, torch, ntkit
        from runs import ball, batches, mlp, square
        model, (x, y) = mlp(), ball(16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with ntkit.record({str(tmp_path / "run")!r}, model, optimizer, train=(x, y)) as run:
            for k, index in enumerate(batches(16, 4, 50)):
                if k == 30: os.kill(os.getpid(), signal.SIGKILL)
                run.batch(index)
                optimizer.zero_grad(); square(model(x[index]), y[index]).backward(); optimizer.step()
    """)
    done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    a = ntkit.account(tmp_path / "run", mlp(), square, train=ball(16), queries=ball(16)[0])
    assert a.steps == 30 and a.converged
    log = tmp_path / "run" / "steps.log"
    log.write_bytes(log.read_bytes()[:-7])  # as if the kill had come while step 30 was written
    with Run(tmp_path / "run") as run:
        assert run.steps == 29
    log.write_bytes(log.read_bytes()[:-5000])
    with Run(tmp_path / "run") as run:
        assert 0 < run.steps < 29


def test_exception_leaves_finished_steps(tmp_path):
    def failing():
        yield from batches(16, 4, 7)
        raise KeyboardInterrupt

    model = mlp()
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", model, optimizer, ball(16), failing())
    with Run(tmp_path / "run") as run:
        assert run.steps == 7 and run.manifest["status"] == "interrupted"
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("damage", ["cut", "cut record", "grow", "flip", "flip header", "empty", "gone"])
def test_damaged_log_is_refused(folder, damage):
    path = folder / "steps.log"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        data[middle] ^= 4 if damage == "flip" else 0
        data[2] ^= 1 if damage == "flip header" else 0
        cut = {"cut": -3, "cut record": -(len(data) // 13), "empty": -len(data)}.get(damage)
        path.write_bytes(data[:cut] + (b"x" if damage == "grow" else b""))
    with pytest.raises(RunFolderError, match=r"steps\.log"):
        ntkit.account(folder, mlp(), square, train=ball(16), queries=ball(16)[0])


def test_every_flipped_bit_is_noticed(folder):
    path = folder / "steps.log"
    data = path.read_bytes()
    for position in range(3, len(data), len(data) // 40):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(RunFolderError), Run(folder) as run:
            for k in range(run.steps + 1):
                run.weights(k)


@pytest.mark.parametrize("damage", ["edited", "cut", "gone"])
def test_damaged_manifest_is_refused(folder, damage):
    path = folder / "manifest.json"
    if damage == "edited":
        content = json.loads(path.read_text())
        content["steps"] -= 1
        path.write_text(json.dumps(content))
    elif damage == "cut":
        path.write_text(path.read_text()[:50])
    else:
        path.unlink()
    with pytest.raises(RunFolderError, match=r"manifest\.json"):
        Run(folder)


def test_records_of_all_dtypes_are_what_safetensors_reads(tmp_path):
    known = [d for d, name in log._DTYPES.items() if name in safetensors.torch._TYPES]  # older: fewer
    tensors = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in known}
    tensors |= {"large": torch.randn(40, 50), "none": torch.zeros(0, 3), "number": torch.tensor(2.5)}
    writer = log.LogWriter(tmp_path / "steps.log")
    writer.append(tensors, {"a": 1})
    writer.close()
    truth = safetensors.torch.load((tmp_path / "steps.log").read_bytes()[log._HEADER.size :])
    with closing(log.LogReader(tmp_path / "steps.log")) as reader:
        found, scalars = reader.read(0)
    assert scalars == {"a": 1} and found.keys() == truth.keys()
    for name, tensor in truth.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(log.as_bytes(found[name]), log.as_bytes(tensor))


@pytest.mark.parametrize("lie", [(b"[2,3]", b"[2,4]"), (b"[0,48]", b"[0,96]"), (b'"F64"', b'"F65"')])
def test_a_record_whose_header_lies_is_refused(tmp_path, lie):
    path = tmp_path / "steps.log"
    writer = log.LogWriter(path)
    writer.append({"w": torch.ones(2, 3).double()}, {})
    writer.close()
    payload = path.read_bytes()[log._HEADER.size :]
    assert lie[0] in payload
    payload = payload.replace(*lie)
    header = log._HEADER.pack(log._MAGIC, 0, len(payload), log._crc(0, payload))
    path.write_bytes(header + payload)
    size = path.stat().st_size
    with closing(log.LogReader(path, 1, size)) as reader, pytest.raises(RunFolderError, match="record 0"):
        reader.read(0)


def test_unchanged_weights_are_not_stored_again(tmp_path):
    model = mlp()
    model[2].weight.requires_grad_(False)
    folder = train(
        tmp_path / "run", model, optim.SGD(model.parameters(), 0.1), ball(16), [torch.arange(16)] * 3
    )
    with Run(folder) as run:
        tensors, _ = run.log.read(2)
        assert "w/2.weight" not in tensors and "batch" not in tensors
        assert run.weights(2).shape == (151,) and torch.equal(run.step(2).batch, torch.arange(16))


def test_no_pickle_and_no_leftovers(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "steps.log"]
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
