"""Every result shows itself: words, a table, a plot into given axes, both in a notebook."""

import pytest
import torch
from small_runs import classes, mlp, recorded

from ntkit import diagnose
from ntkit.display.axes import new_axes


@pytest.mark.slow
def test_each_result_has_words_a_table_and_a_plot(tmp_path):
    data = classes()
    x = data[0]
    run = recorded(tmp_path / "run", mlp(), data)
    detectors = diagnose.Detectors(run)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = [
        diagnose.drift(run),
        diagnose.laziness(run),
        diagnose.alignment(run),
        diagnose.spectrum(run),
        diagnose.novelty(run, queries=x),
        diagnose.ood_report(detectors, inside=x, outside={"far": 4 * x, "near": x + 1}),
        diagnose.shift_report(detectors, {"noise": [x, x + noise]}, data[1]),
        diagnose.label_audit(run),
        diagnose.compare(run, run.network(0)),
        diagnose.diagnose(run, queries=x),
    ]
    for result in results:
        assert len(result.words) > 30 and "nan" not in result.words, result.words
        assert len(result.table()) > 0 and type(result).__name__ in repr(result)
        (ax,) = new_axes(4, 3)
        assert result.plot(ax) is ax and (ax.lines or ax.patches or ax.images or ax.collections)
        assert result._repr_html_().startswith("<p>") and "<svg" in result._repr_html_()
