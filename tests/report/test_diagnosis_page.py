"""The page of a diagnosis, from Python and from the command line."""

import re
import sys

import pytest
import torch
from small_runs import classes, mlp, recorded
from torch import nn
from typer.testing import CliRunner

import ntkit.report
from ntkit.cli import app
from ntkit.diagnose import RecordedRun, diagnose

MODULE = """
import torch
from small_runs import classes, mlp as build
def data(): return classes()
def held(): return classes(20, seed=1)
def queries(): return 3 * classes(6, seed=2)[0]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("page") / "run", mlp(), classes())


@pytest.mark.slow
def test_one_command_writes_the_page_with_the_four_answers(run, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    named = [
        "--model",
        "own:build",
        "--data",
        "own:data",
        "--held-out",
        "own:held",
        "--queries",
        "own:queries",
    ]
    answer = CliRunner().invoke(app, ["diagnose", str(run.folder), *named], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    page = (tmp_path / "diagnosis.html").read_text()
    for line in answer.output.splitlines()[:-1]:
        words = line.partition(": ")[2].removesuffix(".")
        assert words in page.replace("&#39;", "'")
    assert len(re.findall("<svg", page)) == 5 and page.count('<article class="suspect">') == 12
    assert "http" not in page.replace("http://www.w3.org", "")  # it loads nothing from anywhere


def test_without_queries_and_with_numbers_it_says_so(tmp_path):
    x = classes()[0]
    numbers = x[:, :1] * 2
    model = mlp(outputs=1)
    run = recorded(tmp_path / "run", model, (x, numbers), nn.MSELoss(), rate=0.02)
    found = diagnose(run, samples=30)
    assert found.novelty is None and found.audit is None and len(found.index) == 30
    page = ntkit.report.diagnosis(found, tmp_path / "page.html").read_text()
    assert "No queries were given" in page and "numbers, not classes" in page and "30 of the 48" in page
    assert list(found.table()["question"]) == ["laziness", "alignment", "spectrum"]


@pytest.mark.slow
def test_pictures_are_those_of_the_samples(tmp_path):
    x, y = torch.rand(40, 1, 4, 4, dtype=torch.float64), torch.arange(40) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    run = recorded(tmp_path / "run", model, (x, y), steps=5)
    assert isinstance(run, RecordedRun)
    found = diagnose(run, queries=x[:3])
    page = ntkit.report.diagnosis(found, tmp_path / "page.html", classes=["cat", "dog"], shown=2).read_text()
    assert page.count("data:image/png") == 2 * 6 + 2 * 2 and "dog" in page
