"""What every study obeys: its options, its refusals, its folder; and the page of all of them."""

import json
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from ntkit.cli import app
from ntkit.errors import NtkitError
from ntkit.studies import catalog, runner
from ntkit.studies.document import document
from ntkit.studies.study import Claim, Result, StudyConfig, option


class Config(StudyConfig):
    """A study for these tests."""

    n: int = option(3, "How many.", low=1, high=9)
    rates: tuple[float, ...] = option((0.1, 0.2), "Rates.", low=0.0)
    name: str = option("a & b", "A name.")


def run(config):
    if config.n == 9:
        raise NtkitError("nine is too many")
    claims = (
        Claim("n", config.n, "three", low=3, high=3),
        Claim("rates", sum(config.rates), high=1),
        Claim("said <b>", float("nan")),
    )
    return Result(config, claims, {"x": np.arange(config.n)}, {"inf": float("inf")}, ("A note | of it.",))


def figure(result):
    drawn = Figure()
    drawn.subplots().plot(result.arrays["x"])
    return {"A picture, of x": drawn}


@pytest.fixture
def toy(monkeypatch):
    room = types.ModuleType("ntkit.studies.toy_study")
    room.__dict__.update(Config=Config, QUICK={"n": 2}, run=run, figure=figure)
    room.__doc__ = "A toy.\n\nWhat it <does>."
    monkeypatch.setitem(sys.modules, "ntkit.studies.toy_study", room)
    monkeypatch.setattr(catalog, "STUDIES", {"toy-study": ("Nobody", "It counts")})
    for place in ("runner", "document"):
        monkeypatch.setattr(f"ntkit.studies.{place}.STUDIES", catalog.STUDIES)
    monkeypatch.setattr("ntkit.cli.STUDIES", catalog.STUDIES)


def invoke(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def test_a_study_leaves_its_folder(toy, tmp_path):
    answer = invoke("toy-study", "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    lines = answer.output.splitlines()
    assert lines[0].split() == ["paper", "measured", "bar", "holds?"]
    assert lines[1].split() == ["n", "three", "3", "=", "3", "yes"]
    assert lines[2].split() == ["rates", "0.3", "≤", "1", "yes"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"a-picture-of-x.png", "a-picture-of-x.svg"}
    assert names == {"result.json", "report.html", "arrays.safetensors", *pictures}
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["config"] == {"seed": 0, "device": "cpu", "n": 3, "rates": [0.1, 0.2], "name": "a & b"}
    assert record["numbers"] == {"inf": "inf"} and record["claims"][2]["measured"] == "nan"
    html = (tmp_path / "out" / "report.html").read_text()
    assert "What it &lt;does&gt;." in html and "said &lt;b&gt;" in html and "a &amp; b" in html


def test_options_and_quick(toy, tmp_path):
    invoke("toy-study", "--quick", "--rates", 0.5, "--rates", 0.7, "--seed", 4, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["config"] == {"seed": 4, "device": "cpu", "n": 2, "rates": [0.5, 0.7], "name": "a & b"}
    assert [claim["holds"] for claim in record["claims"]] == [False, False, None]
    assert record["changed"] == {"n": 2, "rates": [0.5, 0.7]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n is 0; expected a number from 1 to 9"),
        ({"n": 2.5}, "expected a value of type int"),
        ({"n": True}, "expected a value of type int"),
        ({"rates": ()}, "rates is empty"),
        ({"rates": (-1.0,)}, "expected at least 0"),
        ({"rates": (float("nan"),)}, "expected at least 0"),
        ({"device": "abacus"}, "does not have"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong, message):
    with pytest.raises(NtkitError, match=message):
        Config(**wrong)


def test_an_unknown_study_is_refused():
    assert invoke("nothing").exit_code == 2
    with pytest.raises(NtkitError, match="There are: ball-sphere"):
        catalog.module("nothing")


def test_a_study_that_refuses_leaves_what_was_there(toy, tmp_path):
    runner.run_study("toy-study", Config(), tmp_path / "out")
    before = (tmp_path / "out" / "result.json").read_text()
    with pytest.raises(NtkitError, match="nine"):
        runner.run_study("toy-study", Config(n=9), tmp_path / "out")
    assert (tmp_path / "out" / "result.json").read_text() == before


def test_all_goes_on_where_it_stopped(toy, tmp_path):
    first = invoke("all", "--out", tmp_path)
    assert first.exit_code == 0 and "every bar holds" in first.output
    made = (tmp_path / "toy-study" / "result.json").stat().st_mtime_ns
    assert invoke("all", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "toy-study" / "result.json").stat().st_mtime_ns == made
    assert "a bar is missed" in invoke("all", "--out", tmp_path, "--quick").output
    assert (tmp_path / "toy-study" / "result.json").stat().st_mtime_ns != made


def test_all_says_what_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["ntkit.studies.toy_study"], "QUICK", {"n": 9})
    answer = invoke("all", "--out", tmp_path, "--quick")
    assert answer.exit_code == 1 and "nine is too many" in answer.output


def test_the_page_of_all(toy, tmp_path):
    invoke("all", "--out", tmp_path / "results")
    page = document(tmp_path / "results", tmp_path / "docs" / "studies.md")
    text = page.read_text()
    assert "| [toy-study](#toy-study) | Nobody | 2 of 2 |" in text
    assert "| n | three | 3 | = 3 | yes |" in text
    assert "![A picture, of x](studies/toy-study-a-picture-of-x.png)" in text
    assert (tmp_path / "docs" / "studies" / "toy-study-a-picture-of-x.png").exists()
    with pytest.raises(NtkitError, match="no study below"):
        document(tmp_path / "nowhere", page)


def test_help_and_list_import_no_study():
    answer = invoke("list")
    assert answer.exit_code == 0
    for name in catalog.STUDIES:
        assert name in answer.output
    assert "--steps" in invoke("ball-sphere", "--help").output


def test_every_study_has_its_parts():
    for name in catalog.STUDIES:
        study = catalog.module(name)
        assert issubclass(study.Config, StudyConfig)
        assert (study.__doc__ or "").count("\n\n") >= 1, name
        assert catalog.configure(name, quick=True) != study.Config(), name
        assert callable(study.run) and callable(study.figure)
