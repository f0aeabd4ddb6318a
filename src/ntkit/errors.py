"""What ntkit raises: every refusal says what was given, what was expected, and what to do.

All are `NtkitError`. One that refuses an argument is also what Python raises for it, so that code which
knows nothing of ntkit handles it: ``except ValueError`` for a bad value, ``except TypeError`` for something
that is not of the expected type.
"""


class NtkitError(Exception):
    """Any refusal by ntkit; catch this one to catch them all."""


class BadValueError(NtkitError, ValueError):
    """An argument, or something that it holds, has a value that cannot be used.

    .. versionadded:: 0.1.0

    Examples
    --------
    >>> import torch, ntkit
    >>> try:
    ...     ntkit.EmpiricalNTK(torch.nn.Linear(2, 1), memory="a lot")
    ... except ValueError as error:
    ...     print(type(error).__name__)
    BadValueError
    """


class BadTypeError(NtkitError, TypeError):
    """An argument is not of the expected type.

    .. versionadded:: 0.1.0
    """


class NotPerSampleError(BadValueError):
    """The network has no function of a single sample (train-mode batch norm, active dropout, ...)."""


class RunFolderError(NtkitError):
    """A run folder, or a file in it, is missing, truncated, edited, or cannot be written."""


class PathMismatchError(BadValueError):
    """Data, loss or model given to an account are not those of the recorded run."""


class NoRuleError(NtkitError):
    """An operation whose infinite-width limit ntkit does not know."""
