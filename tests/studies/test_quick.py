"""Each study in its quick form, as a user runs it: its claim holds, its folder is whole."""

import json

import pytest
from typer.testing import CliRunner
from wrong_results import missed

from ntkit.cli import app
from ntkit.studies.catalog import STUDIES

NEEDS_MNIST = {"mnist-table", "kernel-pca"}  # their claims are about MNIST: on digits they are not asserted


@pytest.mark.study
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", STUDIES)
def test_the_claim_holds(name, tmp_path):
    options = ["--data", "digits"] if name in NEEDS_MNIST else []
    answer = CliRunner().invoke(app, ["study", name, "--quick", "--out", str(tmp_path / name), *options])
    assert answer.exit_code == 0, answer.output + repr(answer.exception)
    record = json.loads((tmp_path / name / "result.json").read_text())
    asserted = [claim for claim in record["claims"] if claim["holds"] is not None]
    assert [claim for claim in asserted if not claim["holds"]] == [], answer.output
    assert asserted or name in NEEDS_MNIST
    bars = [claim["what"] for claim in asserted]
    assert set(bars) == missed(bars, name), "each bar is missed by something wrong in wrong_results.py"
    assert record["figures"]
    for file in record["figures"].values():
        assert (tmp_path / name / file).stat().st_size > 1000
        assert (tmp_path / name / file).with_suffix(".svg").stat().st_size > 1000
    html = (tmp_path / name / "report.html").read_text()
    assert "<script" not in html and "http" not in html.replace("http://www.w3.org", "")
