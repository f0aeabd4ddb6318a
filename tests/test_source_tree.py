"""ntkit from its sources, where no installed distribution tells its version."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
CODE = """
import importlib.metadata as metadata, json, sys, warnings
installed = metadata.Distribution.from_name
def from_name(name):
    if name == "ntkit":
        raise metadata.PackageNotFoundError(name)
    return installed(name)
metadata.Distribution.from_name = from_name

import torch, ntkit
from ntkit.studies.environment import versions
x, y = torch.randn(8, 3), torch.randn(8, 1)
model, loss = torch.nn.Linear(3, 1), torch.nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with ntkit.record("run", model, optimizer) as run:
    run.batch(range(8))
    loss(model(x), y).backward()
    optimizer.step()
assert ntkit.account("run", model, loss, train=(x, y), queries=x).converged
told = {json.load(open("run/manifest.json"))["ntkit"], versions()["ntkit"]}
assert told == {ntkit.__version__}, told
print(ntkit.__file__)
"""


def test_runs_are_recorded_and_accounted_for(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(SOURCE / "ntkit" / "__init__.py")
