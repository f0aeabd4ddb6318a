"""What is raised for an estimator that is asked before it was fitted."""

from __future__ import annotations

from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ntkit.errors import BadValueError


class UnfittedError(BadValueError, NotFittedError):
    """An estimator is asked before it was fitted; what scikit-learn raises, too."""


def check_fitted(estimator: object) -> None:
    """Refuse an estimator that was not fitted."""
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise UnfittedError(str(error)) from None
