from fnmatch import fnmatchcase

import pytest
import torch
from networks import CASES, build, jacobian
from torch import nn

import ntkit
from ntkit.finite.jacobian import proof

TOLERANCE = 1e-10  # relative, float64, against autograd


def assert_close(found, expected):
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"relative error {error:.1e}"


def reduced(full, outputs):
    diagonal = torch.diagonal(full, dim1=-2, dim2=-1)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1), "mean": diagonal.mean(-1)}[outputs]


@pytest.mark.parametrize("name", CASES)
def test_every_network_against_autograd(name):
    model, x = build(name)
    j = jacobian(model, x)
    full = torch.einsum("nop,mqp->nmoq", j, j)
    own = torch.einsum("nop,nqp->noq", j, j)
    for outputs in ("full", "diagonal", "trace", "mean"):
        k = ntkit.EmpiricalNTK(model, outputs=outputs)
        expected = reduced(full, outputs)
        assert_close(k(x), expected)
        assert_close(k(x, x[1:]), expected[:, 1:])
        assert_close(k.diag(x), reduced(own, outputs))
    assert_close(k.features(x), j)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_goes_the_way_it_should(name):
    model, x = build(name)
    table = ntkit.EmpiricalNTK(model).explain(x)
    case = CASES[name]
    for row in table.rows:
        way = next((w for pattern, w in case.exceptions if fnmatchcase(row.parameter, pattern)), case.way)
        assert row.way == way, f"{row.parameter}: {row.way} ({row.reason})"
        assert row.parameter in str(table)


@pytest.mark.parametrize(
    "name", ["MLP", "conv, zero padding", "tied embedding and decoder", "Linear subclass"]
)
@pytest.mark.parametrize("memory", [2000, "40 kB"])
def test_a_small_budget_changes_nothing(name, memory):
    model, x = build(name)
    for outputs in ("full", "diagonal", "trace"):
        whole = ntkit.EmpiricalNTK(model, outputs=outputs)
        small = ntkit.EmpiricalNTK(model, outputs=outputs, memory=memory)
        assert_close(small(x), whole(x))
        assert_close(small(x, x[:3]), whole(x, x[:3]))
        assert_close(small.diag(x), whole.diag(x))
        assert_close(small.features(x), whole.features(x))
    assert memory != 2000 or small.plan(x).samples < len(x)


def test_ragged_tiles_of_a_symmetric_kernel():
    model = nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 2)).double()
    x = torch.randn(333, 3, dtype=torch.float64)
    for outputs in ("full", "trace"):
        k = ntkit.EmpiricalNTK(model, outputs=outputs)
        assert k.plan(x).tile < len(x)
        assert_close(k(x), k(x, x.clone()))


def test_parts_add_up_and_subsets_are_disjoint():
    model, x = build("U-Net with skips")
    k = ntkit.EmpiricalNTK(model, outputs="full")
    parts = k(x, per_parameter=True)
    assert set(parts) == {name for name, _ in model.named_parameters()}
    assert_close(sum(parts.values()), k(x))
    by_module = [ntkit.EmpiricalNTK(model, outputs="full", params=m)(x) for m in model.children()]
    assert_close(sum(by_module), k(x))
    assert_close(ntkit.EmpiricalNTK(model, outputs="full", params="down.*")(x), by_module[0])
    assert_close(ntkit.EmpiricalNTK(model, outputs="full", params=model.down.bias)(x), parts["down.bias"])
    last = ntkit.EmpiricalNTK(model, outputs="full", params="last")(x)
    assert_close(last, parts["out.weight"] + parts["out.bias"])


def test_frozen_parameters_do_not_count_unless_named():
    model, x = build("MLP")
    part = ntkit.EmpiricalNTK(model, params="0.*")(x)
    model[2].requires_grad_(False)
    assert_close(ntkit.EmpiricalNTK(model)(x), part)
    model.requires_grad_(False)
    with pytest.raises(ntkit.NtkitError, match="requires_grad"):
        ntkit.EmpiricalNTK(model)
    assert_close(ntkit.EmpiricalNTK(model, params="0.*")(x), part)


def test_functions_with_weights_and_several_inputs():
    g = torch.Generator().manual_seed(0)
    weights = {
        "b": torch.randn(4, dtype=torch.float64, generator=g),
        "a": torch.randn(3, 4, dtype=torch.float64, generator=g),
    }
    x = torch.randn(5, 3, dtype=torch.float64, generator=g)
    mask = torch.randint(0, 2, (5, 4), generator=g).double()

    def f(w, inputs):
        return torch.tanh(inputs["x"] @ w["a"] + w["b"]) * inputs["mask"]

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Parameter(weights["b"]), nn.Parameter(weights["a"])

        def forward(self, x, mask):
            return torch.tanh(x @ self.a + self.b) * mask

    rows = []
    for i in range(5):
        jac = torch.func.jacrev(lambda w, i=i: f(w, {"x": x[i : i + 1], "mask": mask[i : i + 1]})[0])(weights)
        rows.append(torch.cat([jac[k].reshape(4, -1) for k in weights], 1))
    j = torch.stack(rows)
    expected = torch.einsum("nop,mqp->nmoq", j, j)
    assert_close(ntkit.EmpiricalNTK(f, weights, outputs="full")({"x": x, "mask": mask}), expected)
    assert_close(ntkit.EmpiricalNTK(Module(), outputs="full")((x, mask)), expected)
    assert_close(ntkit.EmpiricalNTK(Module(), outputs="full")({"mask": mask, "x": x}), expected)


