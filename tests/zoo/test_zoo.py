"""Models of other libraries: ten of the zoo, and all of it where its libraries are installed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "zoo"))

import torch_models
import transformers_texts
from entry import Entry, vectors
from limits_page import near
from measure import measure
from page import page
from run import LIBRARIES, entries, run
from wide import wide, widths

NAMES = ["transformer", "lstm", "pixels", "experts by a branch", "bilinear", "embedding bag"]
NAMES += ["bert", "gpt2", "llama", "t5"]
TEN = [e for e in (*torch_models.ENTRIES, *transformers_texts.ENTRIES) if e.name in NAMES]


LONG = ("t5", "llama", "bert", "lstm", "transformer")  # the same layers are tested one by one


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=pytest.mark.slow) if e.name in LONG else e for e in TEN],
    ids=lambda e: e.name,
)
def test_the_kernel_is_that_of_autograd(entry):
    result = measure(entry, peers=False)
    assert result["status"] == "served" and result["alone"] < 1e-9
    assert sum(result["shares"].values()) == result["weights"]


def test_what_is_no_function_of_one_sample_is_refused():
    (entry,) = [e for e in torch_models.ENTRIES if not e.per_sample]
    result = measure(entry)
    assert result["status"] == "refused" and "training mode" in result["words"]


def test_a_model_that_ends_its_process_is_a_row_too():
    class Ends(torch.nn.Linear):
        def forward(self, x):
            import os

            os._exit(3)

    entry = Entry("ends", lambda: Ends(2, 1), lambda: torch.ones(3, 2))
    result = run(entry)
    assert result["status"] == "crashed"
    text, missed = page({"torch/ends": {**result, "versions": {"torch": "2"}}})
    assert "| ends | **crashed**: before it began |" in text and missed


def test_what_is_drawn_has_the_widths_that_are_said():
    (entry,) = [e for e in TEN if e.name == "transformer"]
    small, large = wide(entry, 1), wide(entry, 4)
    assert widths(small, large) == (16, 64) and widths(small, wide(entry, 1)) is None
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 10)
    entry = Entry("layers", lambda: torch.nn.Sequential(*layers), vectors(3, 3, 3))
    wider = wide(entry, 4)
    assert widths(wide(entry, 1), wider) == (8, 32) and wider(entry.samples()).shape == (3, 40)


def test_draws_are_apart_beyond_their_bars_only():
    def row(width, difference):
        errors = {"error": 0.01, "nngp_error": 0.02, "ntk_error": 0.02}
        return {"width": width, "nngp": 0.0, "ntk": difference, **errors}

    assert near({"draws": [row(16, 0.58), row(64, 0.2)]}) == [True, True, True]
    assert near({"draws": [row(16, 0.6), row(64, 0.22)]}) == [False, False, True]
    assert near({"draws": [row(16, 0.05), row(64, 0.1)]}) == [True, True, False]
    assert near({"draws": [row(None, 0.1)]}) == [False, True]


@pytest.mark.zoo
@pytest.mark.parametrize("library", LIBRARIES)
def test_all_models_of_a_library(library):
    results = [run(entry) for entry in entries(library)]
    assert not {
        r["name"]: r["words"] for r in results if r["status"] in ("foreign", "crashed", "late", "broken")
    }
    assert not {r["name"]: r["error"] for r in results if r["status"] == "wrong"}
    functions = [r for r in results if r["per_sample"]]
    assert sum(r["status"] == "served" for r in functions) >= 0.95 * len(functions)
