from __future__ import annotations

import pytest
import torch
from runs import GRID, ball, batches, mlp, square, train
from torch import optim

import ntkit


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    model, data = mlp(), ball(16)
    folder = tmp_path_factory.mktemp("result") / "run"
    train(folder, model, optim.AdamW(model.parameters(), 1e-2), data, batches(16, 4, 20))
    return ntkit.account(folder, model, square, train=data, queries=GRID)


def test_save_and_load_give_the_same_account(account, tmp_path):
    account.save(tmp_path / "a.safetensors")
    again = ntkit.Account.load(tmp_path / "a.safetensors")
    for name, value in vars(account).items():
        same = (
            torch.equal(value, getattr(again, name))
            if isinstance(value, torch.Tensor)
            else value == getattr(again, name)
        )
        assert same, name
    assert repr(again) == repr(account)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_damaged_files_are_refused(account, tmp_path):
    path = tmp_path / "a.safetensors"
    account.save(path)
    whole = path.read_bytes()
    for broken in (
        whole[:-8],
        whole[: len(whole) // 2] + b"\x3f" * 40 + whole[len(whole) // 2 + 40 :],
        b"",
        b"junk" * 9,
    ):
        path.write_bytes(broken)
        with pytest.raises(ntkit.NtkitError, match=r"a\.safetensors"):
            ntkit.Account.load(path)
    with pytest.raises(ntkit.NtkitError, match="cannot be read"):
        ntkit.Account.load(tmp_path / "none")
    with pytest.raises(ntkit.NtkitError, match="cannot be written"):
        account.save(tmp_path / "none" / "a")


def test_xarray_has_named_dimensions_and_the_identity(account):
    table = account.to_xarray()
    assert table["contributions"].dims == ("query", "output", "sample")
    parts = ("initial", "decay", "start", "buffers", "rounding", "residual")
    total = table["contributions"].sum("sample") + sum(table[name] for name in parts)
    assert float(abs(total - table["prediction"]).max()) <= 1e-13
    assert table["by_step"].dims == ("query", "output", "step")
    assert "units" in table["prediction"].attrs


def test_summary_says_what_it_is(account):
    text = repr(account)
    assert "residual / movement" in text and "not what would have happened" in text


def test_sums_by_class_and_by_step_are_those_of_the_contributions(account):
    labels = torch.arange(16) % 3
    by_class = account.by_class(labels)
    assert by_class.shape == (*account.prediction.shape, 3)
    assert torch.allclose(by_class[..., 1], account.contributions[..., labels == 1].sum(-1), atol=1e-14)
    assert account.by_step.shape == (*account.prediction.shape, 20)
    assert torch.allclose(account.by_step.sum(-1), account.contributions.sum(-1), atol=1e-12)
    assert torch.equal(account.over_time(3), account.by_step[3, 0])
    for wrong in (labels[:3], labels.double(), labels - 1):
        with pytest.raises(ntkit.NtkitError, match="16 training samples"):
            account.by_class(wrong)


def test_a_step_counts_what_its_gradients_moved(tmp_path):
    """Plain SGD by the left-end rule: the step's own inner product of gradients, by autograd."""
    model, (x, y) = mlp(), ball(16)
    optimizer, steps = optim.SGD(model.parameters(), 0.1), batches(16, 4, 6)
    weights = [[p.detach().clone() for p in model.parameters()]]
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for index in steps:
            run.batch(index)
            optimizer.zero_grad()
            square(model(x[index]), y[index]).backward()
            optimizer.step()
            weights.append([p.detach().clone() for p in model.parameters()])
    a = ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=GRID[:1], nodes="left")
    for k, index in enumerate(steps):
        with torch.no_grad():
            for p, w in zip(model.parameters(), weights[k], strict=True):
                p.copy_(w)
        g, h = (
            torch.cat([t.reshape(-1) for t in torch.autograd.grad(value, list(model.parameters()))])
            for value in (model(GRID[:1]).sum(), square(model(x[index]), y[index]))
        )
        assert float(a.over_time(0)[k]) == pytest.approx(-0.1 * float(g @ h), rel=1e-10)


