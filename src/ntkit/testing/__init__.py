"""For the tests of kernels of one's own: the laws that every kernel obeys, and batches to draw.

`check_kernel` needs nothing but ntkit; `batches` needs hypothesis.
"""

from ntkit.testing.laws import KernelLawError as KernelLawError
from ntkit.testing.laws import check_kernel as check_kernel
from ntkit.testing.strategies import batches as batches

__all__ = ["KernelLawError", "batches", "check_kernel"]
