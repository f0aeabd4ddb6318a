"""Products by oneDNN are those of torch, in full precision whatever the user has set."""

import pytest
import torch

from ntkit.compute.gemm import product_transposed
from ntkit.compute.precision import exact


def _inputs(n, m, k, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, k, generator=generator, dtype=torch.float64) for s in (n, m))
    return a.to(dtype), b.to(dtype), a.to(dtype).double() @ b.to(dtype).double().T


@pytest.mark.parametrize("n, m, k", [(1, 1, 1), (5, 3, 7), (128, 300, 1000), (2049, 64, 65), (0, 4, 3)])
def test_product(n, m, k):
    a, b, truth = _inputs(n, m, k)
    found = product_transposed(a, b)
    assert found.shape == (n, m) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5 * k**0.5)
    a, b, truth = _inputs(n, m, k, torch.float64)
    torch.testing.assert_close(product_transposed(a, b), truth, rtol=0, atol=1e-13 * k)


def test_bias_relu_and_strides():
    a, b, truth = _inputs(256, 256, 256)
    bias = torch.linspace(-3, 3, 256)
    expected = (truth + bias.double()).relu()
    turned = b.T.contiguous().T
    for left, right in ((a, b), (a, turned), (a.T.contiguous().T, b)):
        found = product_transposed(left, right, bias, relu=True)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    row = a[:1].expand(256, 256)
    torch.testing.assert_close(
        product_transposed(row, b), truth[:1].expand(256, -1).float(), rtol=0, atol=1e-4
    )


def test_a_panel_of_rows_is_no_copy_and_right():
    a, _, _ = _inputs(512, 1, 700)
    truth = a.double() @ a.double().T
    found = product_transposed(a[128:256], a[128:])
    torch.testing.assert_close(found.double(), truth[128:256, 128:], rtol=0, atol=2e-3)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9")
def test_the_precision_is_full_inside_and_as_it_was_outside():
    a, b, truth = _inputs(256, 256, 1024)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with exact(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            found = product_transposed(a, b)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-4)
