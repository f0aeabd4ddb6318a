"""`LinearOperator`, imported without what newer releases of torch warn of: how it and torch are compiled."""

import warnings
from contextlib import suppress

import torch

with warnings.catch_warnings():
    for _category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", r".*torch\.jit", _category)
    from linear_operator import LinearOperator as LinearOperator

    with suppress(RuntimeError):  # in forward mode already, which cannot be nested
        _one = torch.ones((), device="cpu")
        torch.func.jvp(torch.sin, (_one,), (_one,))  # torch 2.14 scripts its rules at their first use
