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
