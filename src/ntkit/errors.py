"""What ntkit raises: every refusal says what was given, what was expected, and what to do."""


class NtkitError(Exception):
    """Any refusal by ntkit; catch this one to catch them all."""


class NotPerSampleError(NtkitError):
    """The network has no function of a single sample (train-mode batch norm, active dropout, ...)."""


class RunFolderError(NtkitError):
    """A run folder, or a file in it, is missing, truncated, edited, or cannot be written."""


class PathMismatchError(NtkitError):
    """Data, loss or model given to an account are not those of the recorded run."""


class NoRuleError(NtkitError):
    """An operation whose infinite-width limit ntkit does not know."""
