"""What all tests share."""

from collections.abc import Iterator

import pytest
import torch

from ntkit.faults import strict

torch.set_num_threads(1)  # the tests' matrices are small: threads only wait for each other


@pytest.fixture(autouse=True)
def own_faults_come_through() -> Iterator[None]:
    """An error that begins in ntkit's own code is never taken for one of the user's network."""
    with strict():
        yield
