"""Records that a table holds more than once: inputs and targets alike."""

from __future__ import annotations

import numpy as np

EQUALS = 3  # that a value has in its column, on average, below which records that are equal are copies


def copies_once(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return which of some samples are records of their own: each once.

    To the evidence, and to what leaves samples out, the copies of a record are observations without noise.

    >>> x, y = np.array([[1.0], [2.0], [1.0], [3.0]]), np.array([0.3, 0.1, 0.3, 0.2])
    >>> copies_once(x, y, np.arange(4)), copies_once(x, np.array([0.3, 0.1, 0.4, 0.2]), np.arange(4))
    (array([0, 1, 3]), array([0, 1, 2, 3]))
    """
    found = _records(x[index], y[index])
    return index if found is None else index[found[0]]


def merged(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return weights ``[n]`` in which each record counts as often as it is there, its copies nothing.

    A fit with them is that of all samples. The second array says for each sample that counts which of those
    that are left it is. Both are as given, the second None, where there are no copies.
    """
    counted = np.arange(len(x)) if weights is None else np.flatnonzero(weights)
    found = _records(x[counted], y[counted])
    if found is None:
        return weights, None
    first, same = found
    own = np.ones(len(counted)) if weights is None else weights[counted]
    together = np.zeros(len(x))
    together[counted[first]] = np.bincount(same, own)
    return together, same


def _records(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first sample of each record, and of which record each sample is; None without copies.

    Samples with equal inputs and targets are copies where the targets, or the values of a column, are seldom
    equal otherwise, and more than half of the samples that repeat another's inputs repeat its targets, too.
    Else they are observations that agree, as those of a few categories do.
    """
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
        return None
    inputs, targets = x.reshape(len(x), -1), y.reshape(len(y), -1)
    both = np.concatenate([inputs, targets], 1)
    _, first, same = np.unique(both, axis=0, return_index=True, return_inverse=True)
    copies, repeats = len(x) - len(first), len(x) - len(np.unique(inputs, axis=0))
    if 2 * copies <= repeats or not copies:
        return None
    if _equals(targets[first]) >= EQUALS and all(_equals(v) >= EQUALS for v in inputs[first].T):
        return None
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[same.reshape(-1)]


def _equals(values: np.ndarray) -> float:
    """Return how many others a value, or row, is equal to, on average."""
    counts = np.unique(values, axis=0, return_counts=True)[1]
    return float((counts * (counts - 1)).sum()) / len(values)
