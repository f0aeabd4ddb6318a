"""What stands in several files of a release agrees: versions, dependencies and their floor, the citation."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ntkit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"]]
TESTS = [Requirement(text) for extra in ("test", "lightning", "transformers") for text in EXTRAS[extra]]

ZOO = [Requirement(text) for text in EXTRAS["zoo"]]


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in found}


@pytest.mark.parametrize("name", ["torch", "numpy", "scipy", "scikit-learn"])
def test_the_declared_minimum_is_what_make_floor_tests(name):
    (declared,) = [r for r in DECLARED if r.name == name]
    (specifier,) = declared.specifier
    assert specifier.operator == ">=" and Version(specifier.version) == pins("constraints-floor.txt")[name]


@pytest.mark.parametrize(("file", "more"), [("constraints.txt", ZOO), ("constraints-floor.txt", [])])
def test_every_dependency_is_pinned_as_declared(file, more):
    pinned = pins(file)
    for requirement in [*DECLARED, *TESTS, *more]:
        if requirement.name != "ntkit":
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_citation_is_that_of_the_project():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    told = dict(re.findall(r"^([\w-]+): (.+)$", text, re.M))
    assert told["cff-version"] == "1.2.0" and {"message", "title", "type"} <= told.keys()
    assert told["version"] == ntkit.__version__ and told["license"] == PROJECT["license"]
    assert re.findall(r"^  - name: (.+)$", text, re.M) == [author["name"] for author in PROJECT["authors"]]
    assert told.get("repository-code") == PROJECT.get("urls", {}).get("Source")


def test_the_package_is_marked_as_typed():
    assert files("ntkit").joinpath("py.typed").is_file()