def test_a_scalar_output_is_one_output():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert ntkit.EmpiricalNTK(model, outputs="full")(x).shape == (5, 5, 1, 1)
    assert_close(ntkit.EmpiricalNTK(model)(x), jacobian(model, x)[:, 0] @ jacobian(model, x)[:, 0].T)


def test_the_kernel_follows_the_network():
    model, x = build("MLP")
    k = ntkit.EmpiricalNTK(model)
    before = k(x).clone()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert (k(x) - before).abs().max() > 1e-3
    assert_close(k(x), ntkit.EmpiricalNTK(model)(x))


def test_checks_run_once_for_a_model_and_its_shapes(monkeypatch):
    model, x = build("conv, zero padding")
    calls = []
    prove = proof.prove
    monkeypatch.setattr("ntkit.finite.empirical.prove", lambda *a: calls.append(1) or prove(*a))
    k = ntkit.EmpiricalNTK(model)
    for n in (3, 1, 2):
        k(x[:n])
        k.diag(x[:n])
        k(x, x[:n])
    assert len(calls) == 1
    model.eval()
    k(x)
    assert len(calls) == 2


def test_normalized_is_a_cosine():
    model, x = build("MLP")
    for outputs in ("mean", "diagonal", "full"):
        k = ntkit.EmpiricalNTK(model, outputs=outputs).normalized()
        block, diag = k(x, x[:2]), k.diag(x)
        assert block.abs().max() <= 1 + 1e-12
        own = torch.stack([k(x)[i, i] for i in range(len(x))])
        assert_close(diag, own)
    j = jacobian(model, x).flatten(1)
    j = j / j.norm(dim=1, keepdim=True)
    assert_close(ntkit.EmpiricalNTK(model).normalized()(x), j @ j.T)


def test_float32_and_conversion_of_arrays():
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2))
    x = torch.randn(6, 3)
    k = ntkit.EmpiricalNTK(model)(x)
    assert k.dtype == torch.float32
    exact = ntkit.EmpiricalNTK(model.double())(x.double())
    assert (k - exact).abs().max() / exact.abs().max() < 1e-5
    assert torch.equal(ntkit.EmpiricalNTK(model)(x.double().numpy()), exact)


def test_compiled_models_are_read_as_their_original():
    model, x = build("MLP")
    assert_close(ntkit.EmpiricalNTK(torch.compile(model))(x), ntkit.EmpiricalNTK(model)(x))


def test_nothing_of_the_user_is_changed():
    model, x = build("batch norm in eval mode")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    inputs, seed = x.clone(), torch.get_rng_state()
    ntkit.EmpiricalNTK(model, outputs="full")(x)
    assert torch.equal(x, inputs)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


def test_tokens_with_a_mask():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.out = nn.Linear(8, 2)

        def forward(self, tokens, mask):
            h = self.embedding(tokens)
            h, _ = self.attention(h, h, h, key_padding_mask=mask, need_weights=False)
            return self.out(h.masked_fill(mask[..., None], 0.0).sum(1))

    torch.manual_seed(0)
    model = Masked().double()
    tokens, mask = torch.randint(0, 11, (4, 5)), torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 3:] = mask[2, 4:] = True
    rows = []
    for i in range(4):
        out = model(tokens[i : i + 1], mask[i : i + 1]).reshape(-1)
        grads = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in out]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in each]) for each in grads]))
    j = torch.stack(rows)
    k = ntkit.EmpiricalNTK(model, outputs="full")
    assert_close(k({"tokens": tokens, "mask": mask}), torch.einsum("nop,mqp->nmoq", j, j))
    assert {row.way for row in k.explain((tokens, mask)).rows} == {"structure"}
    assert_close(k.operator((tokens, mask)).to_dense(), k((tokens, mask)).transpose(1, 2).reshape(8, 8))


def test_a_network_that_is_rebuilt_is_read_anew():
    model, x = build("MLP")
    k = ntkit.EmpiricalNTK(model)
    k(x)
    model[1] = nn.LeakyReLU(0.3)
    assert_close(k(x), ntkit.EmpiricalNTK(model)(x))
    model[1].negative_slope = 0.9
    assert_close(k(x), ntkit.EmpiricalNTK(model)(x))
    model[0] = nn.Linear(5, 7, bias=False, dtype=torch.float64)
    assert_close(k(x), ntkit.EmpiricalNTK(model)(x))
