"""What every study obeys: its options, its refusals, its folder; and the page of all of them."""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

from ntkit.cli import app
from ntkit.errors import NtkitError
from ntkit.studies import catalog, parts, runner
from ntkit.studies.catalog import STUDIES
from ntkit.studies.document import document
from ntkit.studies.study import Claim, Result, StudyConfig, option, options
from ntkit.studies.training import slope


class Config(StudyConfig):
    """A study for these tests."""

    n: int = option(3, "How many.", low=1, high=9)
    rates: tuple[float, ...] = option((0.1, 0.2), "Rates.", low=0.0)
    name: str = option("a & b", "A name.")
    two: tuple[int, ...] = option((1, 2), "Two numbers.", least=2)


CALLS = []  # the parts of the study that were computed, not taken from an earlier run


def computed(i):
    CALLS.append(i)
    if len(CALLS) > 2 and i == 1:
        raise KeyboardInterrupt
    return {"value": np.full(2, float(i)), "tuple": (i, torch.ones(1)), 3: "three"}


def run(config):
    if config.n == 9:
        raise NtkitError("nine is too many")
    if config.n == 8:
        for i in range(3):
            found = parts.part(f"part {i}", lambda i=i: computed(i))
            assert (
                found["value"].tolist() == [i, i]
                and found["tuple"] == (i, torch.ones(1))
                and found[3] == "three"
            )
            with parts.scratch() as folder:
                (Path(folder) / "file").touch()
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
    assert record["config"] == {
        "seed": 0,
        "device": "cpu",
        "n": 3,
        "rates": [0.1, 0.2],
        "name": "a & b",
        "two": [1, 2],
    }
    assert record["numbers"] == {"inf": "inf"} and record["claims"][2]["measured"] == "nan"
    html = (tmp_path / "out" / "report.html").read_text()
    assert "What it &lt;does&gt;." in html and "said &lt;b&gt;" in html and "a &amp; b" in html


def test_options_and_quick(toy, tmp_path):
    invoke("toy-study", "--quick", "--rates", 0.5, "--rates", 0.7, "--seed", 4, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["config"] == {
        "seed": 4,
        "device": "cpu",
        "n": 2,
        "rates": [0.5, 0.7],
        "name": "a & b",
        "two": [1, 2],
    }
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
        ({"rates": (0.1, 0.1)}, "expected different values"),
        ({"two": (1,)}, "expected at least 2 values"),
        ({"device": "meta"}, "does not have"),
        ({"rates": (float("nan"),)}, "expected at least 0"),
        ({"device": "abacus"}, "does not have"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong, message):
    with pytest.raises(NtkitError, match=message):
        Config(**wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "LBFGS"}, "it evaluates the loss several times in a step"),
        ({"optimizer": "adam"}, "no optimizer of that name; expected one of .*Did you mean 'Adam'"),
        ({"loss": "relu"}, "it does not serve targets that are"),
        ({"loss": "least_squares"}, "torch.nn.functional has no such loss; expected one of"),
    ],
)
def test_a_wrong_optimizer_or_loss_is_refused_with_a_reason(given, message):
    (name,) = given
    those = [each for each in STUDIES if name in fields(each)]
    assert len(those) > 15
    for each in those:
        with pytest.raises(NtkitError, match=message):
            catalog.configure(each, **given)


def test_a_study_trains_with_the_optimizer_and_the_loss_that_are_asked_for(monkeypatch):
    config = catalog.configure("linear-head", steps=3, samples=8, optimizer="NAdam", loss="huber_loss")
    made, used = [], []
    monkeypatch.setattr(torch.optim, "NAdam", recorded(torch.optim.NAdam, made))
    monkeypatch.setattr(torch.nn.functional, "huber_loss", recorded(torch.nn.functional.huber_loss, used))
    catalog.module("linear-head").run(config)
    assert (len(made), len(used)) == (1, 3)


def recorded(function, calls):
    return lambda *args, **options: (calls.append(args), function(*args, **options))[1]


def fields(study):
    return [name for name, _, _ in options(catalog.module(study).Config)]


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
    missed = invoke("all", "--out", tmp_path, "--quick")
    assert missed.exit_code == 2 and "a bar is missed" in missed.output
    assert (tmp_path / "toy-study" / "result.json").stat().st_mtime_ns != made


def test_a_missed_bar_exits_with_two(toy, tmp_path):
    answer = invoke("toy-study", "--n", 2, "--out", tmp_path / "out")
    assert answer.exit_code == 2 and (tmp_path / "out" / "result.json").exists()


