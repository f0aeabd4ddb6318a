"""What new users do first: the commands and code of README and start, each twice in a fresh folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = ["tabular", "cnn", "text", "scikit_learn", "theory"]
NEEDS = {"text": "transformers"}
MYMODEL = """
import torch
from ntkit.data.digits import digits


def build():
    return torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.GELU(), torch.nn.Linear(16, 10)).double()


def data():
    found = digits(300)
    return found.train_x, found.train_y


def queries():
    return digits(300).held_out_x[:20]
"""

pytestmark = pytest.mark.slow


def started(folder, *command):
    """Run a command in a folder as a user does, and return what it prints; its errors fail the test."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def cells(page):
    """Return the code of a page of the start."""
    text = (ROOT / "docs/start" / f"{page}.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```\{code-cell\}\n(.*?)^```", text, re.S | re.M))


@pytest.mark.parametrize("page", START)
def test_the_pages_of_the_start_run_twice(page, tmp_path):
    pytest.importorskip(NEEDS.get(page, "torch"))
    (tmp_path / "page.py").write_text(cells(page), encoding="utf-8")
    for _ in range(2):
        assert "Traceback" not in started(tmp_path, sys.executable, "page.py")


def test_the_readme_from_the_loop_to_the_pages(tmp_path):
    record = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)[0]
    (tmp_path / "loop.py").write_text(record, encoding="utf-8")
    (tmp_path / "mymodel.py").write_text(MYMODEL, encoding="utf-8")
    commands = re.findall(r"^ntkit (?:explain|diagnose) .*$", README, re.M)
    assert len(commands) == 2
    for _ in range(2):
        assert "residual / movement" in started(tmp_path, sys.executable, "loop.py")
        for command in commands:
            started(tmp_path, sys.executable, "-m", "ntkit.cli", *command.split()[1:])
    assert {"report.html", "diagnosis.html"} <= {file.name for file in tmp_path.iterdir()}


def test_the_demo_without_make(tmp_path):
    assert "ntkit demo --out demo\n" in README
    for _ in range(2):
        started(tmp_path, sys.executable, "-m", "ntkit.cli", "demo", "--out", "demo")
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000


def test_a_rule_of_ones_own_as_the_docs_have_it(tmp_path):
    text = (ROOT / "docs/contribute.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert blocks
    (tmp_path / "rule.py").write_text("\n".join(blocks), encoding="utf-8")
    for _ in range(2):
        started(tmp_path, sys.executable, "rule.py")
