"""The benchmark of diagnoses: what is flipped, and the page that is made of what was measured."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from diagnoses.sets import flipped
from diagnoses.tables import into_page, tables


@pytest.mark.parametrize("how", ["uniform", "by class"])
def test_so_many_labels_are_flipped_each_to_another_class(how):
    y = torch.arange(400) % 4
    given, wrong = flipped(y, 0.1, how, seed=3)
    assert wrong.sum() == 40 and np.array_equal((given != y).numpy(), wrong)
    if how == "by class":
        assert ((given - y)[torch.tensor(wrong)] % 4 == 1).all()
        assert (wrong & (y.numpy() == 3)).sum() > (wrong & (y.numpy() == 0)).sum()


def test_a_missed_bar_is_written_as_missed(tmp_path):
    pair = {
        "title": "a / b",
        "train": 10,
        "methods": ["softmax", "tangent, variance"],
        "of_kernels": [False, True],
        "auroc": [0.9, 0.5],
        "fpr95": [0.1, 0.9],
        "uniform": [{"p": 0.001}],
    }
    better = {**pair, "auroc": [0.5, 0.9]}
    cost = [{"kernel": "tangent", "seconds": 61.0, "n": 5, "queries": 6}]
    parts = tables(
        {f"pair_{i}": {"machine": "m", "result": pair} for i in range(4)}
        | {"costs": {"machine": "m", "result": cost}}
    )
    assert "on 0 of 4 pairs (bar: 3 of 4, **missed**)" in parts["pairs"] and "**over** 60 s" in parts["costs"]
    good = tables({f"pair_{i}": {"machine": "m", "result": better} for i in range(4)})
    assert "on 4 of 4 pairs (bar: 3 of 4, reached)" in good["pairs"]
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- costs -->\nold\n<!-- end -->\nb\n")
    into_page(page, {"costs": parts["costs"]})
    assert page.read_text() == f"a\n<!-- costs -->\n{parts['costs']}\n<!-- end -->\nb\n"
    with pytest.raises(SystemExit, match="has no mark"):
        into_page(page, {"pairs": ""})
