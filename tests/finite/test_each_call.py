"""What was read of a network is compared with the network itself at each call, for the batch at hand."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn
from torch.nn import functional as F

import ntkit
from ntkit.network import call_with

D = torch.float64


class Reader(nn.Module):
    """Reads values of its inputs in one of the ways that Python has, and does something else for each."""

    def __init__(self, how):
        super().__init__()
        self.a, self.o, self.how = nn.Linear(3, 6), nn.Linear(6, 2), how

    def forward(self, x, n):
        return torch.cat(
            [self.o(self.how(torch.tanh(self.a(h)), k))[None] for h, k in zip(x, n, strict=True)]
        )


READ = {
    "item": lambda h, k: h * k.item(),
    "int": lambda h, k: h.roll(int(k)),
    "float": lambda h, k: h.pow(1.0 + float(k)),
    "index": lambda h, k: [h, h.square(), h.exp(), h.cos()][k],
    "numpy": lambda h, k: h * k.numpy().item(),
    "array": lambda h, k: h * float(torch.tensor([1.0, 0.5, 2.0, -1.0])[list(k[None].tolist())][0]),
    "bool": lambda h, k: h.sin() if k > 1 else h,
    "equal": lambda h, k: h.sin() if torch.equal(k, torch.tensor(2)) else h,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("first", [1, 5])
def test_values_that_python_reads_are_those_of_each_sample(name, first):
    torch.manual_seed(0)
    model, x, n = Reader(READ[name]).to(D), torch.randn(5, 3, dtype=D), torch.tensor([2, 0, 3, 1, 2])
    truth = mean_kernel(model, (x, n))
    k = ntkit.EmpiricalNTK(model)
    k((x[:first], n[:first]))
    for _ in range(2):
        assert_kernel(k((x, n)), truth)
        assert_kernel(k((x[3:], n[3:]), (x, n)), truth[3:])
        assert_kernel(k.diag((x, n)), truth.diagonal())
        assert_kernel(k.operator((x, n)) @ torch.eye(5, dtype=D), truth)


class Masked(nn.Module):
    """Attention that looks at its mask first, as those of large libraries do."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        bias = None if bool(mask.all()) else mask[:, None, None].bool()
        return self.out(F.scaled_dot_product_attention(q, k, v, bias)[:, 0, 0])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]])
def test_a_model_that_asks_whether_its_mask_is_full_stays_by_structure(order):
    torch.manual_seed(0)
    model, x = Masked().to(D), torch.randn(4, 5, 8, dtype=D)[order]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])[order]
    k = ntkit.EmpiricalNTK(model)
    for rows in ([0], [1], [0, 3], [0, 1, 2, 3]):
        part = x[rows], mask[rows]
        assert_kernel(k(part), mean_kernel(model, part))
        assert {row.way for row in k.explain(part).rows} == {"structure"}
    recipes = next(iter(k._recipes.values()))
    assert len(recipes) <= 2  # one for each answer


class Settable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.scale, self.depth, self.act, self.stop, self.names = 1.0, 3, torch.tanh, False, ["a"]

    def forward(self, x):
        for layer in self.layers[: self.depth]:
            x = self.act(layer(x))
        x = (
            torch.cat([x, x.detach().sin() if self.stop else x.sin()], 1)
            if "b" not in self.names
            else x.cos()
        )
        return x * self.scale


def _hook(model):
    model.layers[1].register_forward_hook(lambda m, i, o: 2 * o)


def _forward(model):
    model.layers[2].forward = lambda x: F.linear(x, model.layers[2].weight).square()


def _without_gradient(model):
    layer = model.layers[0]
    layer.forward = lambda x: F.linear(x, layer.weight.detach(), layer.bias)


CHANGES = {
    "a number": lambda m: setattr(m, "scale", 0.5),
    "a list": lambda m: m.names.append("b"),
    "a function": lambda m: setattr(m, "act", torch.sin),
    "a flag that only gradients see": lambda m: setattr(m, "stop", True),
    "a hook": _hook,
    "a forward of its own": _forward,
    "a weight's gradient, cut": _without_gradient,
    "a module": lambda m: m.layers.__setitem__(0, nn.Linear(4, 4, bias=False, dtype=D)),
}


@pytest.mark.filterwarnings("ignore:No output depends on the parameter")
@pytest.mark.parametrize("name", CHANGES)
def test_a_network_that_was_changed_is_read_again(name):
    torch.manual_seed(0)
    model, x = Settable().to(D), torch.randn(4, 4, dtype=D)
    k = ntkit.EmpiricalNTK(model)
    for _ in range(3):
        assert_kernel(k(x), mean_kernel(model, x))
    CHANGES[name](model)
    for _ in range(2):
        assert_kernel(k(x), mean_kernel(model, x))


def test_all_rows_are_compared_when_that_is_asked_for():
    class Cache(nn.Module):
        """Answers from a table, as soon as it has one; what it holds is seen in its outputs alone."""

        def __init__(self):
            super().__init__()
            self.l, self.table = nn.Linear(4, 2), [None]

        def forward(self, x):
            y = self.l(x)
            rare = x[:, :1] > 3
            return torch.where(rare, self.table[0](y), y) if self.table[0] is not None else y

    torch.manual_seed(0)
    model, x = Cache().to(D), torch.randn(200, 4, dtype=D).clamp(-2, 2)
    x[117, 0] = 4.0
    k = ntkit.EmpiricalNTK(model, check="all")
    assert_kernel(k(x), mean_kernel(model, x))
    holder = model.table[0] = nn.Identity()
    k(x)
    holder.forward = torch.sin  # in an object that the network only refers to
    assert_kernel(k(x), mean_kernel(model, x))
    with pytest.raises(ValueError, match="'rows' or 'all'"):
        ntkit.EmpiricalNTK(model, check="none")


