"""Wrong calls: each bad value of each argument of each public function gives one refusal that helps.

`KINDS` says what can be wrong with an argument of some kind, `SLOTS`, `FITS`, ..., `QUESTIONS` where such
arguments are. A case is one bad value in one place. Its refusal is an `NtkitError` that names what was given
and says what to give instead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from wrong_again import AGAIN
from wrong_fits import FITS
from wrong_parts import PARTS
from wrong_places import SLOTS, Call
from wrong_questions import QUESTIONS
from wrong_setting import (
    LOSS,
    PLACE,
    X,
    account,
    an_account,
    data,
    fitted,
    limit,
    net,
    ntk,
    recorded,
    trainee,
)
from wrong_tiles import TILES, built
from wrong_values import KINDS, Bad, rows

import ntkit
from ntkit.cli import app

MOST = 6  # bad values of a kind that are drawn for one argument
REMEDY = re.compile(
    "expected|must|should|need|required|give|take|use|call|choose|make|move|convert|clean|check|bring|reshape|"
    "return|begin|leave|name one|ask for|account for|there are|it has|run the|before the|record with|instead",
    re.IGNORECASE,
)


def cases() -> Iterator[tuple[str, Bad, Call]]:
    """Yield all cases: of a large kind some of its values, drawn by the place where they are put."""
    for place, (kind, call) in {**SLOTS, **FITS, **PARTS, **AGAIN, **QUESTIONS, **TILES}.items():
        bad = KINDS[kind] if isinstance(kind, str) else kind
        drawn = bad if len(bad) <= MOST else random.Random(place).sample(bad, MOST)
        for each in bad:
            if each in drawn:
                yield f"{place}: {each.label}", each, call


CASES = {name: (bad, call) for name, bad, call in cases()}

pytestmark = pytest.mark.filterwarnings("ignore:The evidence still grows")  # random targets


@pytest.fixture(autouse=True, scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    PLACE["root"] = tmp_path_factory.mktemp("wrong")
    recorded(), recorded(2), built()
    yield
    for cached in (trainee, an_account, ntk, limit, fitted, built):
        cached.cache_clear()


def told(value: Any) -> list[str]:
    """Return texts of which a refusal of a value holds one."""
    texts = [repr(value), str(value), type(value).__name__]
    if isinstance(value, torch.Tensor):
        texts += [str(tuple(value.shape)), str(list(value.shape)), str(value.dtype)]
    if isinstance(value, list):
        texts += [repr(v) for v in value]
    return texts


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_call_is_refused(name):
    bad, call = CASES[name]
    value = bad.make()
    before = set(PLACE["root"].rglob("*"))
    with pytest.raises(ntkit.NtkitError) as caught:  # a warning is an error, and none of these
        call(value)
    text = str(caught.value)
    if bad.says is None:
        assert any(t in text for t in told(value)), f"not said what was given: {text}"
    else:
        assert re.search(bad.says, text, re.DOTALL), f"not said, {bad.says}: {text}"
    assert REMEDY.search(text) and 25 < len(text) < 1200, f"not said what to do: {text}"
    left = set(PLACE["root"].rglob("*")) - before
    assert not left, f"left behind: {left}"


REFUSED: dict[str, Callable[[nn.Module, Any, Path], Any]] = {
    "a batch": lambda model, optimizer, folder: batch_of(model, optimizer, folder, [99]),
    "train": lambda model, optimizer, folder: ntkit.record(folder, model, optimizer, train=3),  # type: ignore
    "queries": lambda model, optimizer, folder: account(
        model=model, queries=rows(1, torch.nan)(), keep=folder
    ),
    "loss": lambda model, optimizer, folder: account(model=model, loss=nn.L1Loss(), keep=folder),
    "target": lambda model, optimizer, folder: account(model=model, target="margn", keep=folder),
    "watched queries": lambda model, optimizer, folder: ntkit.watch(
        model, optimizer, LOSS, data(), rows(1, torch.nan)()
    ),
}


def batch_of(model: nn.Module, optimizer: Any, folder: Path, indices: list[int]) -> None:
    with ntkit.record(folder, model, optimizer, train=data()) as run:
        run.batch(indices)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_leaves_nothing_behind(name, tmp_path):
    model = net().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ntkit.NtkitError):
        REFUSED[name](model, optimizer, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bad", KINDS["y"], ids=lambda bad: bad.label)
def test_scores_are_those_of_scikit_learn(bad):
    with pytest.raises((ValueError, TypeError)):
        fitted("ridge").score(X(), bad.make())


def test_the_command_line_names_the_nearest():
    for given, meant in (
        (["study", "lazzy"], "lazy"),
        (["study", "kernel-pac"], "kernel-pca"),
        (["dmo"], "demo"),
    ):
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 2 and f"Did you mean '{meant}'?" in result.output


def test_there_are_enough():
    assert len(CASES) >= 300
    places = " ".join([*SLOTS, *PARTS, *AGAIN, *TILES])
    estimators = {"KernelRidge", "KernelClassifier", "GaussianProcess", "GradientFlow", "RandomFeatures"}
    estimators |= {"FeatureRidge", "NystromFeatures"}
    rest = (
        set(ntkit.__all__)
        - estimators
        - {"NoRuleError", "NtkitError", "__version__", "diagnose", "report", "testing"}
    )
    assert {name for name in rest if name not in places} == set()
