"""How results show themselves: short in a terminal, with a figure in a notebook."""

import tempfile

import pytest
import torch
from torch import nn

import ntkit


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    y, net = (x[:, 0] > 0).long(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer, folder = torch.optim.SGD(net.parameters(), 0.1), tempfile.mkdtemp() + "/run"
    with ntkit.record(folder, net, optimizer, train=(x, y)) as run:
        for _ in range(4):
            run.batch(range(8))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    ask = {"train": (x, y), "queries": x[:2]}
    account = ntkit.account(folder, net, "cross_entropy", **ask)
    kernel, limit = ntkit.EmpiricalNTK(net, outputs="full"), ntkit.infinite_width(net, x[:1])
    return {
        "account": account,
        "account plan": account.plan,
        "counterfactual": ntkit.counterfactual(folder, net, "cross_entropy", **ask),
        "limit": limit,
        "program": limit.program,
        "explanation": kernel.explain(x),
        "plan": kernel.plan(x),
        "kernel": kernel,
        "sum": kernel + 2.0 * kernel.normalized(),
        "path kernel": ntkit.PathKernel(folder, net),
        "limit kernel": limit.ntk,
    }


NAMES = (
    "account",
    "account plan",
    "counterfactual",
    "limit",
    "program",
    "explanation",
    "plan",
    "kernel",
    "sum",
)


@pytest.mark.parametrize("name", [*NAMES, "path kernel", "limit kernel"])
def test_everything_says_what_it_is(results, name):
    text = repr(results[name])
    assert " at 0x" not in text and len(text) < 1500


def test_kernels_name_what_is_not_their_default(results):
    assert repr(results["kernel"]) == "EmpiricalNTK(<Sequential with 26 weights>, outputs='full')"
    assert repr(results["sum"]).startswith("Sum(EmpiricalNTK(") and "Normalized(" in repr(results["sum"])


@pytest.mark.parametrize("name", ["account", "counterfactual"])
def test_accounts_draw_themselves(results, name):
    html = results[name]._repr_html_()
    assert "<svg" in html and "<pre" in html and "queries" in html


@pytest.mark.parametrize("name", ["limit", "program", "explanation"])
def test_tables_scroll(results, name):
    assert results[name]._repr_html_().startswith("<pre style=") and "&lt;" not in repr(results[name])


def test_long_programs_are_shortened_but_not_printed_so():
    layers = [m for _ in range(30) for m in (nn.Linear(3, 3), nn.ReLU())]
    limit = ntkit.infinite_width(nn.Sequential(*layers, nn.Linear(3, 2)), torch.randn(1, 3))
    assert len(repr(limit).splitlines()) < 40 < len(str(limit).splitlines())
    assert "lines more" in repr(limit.program) and "lines more" not in str(limit.program)


def test_a_bar_in_a_notebook_shows_what_is_left_and_goes(monkeypatch):
    from ntkit.compute import progress as module

    shown: list[str] = []
    clock = iter([0.0, 0.5, 2.0, 2.1, 4.0])
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(
        module.NotebookBar, "_show", lambda bar, html: shown.append(html) or setattr(bar, "_shown", 1)
    )
    with module.progress("Accounting", 40) as done:
        for _ in range(4):
            done(5)
    assert len(shown) == 3 and shown[-1] == ""  # not at once, not too often, and gone at the end
    assert 'max="40" value="10"' in shown[0] and "10 of 40, 0:06 left" in shown[0]
    assert "20 of 40, 0:04 left" in shown[1]
