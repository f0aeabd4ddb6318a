from __future__ import annotations

import pytest
import torch

from ntkit import NtkitError
from ntkit.data.toy import ball_sphere


@pytest.mark.parametrize("n", [1, 7, 1024])
def test_ball_sphere_is_as_the_paper_says(n):
    x, y = ball_sphere(n, seed=3)
    norm = x.norm(dim=1)
    on_sphere = y[:, 0] == 1
    assert x.shape == (n, 2) and y.shape == (n, 1)
    assert torch.allclose(norm[on_sphere], torch.ones(1, dtype=torch.float64))
    assert (norm[~on_sphere] <= 0.5).all() and set(y.flatten().tolist()) <= {1.0, -1.0}
    assert int(on_sphere.sum()) == (n + 1) // 2


def test_ball_sphere_depends_on_its_seed_only():
    assert torch.equal(ball_sphere(9, 1)[0], ball_sphere(9, 1)[0])
    assert not torch.equal(ball_sphere(9, 1)[0], ball_sphere(9, 2)[0])
    assert ball_sphere(9, 1, torch.float32)[0].dtype == torch.float32
    with pytest.raises(NtkitError):
        ball_sphere(0, 1)
