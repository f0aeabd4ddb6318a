"""What is allocated, measured in processes of their own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch, ntkit
from torch import nn
torch.manual_seed(0)
sizes = {sizes}
layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())]
model = nn.Sequential(*layers[:-1])
k = ntkit.EmpiricalNTK(model, outputs={outputs!r}, memory={memory!r})
x = torch.randn({n}, sizes[0])
k(x[:2]), k.diag(x[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = {call}
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, result.numel() * result.element_size())
"""


def allocated(**options):
    """Return the growth of the peak of resident bytes, and the bytes of the result."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(**options)], capture_output=True, text=True, check=True
    )
    peak, result = run.stdout.split()
    return int(peak), int(result)


def test_a_diagonal_makes_no_square():
    n = 8192
    peak, result = allocated(sizes=[16, 32, 32, 1], outputs="mean", memory="32MiB", n=n, call="k.diag(x)")
    assert result == 4 * n
    assert peak < 4 * n * n / 4


@pytest.mark.slow
def test_the_budget_of_a_wide_network_holds():
    peak, result = allocated(
        sizes=[784, 1024, 1024, 1024, 10], outputs="full", memory="1GiB", n=1024, call="k(x)"
    )
    assert result == 4 * (1024 * 10) ** 2
    assert peak - result <= 1.2 * 2**30


@pytest.mark.slow
def test_the_first_call_keeps_the_budget_too():
    script = SCRIPT.replace("k(x[:2]), k.diag(x[:2])\n", "model(x)\n")
    options = dict(sizes=[1024, 8192, 8192, 10], outputs="mean", memory="1GiB", n=4, call="k(x)")
    run = subprocess.run(
        [sys.executable, "-c", script.format(**options)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout.split()[0]) <= 2**30  # its weights alone take 300 MiB


@pytest.mark.slow
def test_the_diagonal_of_a_wide_network():
    n = 4096
    peak, _ = allocated(
        sizes=[784, 1024, 1024, 1024, 1], outputs="mean", memory="24MiB", n=n, call="k.diag(x)"
    )
    assert peak < 4 * n * n


DEEP = """
import resource, torch, ntkit
from torch import nn
torch.manual_seed(0)
layers = [m for _ in range(40) for m in (nn.Linear(256, 256), nn.Tanh())]
model = nn.Sequential(*layers, nn.Linear(256, 10))
x = torch.randn(64, 16, 256)
weights = dict(model.named_parameters())
k = ntkit.EmpiricalNTK(lambda w, x: torch.func.functional_call(model, w, x).mean(1), weights)
k(x[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
k(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_a_deep_network_holds_the_gradients_of_few_layers():
    run = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=True)
    gradients = 4 * 40 * 64 * 10 * 16 * 256  # of all layers at once
    assert int(run.stdout) < gradients / 2
