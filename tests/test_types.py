"""What the public signatures say: read by pyright in a user's script, and held to by calls."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import beartype
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped
from torch import nn

import ntkit
from ntkit.infinite.duals.dual import Dual
from ntkit.infinite.limit import LimitKernel
from ntkit.infinite.monte_carlo import Estimate
from ntkit.kernel import Composed, Kernel, Normalized, Product, Scaled, Sum
from ntkit.machine.flow import LearningCurve
from ntkit.machine.ridge_path import RidgePath

SCRIPT = Path(__file__).with_name("typed_script.py")
# NumPy's scalar of any dtype, that of the user's own labels and samples, is printed with its value
ANY_DTYPE = "dtype[generic[Any]]"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What pyright says about the script, in a folder of its own."""
    if find_spec("pyright") is None:
        pytest.skip("pyright comes with the extra `dev`: make lint runs this test")
    folder = tmp_path_factory.mktemp("user")
    (folder / SCRIPT.name).write_text(SCRIPT.read_text())
    source = Path(ntkit.__file__).parents[1]
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(source)]}))
    command = ["-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)["generalDiagnostics"]


def test_the_script_uses_each_public_name() -> None:
    text = SCRIPT.read_text()
    assert [name for name in ntkit.__all__ if not re.search(rf"\bntkit\.{name}\b", text)] == []


def test_no_result_is_any(said: list[dict[str, Any]]) -> None:
    shown = [s["message"] for s in said if s["severity"] == "information"]
    assert len(shown) == SCRIPT.read_text().count("reveal_type(")
    types = [(m, m.rpartition(" is ")[2].replace(ANY_DTYPE, "dtype[generic]")) for m in shown]
    assert [m for m, t in types if re.search(r"\b(Any|Unknown)\b", t)] == []


def test_a_typo_in_an_argument_is_an_error_and_the_only_one(said: list[dict[str, Any]]) -> None:
    errors = [s["message"] for s in said if s["severity"] == "error"]
    assert len(errors) == 1 and 'No parameter named "labls"' in errors[0], errors


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    return jaxtyped(typechecker=beartype.beartype)(function)


PUBLIC: list[tuple[type, str]] = [
    *((k, name) for k in (ntkit.EmpiricalNTK, ntkit.ConjugateKernel) for name in ("__init__", "features")),
    *(
        (k, name)
        for k in (
            ntkit.EmpiricalNTK,
            ntkit.ConjugateKernel,
            ntkit.PathKernel,
            LimitKernel,
            Sum.__mro__[1],
            Scaled,
            Composed,
            Normalized,
        )
        for name in ("__call__", "diag")
    ),
    (Dual, "__call__"),
    (Dual, "hermite"),
    *((ntkit.Account, name) for name in ("__init__", "by_class", "over_time", "self_influence", "margin")),
    *((k, "__init__") for k in (Estimate, LearningCurve, RidgePath)),
    *((k, "fit") for k in (ntkit.KernelRidge, ntkit.GaussianProcess, ntkit.GradientFlow)),
    *((k, "predict") for k in (ntkit.KernelRidge, ntkit.GaussianProcess, ntkit.GradientFlow)),
    *((ntkit.KernelRidge, name) for name in ("leave_one_out", "gcv", "path", "predict_interval")),
    (RidgePath, "predict"),
    (ntkit.GaussianProcess, "sample_y"),
    (ntkit.GradientFlow, "learning_curve"),
    *((ntkit.KernelClassifier, n) for n in ("fit", "predict", "predict_proba", "decision_function")),
    *((ntkit.RandomFeatures, n) for n in ("fit", "transform", "error", "kernel", "to_module")),
]  # fmt: skip


@pytest.fixture
def held() -> Iterator[None]:
    """Every call of a public method is held to its annotations."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in PUBLIC:
            patch.setattr(owner, name, checked(vars(owner)[name]))
        yield


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("outputs", ["mean", "trace", "diagonal", "full"])
def test_kernels_give_what_they_say(held: None, model: nn.Module, x: torch.Tensor, outputs: Any) -> None:
    k = ntkit.EmpiricalNTK(model, outputs=outputs)
    kernels: list[Kernel] = [k, Sum(k, k), Product(k, k), 2.0 * k, k.normalized(), k.compose(torch.tanh)]
    for kernel in kernels:
        kernel(x, x[:2])
        kernel.diag(x)
    assert set(k(x, per_parameter=True)) == set(dict(model.named_parameters()))
    k.features(x)


def test_limits_give_what_they_say(held: None, model: nn.Module, x: torch.Tensor) -> None:
    limit = checked(ntkit.infinite_width)(model, x[:1])
    for kernel in (limit.nngp, limit.ntk, limit.layers["h1"].nngp, ntkit.ConjugateKernel(model)):
        kernel(x, x[:2])
        kernel.diag(x)
    checked(ntkit.monte_carlo)(model, 2, x, x[:2])
    phi = checked(ntkit.dual)("relu")
    phi([0.5, 0.1], 1.0, np.ones(2))
    phi.hermite(3)
    checked(ntkit.testing.check_kernel)(limit.ntk, x[:3], x[3:])


def test_runs_give_what_they_say(held: None, model: nn.Module, x: torch.Tensor, tmp_path: Path) -> None:
    y, loss = x[:, :2], nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for _ in range(2):
            checked(type(run).batch)(run, range(6))
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    a = checked(ntkit.account)(tmp_path / "run", model, loss, train=(x, y), queries=x[:2])
    a.by_class([0, 1, 0, 1, 0, 1])
    a.over_time(0)
    a.self_influence()
    a.margin(0, 1)
    path = ntkit.PathKernel(tmp_path / "run", model, outputs="full")
    path(x, x[:2])
    path.diag(x)
    checked(ntkit.linearize)(model)(x)
    checked(ntkit.ntk_parametrize)(model, seed=0)
    checked(ntkit.report.explain)(a, tmp_path / "a.html", labels=y[:, 0] > 0)


@pytest.mark.parametrize("o", [(), (2,)])
def test_machines_give_what_they_say(held: None, x: torch.Tensor, o: tuple[int, ...]) -> None:
    samples = x.numpy()
    y = np.broadcast_to(samples[:, :1].reshape(6, *(1 for _ in o)), (6, *o))
    ridge = ntkit.KernelRidge(alpha=0.1).fit(samples, y)
    ridge.predict(samples[:4])
    ridge.leave_one_out()
    ridge.path([0.1, 1.0]).predict(samples[:4])
    gp = ntkit.GaussianProcess(noise=0.1).fit(samples, y)
    for flags in ({}, {"return_std": True}, {"return_cov": True}):
        gp.predict(samples[:4], **flags)
        for t in (1.0, [1.0, 2.0]):
            ntkit.GradientFlow(t=t).fit(samples, y).predict(samples[:4], **flags)
    gp.sample_y(samples[:4], 3)
    ntkit.GradientFlow().fit(samples, y).learning_curve([1.0, 2.0])
    labels = np.array(list("ababab") if o else list("abcabc"))
    classifier = ntkit.KernelClassifier().fit(samples, labels)
    classifier.predict(samples[:4])
    classifier.predict_proba(samples[:4])
    classifier.decision_function(samples[:4])
    ntkit.RandomFeatures("gaussian", 10).fit(samples).transform(samples[:4])


def test_a_wrong_shape_or_type_is_caught(held: None, x: torch.Tensor, model: nn.Module) -> None:
    with pytest.raises(TypeCheckError):
        Estimate(*(torch.zeros(2, n) for n in (2, 2, 2, 3)), 5)
    with pytest.raises(TypeCheckError):
        Estimate(*(torch.zeros(2, 2, dtype=d) for d in (torch.int64, *[torch.float64] * 3)), 5)
    with pytest.raises(TypeCheckError):
        ntkit.EmpiricalNTK(3)  # pyright: ignore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ntkit.finite.blocks.diagonal", lambda *a: torch.zeros((), dtype=torch.float64))
        with pytest.raises(TypeCheckError):
            ntkit.EmpiricalNTK(model).diag(x)