class Again(torch.autograd.Function):
    """A backward pass that runs modules again, as adjoint methods do."""

    @staticmethod
    def forward(ctx, run, x, *parameters):
        ctx.run = run
        ctx.save_for_backward(x, *parameters)
        return run(x).detach()

    @staticmethod
    def backward(ctx, g):
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            grads = torch.autograd.grad(ctx.run(x), [x, *parameters], g, allow_unused=True)
        filled = (
            torch.zeros_like(t) if o is None else o for o, t in zip(grads, [x, *parameters], strict=True)
        )
        return None, *filled


class Adjoint(nn.Module):
    def __init__(self, inner, euler=0):
        super().__init__()
        self.inner, self.o, self.euler = inner, nn.Linear(3, 2), euler

    def run(self, x):
        for _ in range(self.euler):
            x = x + 0.1 * self.inner(x)
        return x if self.euler else self.inner(x)

    def forward(self, x):
        return self.o(torch.tanh(Again.apply(self.run, x, *self.inner.parameters())))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adjoint(nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3))),
        lambda: Adjoint(nn.Linear(3, 3), euler=4),
        lambda: nn.Sequential(Adjoint(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(2, 3), Adjoint(nn.Linear(3, 3))),
    ],
)
def test_a_backward_pass_that_runs_modules_again(make):
    torch.manual_seed(0)
    model, x = make().to(D), torch.randn(4, 3, dtype=D)
    truth = mean_kernel(model, x)
    k = ntkit.EmpiricalNTK(model)
    for _ in range(2):
        assert_kernel(k(x), truth)
    assert_kernel(k.operator(x) @ torch.eye(4, dtype=D), truth)
    other = {name: 2 * w.detach() for name, w in model.named_parameters()}
    k2 = ntkit.EmpiricalNTK(model, other)(x)
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert_kernel(k2, mean_kernel(model, x))


def test_a_linearized_network_is_that_of_the_module_itself_or_refused():
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=D)
    for make in (lambda: Adjoint(nn.Linear(3, 3)), lambda: Adjoint(nn.Linear(3, 3), euler=2)):
        lazy = ntkit.linearize(make().to(D))
        with pytest.raises(ntkit.NtkitError, match="setup_context"):  # nothing that could be differentiated
            lazy(x)

    class Rerun(nn.Module):
        """A derivative that is asked of the module's own weights, whatever it is called with."""

        def __init__(self):
            super().__init__()
            self.l = nn.Linear(3, 2)
            self.held = [self.l.weight]  # not what a functional call swaps

        def forward(self, x):
            return F.linear(x, self.l.weight) + F.linear(x.sin(), self.held[0]) + self.l.bias

    model = Rerun().to(D)
    model.held = [model.l.weight]
    k = ntkit.EmpiricalNTK(model)
    assert_kernel(k(x), mean_kernel(model, x))
    lazy = ntkit.linearize(model)
    with torch.no_grad():
        lazy.network.l.weight.add_(0.1)
    with pytest.raises(ntkit.NtkitError, match="not that of the module itself"):
        lazy(x)


def test_a_parameter_without_a_use_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    class Stores(nn.Module):
        """Stores in evaluation mode what depends on its weight, without a gradient."""

        def __init__(self):
            super().__init__()
            self.w, self.o, self.stored = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, 2), None

        def forward(self, x):
            if self.stored is None:
                self.stored = torch.linalg.matrix_exp(self.w.detach())
            return self.o(x @ self.stored)

    torch.manual_seed(0)
    x = torch.randn(3, 3, dtype=D)
    for model, name in ((Idle(), "idle.weight"), (Stores(), "w")):
        model = model.to(D).eval()
        with pytest.warns(UserWarning, match=f"No output depends on the parameter.*'{name}'"):
            k = ntkit.EmpiricalNTK(model)(x)
        assert_kernel(k, mean_kernel(model, x))


def test_call_with_still_swaps_each_tensor_once():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    call_with(model, {"0.weight": torch.ones(2, 2)}, (torch.ones(1, 2),), {})
    assert isinstance(model[0].weight, nn.Parameter)


@pytest.mark.parametrize("change", ["outputs", "shapes", "nothing"])
def test_a_block_whose_outputs_come_on_the_way_is_proved_too(change):
    torch.manual_seed(0)
    model, x = Settable().to(D), torch.randn(40, 4, dtype=D)
    k = ntkit.EmpiricalNTK(model)
    k(x), k(x)
    inner = nn.Tanh()
    model.act = inner
    k(x), k(x)
    assert k._proved_on_the_way(k._inputs(x, None)[0]) is not None  # one pass, one comparison
    if change == "outputs":
        inner.forward = torch.sin  # in an object that the network only refers to
        assert k._proved_on_the_way(k._inputs(x, None)[0]) is None
    elif change == "shapes":
        layer = model.layers[2]
        layer.weight.data, layer.bias.data = torch.randn(6, 4, dtype=D), torch.randn(6, dtype=D)
    for _ in range(2):
        assert_kernel(k(x), mean_kernel(model, x))
