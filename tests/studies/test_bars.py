"""Every bar of every study can fail: it is missed when the study is fed with something wrong.

Each bar that docs/studies.md shows must be among those that `WRONG` has of its study; a case that takes long
is marked as the studies are.
"""

import re
from pathlib import Path

import pytest
from wrong_results import WRONG, missed

from ntkit.studies.catalog import STUDIES, configure, module

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"


def bars(page: str) -> dict[str, list[str]]:
    """Return the texts of the rows with a bar, by study, of a page of results."""
    found: dict[str, list[str]] = {}
    for section in page.split("\n## ")[1:]:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| ")]
        name = section.partition("\n")[0]
        found[name] = [row[0].strip().replace("\\|", "|") for row in rows[1:] if row[3].strip()]
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_every_bar_on_the_page_is_missed_by_something_wrong(study):
    shown = bars(PAGE.read_text(encoding="utf-8")).get(study, [])
    assert study in WRONG, "a study is listed with what makes its bars fail"
    assert set(shown) - missed(shown, study) == set()


CASES = [
    pytest.param(study, wrong, id=f"{study}: {wrong.what}", marks=[pytest.mark.study] if wrong.long else [])
    for study, wrongs in WRONG.items()
    for wrong in wrongs
]


@pytest.mark.parametrize(("study", "wrong"), CASES)
def test_something_wrong_misses_the_bars(study, wrong, monkeypatch):
    room = module(study)
    config = configure(study, **wrong.options)
    wrong.patch(monkeypatch, room)
    claims = [claim for claim in room.run(config).claims if claim.holds is not None]
    for pattern in wrong.misses:
        found = [claim for claim in claims if re.match(pattern, claim.what)]
        assert found, f"no bar is called {pattern!r}; there are {[c.what for c in claims]}"
        assert [(c.what, c.measured, c.bar) for c in found if c.holds] == []
