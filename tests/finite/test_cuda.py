import pytest
import torch
from networks import CASES, build

import ntkit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_on_cuda(name):
    model, x = build(name)
    model = model.float()
    x = x.float() if x.is_floating_point() else x
    for outputs in ("full", "mean"):
        expected = ntkit.EmpiricalNTK(model.cpu(), outputs=outputs)(x)
        before = torch.backends.cuda.matmul.allow_tf32
        found = ntkit.EmpiricalNTK(model.cuda(), outputs=outputs)(x.cuda())
        assert found.is_cuda
        assert torch.backends.cuda.matmul.allow_tf32 == before
        error = (found.cpu() - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5


class Encoder(torch.nn.Module):
    """Attention and norms, whose factors are taken while the backward pass runs."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.body = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


@pytest.mark.parametrize("outputs", ["full", "mean", "trace", "diagonal"])
@pytest.mark.parametrize("memory", ["1GiB", "200KiB"])
def test_an_encoder_beside_autograd(outputs, memory):
    torch.manual_seed(0)
    model, x = Encoder().double().eval(), torch.randn(6, 9, 16, dtype=torch.float64)
    expected = ntkit.EmpiricalNTK(model, outputs=outputs)(x)
    found = ntkit.EmpiricalNTK(model.cuda(), outputs=outputs, memory=memory)(x.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_the_other_kernels_and_products():
    torch.manual_seed(0)
    model, x = Encoder().double().eval(), torch.randn(6, 9, 16, dtype=torch.float64)
    here, kernel = ntkit.EmpiricalNTK(model), ntkit.ConjugateKernel(model)
    v = torch.randn(6, dtype=torch.float64)
    product, diag, features = here.operator(x) @ v, here.diag(x), kernel(x)
    model, z = model.cuda(), x.cuda()
    there = ntkit.EmpiricalNTK(model)
    for found, expected in [
        (there.operator(z) @ v.cuda(), product),
        (there.diag(z), diag),
        (ntkit.ConjugateKernel(model)(z), features),
    ]:
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)
