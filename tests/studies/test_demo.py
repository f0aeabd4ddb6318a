import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

import ntkit
from ntkit.data.digits import digits
from ntkit.errors import NtkitError
from ntkit.studies import demo
from ntkit.studies.demo_config import QUICK, RATES, Config
from ntkit.studies.runner import run_study

TINY = Config(samples=100, epochs=2, hidden=8, queries=3, subset=20, shown=2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick demo through the command line, as a user runs it: its folder, output and seconds."""
    out = tmp_path_factory.mktemp("quick") / "demo"
    begin = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-m", "ntkit.cli", "demo", "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    return out, answer, time.perf_counter() - begin


@pytest.fixture(scope="module")
def numbers(quick):
    return json.loads((quick[0] / "result.json").read_text())


def test_the_quick_demo_is_quick(quick):
    assert quick[2] < 60  # 10 s on an idle machine with 2 cores; the bar is 20 s


def test_the_quick_demo_says_where_and_how_well(quick, numbers):
    out, answer, _ = quick
    assert answer.stderr == ""  # no progress bar, no warning
    _, accuracy, residual, relative, report = answer.stdout.splitlines()
    assert str(out / "report.html") in report
    assert f"{numbers['numbers']['accuracy']:.4g}" in accuracy
    assert "logits" in residual and "e−" in residual
    assert "≤ 1e-08  yes" in relative


def test_the_quick_demo_leaves_its_files(quick):
    out = quick[0]
    names = {"account.safetensors", "overview.png", "overview.svg", "report.html", "result.json", "run"}
    assert {path.name for path in out.iterdir()} == names
    assert {path.name for path in out.parent.iterdir()} == {"demo"}


def test_the_network_learned_and_the_account_is_exact(numbers):
    assert numbers["numbers"]["accuracy"] >= 0.9
    assert numbers["numbers"]["relative_residual"] <= 1e-8
    assert numbers["numbers"]["converged"] is True


def test_the_numbers_say_how_they_came_about(numbers):
    assert numbers["kind"] == "ntkit demo"
    assert numbers["config"]["seed"] == 0
    assert {name: numbers["config"][name] for name in QUICK} == QUICK
    assert numbers["numbers"]["learning_rate"] == RATES["momentum"]
    assert numbers["versions"]["torch"] == version("torch")
    assert 0 < numbers["numbers"]["seconds"]["training"] < numbers["seconds"]
    assert numbers["peak_memory_bytes"] < 2 * 2**30


def test_the_queries_are_a_dozen_and_their_terms_add_up(numbers):
    assert len(numbers["numbers"]["queries"]) == 12
    assert {query["verdict"] for query in numbers["numbers"]["queries"]} == {"right", "doubtful", "wrong"}
    for query in numbers["numbers"]["queries"]:
        terms = dict(query["terms"])
        prediction = terms.pop("prediction")
        assert sum(terms.values()) == pytest.approx(prediction, abs=1e-10)
        assert (query["label"] == query["predicted"]) == (query["verdict"] != "wrong")


def test_the_saved_account_and_run_open_again(quick, numbers):
    out = quick[0]
    account = ntkit.Account.load(out / "account.safetensors")
    assert account.relative_residual == pytest.approx(numbers["numbers"]["relative_residual"])
    config = Config(**QUICK)
    data = digits(config.samples, seed=config.seed)
    again = ntkit.account(
        out / "run",
        demo.network(config),
        torch.nn.CrossEntropyLoss(),
        train=(data.train_x, data.train_y),
        queries=data.held_out_x[:1],
        nodes=2,
        tol=1e-3,
    )
    assert again.contributions.shape == (1, 10, config.samples)


def test_the_report_is_self_contained(quick):
    import re

    html = (quick[0] / "report.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", html)
    assert len(links) > 100
    assert all(link.startswith(("data:", "#")) for link in links)


@pytest.mark.parametrize("optimizer", sorted(RATES))
def test_every_optimizer_is_accounted_for(optimizer):
    assert demo.run(replace(TINY, optimizer=optimizer)).account.relative_residual <= 1e-8


def test_a_demo_in_float32_is_accounted_for():
    assert demo.run(replace(TINY, dtype="float32")).account.relative_residual <= 1e-8


@pytest.mark.slow
def test_an_account_that_misses_its_tolerance_says_so(tmp_path):
    threads = torch.get_num_threads()
    outcome = run_study("demo", replace(TINY, activation="relu", tol=1e-18), tmp_path / "out")
    assert outcome.record is not None and not outcome.holds
    assert not outcome.record["numbers"]["converged"]
    assert outcome.record["numbers"]["relative_residual"] > 1e-18
    assert "above the tolerance" in (tmp_path / "out" / "report.html").read_text()
    assert torch.get_num_threads() == threads


def test_the_same_seed_gives_the_same_numbers():
    first, second = (demo.run(TINY).numbers for _ in range(2))
    for name in ("accuracy", "residual", "queries", "curves"):
        assert first[name] == second[name]


def test_a_folder_of_another_kind_is_refused_before_any_work(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(NtkitError, match="not replaced"):
        run_study("demo", TINY, tmp_path)


def test_a_diverging_training_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(NtkitError, match="diverged"):
        run_study("demo", replace(TINY, optimizer="sgd", learning_rate=1e200), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"epochs": 2.5}, {"optimizer": "lbfgs"}])
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(NtkitError, match="expected"):
        Config(**wrong)
