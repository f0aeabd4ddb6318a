"""`LinearOperator`, imported without the warning of newer releases of torch of how it is compiled."""

import warnings

with warnings.catch_warnings():
    for _category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", r".*torch\.jit", _category)
    from linear_operator import LinearOperator as LinearOperator
