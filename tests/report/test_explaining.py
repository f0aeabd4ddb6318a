"""The report of anybody's run: by call, and by the command, as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ntkit
from ntkit.cli import app
from ntkit.display import account_plots as plots
from ntkit.errors import NtkitError
from ntkit.report.account_page import account_page

MINE = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def data():
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, (x[:, 0] > x[:, 1]).long()


def held_out():
    return [[0.1, 0.9], [0.8, 0.2]], [0, 1]


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


NUMBER = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with somebody's module and a recorded run."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mymodel.py").write_text(MINE)
    names: dict = {}
    exec(MINE, names)
    model, (x, y) = names["build"](), names["data"]()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    with ntkit.record(folder / "run", model, optimizer, train=(x, y)) as run:
        for _ in range(30):
            run.batch(range(20))
            optimizer.zero_grad()
            names["loss"](model(x), y).backward()
            optimizer.step()
    queries = torch.tensor([[0.1, 0.9], [0.8, 0.2]], dtype=torch.float64)
    a = ntkit.account(folder / "run", model, names["loss"], train=(x, y), queries=queries)
    return folder, a, x, y, queries


def test_the_command_as_typed(place):
    folder, a, *_ = place
    arguments = (
        "run --model mymodel:build --data mymodel:data --queries mymodel:held_out --out page/report.html"
    )
    answer = subprocess.run(
        [sys.executable, "-m", "ntkit.cli", "explain", *arguments.split()],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "page/report.html" in answer.stdout.splitlines()[0]
    assert f"{a.relative_residual:.2e} of the largest change" in answer.stdout
    html = (folder / "page" / "report.html").read_text()
    assert html.count("<article") == 2 and "not a counterfactual" in html.lower()
    assert f"{a.top(0, 1)[0].contribution:+.2f}".replace("-", "−") in html


def test_training_samples_as_queries(place, monkeypatch):
    monkeypatch.chdir(place[0])
    given = ["explain", "run", "--model", "mymodel:build", "--data", "mymodel:data", "--loss", "mymodel:loss"]
    answer = CliRunner().invoke(app, [*given, "--queries", "3,11", "--out", "two.html"])
    assert answer.exit_code == 0, answer.output
    assert "training sample 11" in Path("two.html").read_text()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "mymodel", "expected module:name"),
        ("--model", "nothing:build", "no module 'nothing'"),
        ("--model", "mymodel:nothing", "has no 'nothing'"),
        ("--model", "mymodel:NUMBER", "expected a function"),
        ("--model", "mymodel:data", "expected a torch.nn.Module"),
        ("--model", "mymodel:loss", "without arguments"),
        ("--data", "mymodel:build", "expected a pair"),
        ("--queries", "3,20", "the data has 20"),
        ("--loss", "crossentropy", "not a function of torch.nn.functional"),
        ("--loss", "mse_loss", "target"),
    ],
)
def test_wrong_names_are_refused(place, monkeypatch, option, value, message):
    monkeypatch.chdir(place[0])
    given = {"--model": "mymodel:build", "--data": "mymodel:data", "--queries": "3", "--out": "no.html"}
    given[option] = value
    answer = CliRunner().invoke(app, ["explain", "run", *(part for pair in given.items() for part in pair)])
    assert isinstance(answer.exception, Exception) and answer.exit_code == 1
    assert message in str(answer.exception)
    assert not Path("no.html").exists()


def test_the_page_says_what_the_account_says(place):
    _, a, _, y, queries = place
    page = account_page(a, labels=y, truth=[0, 1], classes=["up", "down"], queries=queries)
    first = page.queries[0]
    output = int(a.prediction[0].argmax())
    assert first.output == ("up", "down")[output]
    assert first.terms["prediction"] == float(a.prediction[0, output])
    assert sum(v for k, v in first.terms.items() if k != "prediction") == pytest.approx(
        first.terms["prediction"]
    )
    assert dict(first.by_label)["down"] == pytest.approx(float(a.by_class(y)[0, output, 1]))
    assert first.over_time[0] == pytest.approx(float(a.initial[0, output]))
    assert first.over_time[-1] == pytest.approx(float((a.initial + a.contributions.sum(-1))[0, output]))
    assert first.towards.total + first.against.total == pytest.approx(first.terms["contributions"])
    assert first.verdict in ("right", "wrong")


def test_pictures_and_regressions(place, tmp_path):
    _, a, *_ = place
    page = account_page(a, train=torch.rand(20, 1, 4, 4), queries=torch.rand(2, 3, 5, 5), truth=[1, 0])
    assert page.queries[0].picture.shape == (5, 5, 3)
    assert page.queries[0].towards.shown[0].picture.shape == (4, 4)
    flat = account_page(a, queries=torch.rand(2, 12), picture=(3, 4))
    assert flat.queries[1].picture.shape == (3, 4) and account_page(a).queries[0].picture is None
    single = ntkit.report.explain(
        a.margin(0, 1), tmp_path / "margin.html", labels=torch.rand(20), truth=torch.rand(2)
    )
    html = single.read_text()
    assert "predicted probability" not in html and "logits" in html
    assert [p.name for p in tmp_path.iterdir()] == ["margin.html"]


def test_what_does_not_fit_is_refused(place, tmp_path):
    _, a, *_ = place
    with pytest.raises(NtkitError, match="labels has 3 entries, expected 20"):
        account_page(a, labels=[0, 1, 2])
    with pytest.raises(NtkitError, match="cannot be written"):
        (tmp_path / "file").touch()
        ntkit.report.explain(a, tmp_path / "file" / "report.html")


def test_plots_draw_what_the_account_says(place):
    _, a, _, y, _ = place
    bars = plots.contributions(a, 0, count=5)
    assert [bar.get_width() for bar in bars.patches] == [c for _, c in a.top(0, 5)]
    line = plots.over_time(a, 1, output=0).lines[0].get_ydata()
    assert line[0] == float(a.initial[1, 0]) and len(line) == 31
    assert line[-1] == pytest.approx(float((a.initial + a.contributions.sum(-1))[1, 0]))
    heights = [bar.get_height() for bar in plots.by_class(a, 0, y, output=1).patches]
    assert heights == pytest.approx(a.by_class(y)[0, 1].tolist())


def test_options_of_the_command(place, tmp_path, monkeypatch):
    folder, *_ = place
    monkeypatch.chdir(folder)
    (tmp_path / "names.txt").write_text("\n".join(f"person {i}" for i in range(20)))
    given = ["explain", "run", "--model", "mymodel:build", "--data", "mymodel:data", "--queries", "0,3"]
    more = ["--target", "predicted", "--classes", "low,high", "--names", str(tmp_path / "names.txt")]
    more += ["--keep", str(tmp_path / "kept"), "--counterfactual", "--out", str(tmp_path / "page.html")]
    answer = CliRunner().invoke(app, [*given, *more])
    assert answer.exit_code == 0, answer.output
    html = (tmp_path / "page.html").read_text()
    assert "person 17" in html and "high" in html and "left out" in html
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"account", "counterfactual"}
    assert (
        CliRunner().invoke(app, [*given, "--target", "0,1", "--out", str(tmp_path / "b.html")]).exit_code == 0
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], r"missing: --model, --data, --queries"),
        (["--model", "mymodel:build"], r"missing: --data, --queries"),
        (["--model", "mymodel:build", "--data", "mymodel:data", "--queries", "0", "--picture", "8"], "28x28"),
        (
            ["--model", "mymodel:build", "--data", "mymodel:data", "--queries", "0", "--names", "no"],
            "--names no",
        ),
        (
            ["--model", "mymodel:build", "--data", "mymodel:data", "--queries", "0", "--target", "margins"],
            "margin",
        ),
    ],
)
def test_wrong_options_are_told(place, monkeypatch, options, told):
    folder, *_ = place
    monkeypatch.chdir(folder)
    answer = CliRunner().invoke(app, ["explain", "run", *options])
    assert answer.exit_code and told in f"{answer.output}{answer.exception}"
