"""Classes as targets: one-hot, a sign for two classes, a sign for each label of several."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from ntkit.errors import BadTypeError, BadValueError
from ntkit.network import Floats


def signs(labels: np.ndarray) -> Floats:
    """Return -1 and 1 for 0 and 1, ``[n, o]``."""
    return 2.0 * labels.reshape(len(labels), -1) - 1


def class_weights(class_weight: object, classes: np.ndarray, labels: np.ndarray) -> Floats | None:
    """Return the weight of each sample by its class, None where all count alike.

    ``"balanced"``: n / (classes x samples of the class). A mapping: class to weight, 1 where it has none.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str) and class_weight != "balanced":
        raise BadValueError(f"class_weight={class_weight!r}; expected None, 'balanced', or a dictionary.")
    if isinstance(class_weight, Mapping):
        unknown = set(class_weight) - set(classes.tolist())
        wrong = [w for w in class_weight.values() if not isinstance(w, (int, float)) or not 0 <= w < np.inf]
        if unknown or wrong:
            raise BadValueError(
                f"class_weight={class_weight!r}; expected a weight >= 0 for classes of {classes.tolist()}."
            )
    elif class_weight != "balanced":
        raise BadTypeError(f"class_weight={class_weight!r}; expected None, 'balanced', or a dictionary.")
    if isinstance(class_weight, Mapping):
        each = np.array([class_weight.get(c, 1.0) for c in classes.tolist()], dtype=float)
    else:
        each = compute_class_weight("balanced", classes=np.arange(len(classes)), y=labels)
    return each[labels]