def test_margins_and_self_influence(tmp_path):
    torch.manual_seed(0)
    model, x = (
        torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double(),
        ball(12)[0],
    )
    y, loss = torch.arange(12) % 3, torch.nn.functional.cross_entropy
    train(tmp_path / "run", model, optim.Adam(model.parameters(), 1e-2), (x, y), batches(12, 4, 15), loss)
    a = ntkit.account(tmp_path / "run", model, loss, train=(x, y), queries=x[[5, 2]])
    m = a.margin(0, 2)
    assert torch.equal(m.prediction, a.prediction[:, :1] - a.prediction[:, 2:]) and m._identity_holds()
    assert torch.equal(m.contributions[:, 0], a.contributions[:, 0] - a.contributions[:, 2])
    own = a.self_influence([5, 2])
    assert torch.equal(own[0], a.contributions[0, :, 5]) and torch.equal(own[1], a.contributions[1, :, 2])
    assert torch.equal(a.self_influence(), torch.stack([a.contributions[0, :, 0], a.contributions[1, :, 1]]))
    for wrong in ([5], [5, 12], [-1, 2]):
        with pytest.raises(ntkit.NtkitError, match="one training sample"):
            a.self_influence(wrong)
    with pytest.raises(ntkit.NtkitError, match="Output 3"):
        a.margin(0, 3)


def test_top_checks_its_arguments(account):
    assert len(account.top(0, k=100)) == 16
    assert account.top(-1) == account.top(len(GRID) - 1)
    for arguments in ({"query": 999}, {"query": 0, "output": 1}, {"query": 0, "k": -1}):
        with pytest.raises(ntkit.NtkitError):
            account.top(**arguments)


def test_the_table_holds_every_contribution(account):
    q, o, n = account.contributions.shape
    table = account.table()
    assert len(table) == q * o * n
    assert table["contribution"].to_numpy().reshape(q, o, n) == pytest.approx(account.contributions.numpy())
    one = account.table(2)
    top = account.top(2, 4, 0)
    assert one["sample"].head(4).tolist() == [c.index for c in top]
    assert one["contribution"].head(4).tolist() == [c.contribution for c in top]
    assert len(one) == n and set(one["query"]) == {2}
    with pytest.raises(ntkit.NtkitError, match="Query 99"):
        account.table(99)


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(2, 4)).double(), torch.randn(12, 2, dtype=torch.float64)
    y, loss = torch.arange(12) % 4, torch.nn.functional.cross_entropy
    folder = tmp_path_factory.mktemp("classified") / "run"
    optimizer = optim.SGD(model.parameters(), 0.3)
    with ntkit.record(folder, model, optimizer) as run:
        for _ in range(6):
            run.batch(range(12))
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    options = {"train": (x, y), "queries": x[:3], "tol": 1e-6}
    return lambda **more: (model(x[:3]), ntkit.account(folder, model, loss, **options, **more))


NAMES = ["owl", "jay", "kite", "wren"]


def test_an_account_says_what_it_is_about(classified, tmp_path):
    logits, predicted = classified(target="predicted")
    best = logits.argmax(1).tolist()
    assert [predicted.output_name(i, classes=NAMES) for i in range(3)] == [NAMES[i] for i in best]
    assert [predicted.output_name(i) for i in range(3)] == [str(i) for i in best]
    assert predicted.plan.rows == 3 and predicted.plan.precision == "float64"
    predicted.save(tmp_path / "a")
    again = ntkit.Account.load(tmp_path / "a")
    assert again.plan == predicted.plan and again.chosen == predicted.chosen
    _, margin = classified(target=("margin", 1, 3))
    assert margin.output_name(0, classes=NAMES) == "jay less wren"
    _, whole = classified()
    assert whole.output_name(0, 2, NAMES) == "kite"
    assert whole.margin(1, 3).output_name(0, classes=NAMES) == "jay less wren"
    assert torch.allclose(whole.margin(1, 3).contributions, margin.contributions, atol=1e-6)
    _, some = classified(target=[2, 0])
    assert [some.output_name(0, j, NAMES) for j in (0, 1)] == ["kite", "owl"]
    _, loss = classified(target="loss", labels=torch.tensor([3, 0, 1]))
    assert loss.output_name(0, classes=NAMES) == "loss for wren"
    with pytest.raises(ntkit.NtkitError, match="name for each output"):
        predicted.output_name(0, classes=NAMES[: max(best)])


def test_a_page_names_what_the_account_is_about(classified, tmp_path):
    logits, predicted = classified(target="predicted")
    options = {"classes": NAMES, "labels": torch.arange(12) % 4, "truth": logits.argmax(1)}
    page = ntkit.report.explain(predicted, tmp_path / "page.html", **options).read_text()
    for i in logits.argmax(1).tolist():
        assert NAMES[i] in page
    assert "right" in page


def test_a_plan_is_made_without_an_account(classified):
    _, plan = classified(plan=True)
    assert plan.steps == 6 and plan.rows == 12 and plan.tiles == 1 and plan.seconds > 0
    assert "12 rows over 6 steps in 1 tile, float64; nodes for each step" in str(plan)
    with pytest.raises(ntkit.NtkitError, match="plan"):
        classified(plan="yes")
