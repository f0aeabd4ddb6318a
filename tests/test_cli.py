import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from ntkit import __version__
from ntkit.cli import app, main
from ntkit.compute.threads import passive_workers

HEAVY = ("torch", "matplotlib", "sklearn", "numpy", "jinja2")


def run(*arguments):
    return CliRunner().invoke(app, arguments, catch_exceptions=True)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["study", "--help"], ["study", "list"], ["--version"]]
)
def test_help_answers_at_once_and_imports_nothing_heavy(arguments):
    code = f"""
import sys
from ntkit.cli import main
sys.argv = ["ntkit", *{arguments}]
try:
    main()
except SystemExit as end:
    assert not end.code
print([name for name in {HEAVY} if name in sys.modules])
"""
    begin = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    assert answer.stdout.splitlines()[-1] == "[]"
    assert seconds < 2  # 0.3 s on an idle machine; others may be at work on this one


def test_importing_ntkit_is_quick():
    code = "import time; t = time.perf_counter(); import ntkit; print(time.perf_counter() - t)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 2


def test_the_version_is_printed():
    assert run("--version").output == f"ntkit {__version__}\n"


def test_the_help_of_the_demo_shows_its_choices():
    help_text = run("demo", "--help").output
    for option in ("out", "samples", "epochs", "learning-rate", "optimizer", "hidden", "activation", "dtype"):
        assert f"--{option}" in help_text
    assert "--seed" in help_text and "--queries" in help_text and "adamw" in help_text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queries", "0"),
        ("queries", "-3"),
        ("epochs", "-1"),
        ("hidden", "0"),
        ("samples", "100000"),
        ("batch", "0"),
        ("seed", "-1"),
        ("learning-rate", "0"),
        ("learning-rate", "nan"),
        ("learning-rate", "inf"),
        ("weight-decay", "-0.1"),
        ("weight-decay", "nan"),
        ("tol", "0"),
    ],
)
def test_bad_values_are_one_clear_line(option, value, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["ntkit", "demo", "--out", str(out), f"--{option}", value])
    with pytest.raises(SystemExit) as end:
        main()
    message = str(end.value.code)
    assert message.startswith(f"ntkit: {option.replace('-', '_')} is ") and "expected" in message
    assert "\n" not in message
    assert not out.exists()


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    answer = subprocess.run(
        [sys.executable, "-m", "ntkit.cli", "demo", "--quick", "--out", str(tmp_path / "file" / "out")],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("ntkit: The output folder") and "cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_choice_is_a_usage_error():
    answer = run("demo", "--optimizer", "lbfgs")
    assert answer.exit_code == 2
    assert "adamw" in answer.output


def test_threads_sleep_while_they_wait():
    """Set before torch is loaded, which reads it once; what the user set stays."""
    code = "import sys, ntkit.cli, os; print(os.environ['OMP_WAIT_POLICY'])"
    unset = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=unset | given)
        assert ran.stdout.strip() == expected
    with passive_workers():
        assert os.environ["OMP_WAIT_POLICY"] in ("PASSIVE", "ACTIVE")


def test_the_doctor_tells_what_is_slow_here(monkeypatch):
    monkeypatch.setattr("ntkit.compute.doctor.free_processors", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    answer = run("doctor")
    assert answer.exit_code == 0, answer.output
    for told in (__version__, "GFLOP/s", "OMP_WAIT_POLICY=PASSIVE", "without torch.compile"):
        assert told in answer.output
    monkeypatch.setattr("ntkit.compute.doctor.free_processors", lambda: 64)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "OMP_WAIT_POLICY" not in run("doctor").output


def test_what_is_chosen_is_logged(caplog, tmp_path):
    import numpy as np
    import torch

    import ntkit

    caplog.set_level("DEBUG", logger="ntkit")
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    model = torch.nn.Linear(1, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, x)) as recording:
        recording.batch(range(6))
        torch.nn.functional.mse_loss(model(x), x).backward()
        optimizer.step()
    ntkit.account(tmp_path / "run", model, "mse_loss", train=(x, x), queries=x[:1])
    ntkit.EmpiricalNTK(model)(x)
    ntkit.infinite_width(
        torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)), x.float()
    )
    ntkit.KernelRidge().fit(np.arange(6.0)[:, None], np.arange(6.0))
    text = caplog.text
    for words in (
        "recorded 1 steps",
        "account of",
        "tangent kernel:",
        "limit of infinite",
        "KernelRidge chose",
    ):
        assert words in text, words


@pytest.mark.parametrize(("flag", "level"), [("-v", "INFO"), ("-vv", "DEBUG"), ("--verbose", "INFO")])
def test_verbose_sets_the_level_of_the_log(flag, level, monkeypatch):
    import logging

    log = logging.getLogger("ntkit")
    monkeypatch.setattr(log, "level", logging.NOTSET)
    assert run(flag, "study", "list").exit_code == 0
    assert logging.getLevelName(log.level) == level
