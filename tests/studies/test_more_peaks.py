"""The sequences with more than two peaks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ntkit.errors import NtkitError
from ntkit.studies import two_peaks
from ntkit.studies.more_peaks import Task, accounted, sequences

TASK = Task(
    p=16, count=3, samples=300, width=8, steps=30, rate=3e-3, batch=32, adam=True, seed=0, device="cpu"
)


def test_the_others_are_others_and_labels_are_the_parity_at_the_middle():
    (x, y), (u, v) = sequences(TASK)
    assert len(x) == 300 and len(u) >= 100
    assert not set(map(tuple, x.tolist())) & set(map(tuple, u.tolist()))
    for sequence, label in zip(torch.cat([x, u]).tolist(), torch.cat([y, v]).flatten().tolist(), strict=True):
        assert sum(sequence) == 3 and sum(sequence[:8]) % 2 == label


def test_too_many_sequences_are_refused():
    with pytest.raises(NtkitError, match="There are hardly more than 560"):
        sequences(replace(TASK, samples=550))


def test_the_account_of_adam_is_exact():
    found = accounted(replace(TASK, steps=4), 2)
    assert found["residual"] < 1e-8
    assert found["top"].shape == (2, 10, 16) and np.abs(found["pushes"]).min() > 0


def test_votes_are_those_of_the_nearest_that_were_seen():
    y = torch.tensor([[1.0], [1.0], [0.0], [1.0], [0.0]])
    near = torch.tensor([[0.0] * 5] * 3 + [[0.1, 0.2, 0.9, 0, 0], [0.3, 0.2, 0.1, 0, 0]])
    seen = torch.tensor([0, 1, 2])
    assert two_peaks._votes(near, y, seen, 1) == 0.0  # 3 is called 0, 4 is called 1
    assert two_peaks._votes(near, y, seen, 3) == 0.5  # both are called 1


def test_the_groups_are_those_of_the_paper():
    x = torch.zeros(6, 8)
    for row, places in enumerate(((1, 2), (2, 4), (5, 7), (4, 6), (3, 6), (1, 8))):
        x[row, [p - 1 for p in places]] = 1
    y = torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0], [1.0]])
    found = two_peaks._groups(x, y, np.array([2, 2, 0, 0, 1, 1]))
    assert found["left"] == {"size": 2, "as said": 2, "label 1": 1, "psi 1": 0, "psi 2": 1}
    assert found["right"] == {"size": 2, "as said": 2, "label 1": 1, "psi 1": 1, "psi 2": 0}
    assert found["middle"]["as said"] == 2