def test_all_stops_at_a_missed_bar_unless_told(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ntkit.studies.other", sys.modules["ntkit.studies.toy_study"])
    catalog.STUDIES["other"] = ("Nobody, Section 2; Nobody else", "It counts, too")
    stopped = invoke("all", "--out", tmp_path, "--quick")
    assert stopped.exit_code == 2 and "--keep-going" in stopped.output
    assert not (tmp_path / "other").exists()
    assert invoke("all", "--out", tmp_path, "--quick", "--keep-going").exit_code == 2
    assert (tmp_path / "other" / "result.json").exists()


@pytest.mark.slow
def test_several_studies_at_a_time_find_the_same(tmp_path, monkeypatch):
    few = {name: catalog.STUDIES[name] for name in ("linear-head", "positive-definite")}
    monkeypatch.setattr(runner, "STUDIES", few)
    options = {"quick": True, "seed": 0, "device": "cpu"}
    one = {o.name: o for o in runner.run_all(tmp_path / "one", **options)}
    two = {o.name: o for o in runner.run_all(tmp_path / "two", **options, jobs=2)}
    assert one.keys() == two.keys() == few.keys()
    for name, outcome in one.items():
        for a, b in zip(outcome.record["claims"], two[name].record["claims"], strict=True):
            assert (a["what"], a["holds"]) == (b["what"], b["holds"])
        assert (tmp_path / "two" / name / "report.html").exists()
    assert (tmp_path / "two" / "index.html").exists()
    with pytest.raises(NtkitError, match="jobs=0"):
        list(runner.run_all(tmp_path, **options, jobs=0))


def test_the_index_shows_the_pictures_and_links_the_papers(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PAPERS", ("Nobody",))
    monkeypatch.setattr(catalog, "PAPERS", ("Nobody",))
    catalog.STUDIES["toy-study"] = ("Nobody, Section 2", "It counts")
    invoke("all", "--out", tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert '<img src="toy-study/a-picture-of-x.png"' in html and "2 of 2 bars hold" in html
    assert (
        '<a href="#paper-1-1">Nobody, Section 2</a>' in html
        and '<div id="paper-1-1"><dt>Section 2</dt>' in html
    )
    assert '<a href="#toy-study">toy-study</a>' in html and "http" not in html


def test_every_study_is_in_a_section_of_a_paper():
    for name in catalog.STUDIES:
        assert all(paper in catalog.PAPERS for paper, _ in catalog.places(name)), name


@pytest.fixture
def stopped(toy, tmp_path):
    """A study that was stopped within its second part: the folder that it was to leave."""
    CALLS[:] = [None, None]
    with pytest.raises(KeyboardInterrupt):
        runner.run_study("toy-study", Config(n=8), tmp_path / "out")
    assert CALLS == [None, None, 0, 1]
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    CALLS.clear()
    return tmp_path / "out"


def test_a_study_that_was_stopped_goes_on_where_it_was(stopped):
    left = stopped.with_name(".out.part-killed")
    left.mkdir()
    (stopped.with_name(".out.unfinished") / "scratch").mkdir()
    runner.run_study("toy-study", Config(n=8), stopped)
    assert CALLS == [1, 2]
    assert [path.name for path in stopped.parent.iterdir()] == ["out"]


def test_parts_of_another_configuration_are_not_used(stopped):
    runner.run_study("toy-study", Config(n=8, seed=1), stopped)
    assert CALLS == [0, 1, 2]


def test_parts_of_other_sources_are_not_used(stopped, monkeypatch):
    monkeypatch.setattr(parts, "_sources", lambda: "others")
    runner.run_study("toy-study", Config(n=8), stopped)
    assert CALLS == [0, 1, 2]


def test_two_runs_do_not_share_a_folder(toy, tmp_path):
    with parts.resuming(tmp_path / "out", "", tmp_path), pytest.raises(NtkitError, match="Another run"):
        runner.run_study("toy-study", Config(), tmp_path / "out")


def test_a_termination_unwinds_the_study(tmp_path):
    with pytest.raises(SystemExit), parts.resuming(tmp_path / "out", "", tmp_path), parts.scratch() as folder:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not Path(folder).exists() and list(tmp_path.iterdir()) == []


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


def test_the_page_keeps_the_studies_that_are_not_there(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ntkit.studies.other", sys.modules["ntkit.studies.toy_study"])
    catalog.STUDIES["other"] = ("Nobody", "It counts, too")
    invoke("all", "--out", tmp_path / "results")
    page = document(tmp_path / "results", tmp_path / "studies.md")
    before = page.read_text()
    assert document(tmp_path / "results", page).read_text() == before
    (tmp_path / "studies" / "other-old.png").touch()
    invoke("other", "--n", 4, "--out", tmp_path / "one" / "other")
    after = document(tmp_path / "one", page).read_text()
    assert after.split("\n## ")[1] == before.split("\n## ")[1]
    assert "| [toy-study](#toy-study) | Nobody | 2 of 2 |" in after
    assert "| [other](#other) | Nobody | 1 of 2 |" in after
    assert "| n | three | 4 | = 3 | **no** |" in after
    assert not (tmp_path / "studies" / "other-old.png").exists()
    assert (tmp_path / "studies" / "toy-study-a-picture-of-x.png").exists()


@pytest.mark.parametrize(
    ("study", "options", "message"),
    [
        ("parity-1d", {"p": 33}, "power of two"),
        ("parity-1d", {"p": 8}, "has room for at most 8"),
        ("parity-1d", {"test_peaks": (40,)}, "has room for at most 32"),
        ("superposition", {"queries": 3, "shown": 10}, "expected at most as many"),
        ("two-peaks", {"p": 16}, "there are 120 sequences"),
        ("ball-sphere", {"rates": (0.01,)}, "at least 2 values"),
        ("ball-sphere", {"rates": (1.0, 1000.0)}, "less than one step"),
        ("planar-topology", {"size": 40}, "multiple of 32"),
        ("descent", {"widths": (50, 4000)}, "both sides"),
    ],
)
def test_options_that_do_not_go_together_are_refused(study, options, message):
    with pytest.raises(NtkitError, match=message):
        catalog.configure(study, **options)


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


def test_a_slope_is_that_of_the_logarithms_and_needs_positive_numbers():
    assert slope((1, 2, 4), (3, 12, 48)) == pytest.approx(2)
    for wrong in ((1.0, 0.0), (1.0, float("inf")), (1.0, -1.0)):
        with pytest.raises(NtkitError, match="expected positive numbers"):
            slope((1, 2), wrong)
