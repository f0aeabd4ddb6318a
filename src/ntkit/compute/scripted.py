"""What torch's script compiler makes at import or first use, made without newer torch's warnings of it."""

import warnings
from contextlib import suppress

import torch
from torch.func import jvp as jvp

with warnings.catch_warnings():
    for _category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", r".*torch\.jit", _category)
    from linear_operator import LinearOperator as LinearOperator

    with suppress(RuntimeError):  # in forward mode already, which cannot be nested
        _one = torch.ones((), device="cpu")
        jvp(torch.sin, (_one,), (_one,))  # the rules of forward mode
