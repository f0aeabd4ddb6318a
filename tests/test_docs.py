"""What the documentation shows, runs: the README's Python, and the examples in docstrings."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from networks import CASES
from wide_networks import CASES as WIDE

import ntkit
from ntkit.finite.rules import RULES
from ntkit.infinite.duals.dual import DUAL_RULES
from ntkit.infinite.program import LIMIT_RULES as LIMITS  # with the rules of all rooms

ROOT = Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(ntkit.__path__, "ntkit."))
PAGES = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
PRINTED = ["[Contribution(index=221, contribution=13.1", "[closed form]", "accuracy 0.9"]
WAYS = (
    r"\[(closed form|quadrature|Hermite series|product of independent factors|draws of the scores|sampling)\]"
)


@pytest.mark.parametrize(("block", "printed"), [*zip(BLOCKS, PRINTED, strict=True)])
def test_the_python_of_the_readme_runs(block, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert printed in capsys.readouterr().out


HOW_TO = sorted(f"how_to/{p.name}" for p in (ROOT / "docs/how_to").glob("*.md"))


@pytest.mark.parametrize(
    "page",
    [
        *sorted(p.name for p in (ROOT / "docs").glob("*.md")),
        *(pytest.param(page, marks=pytest.mark.slow) for page in HOW_TO),
    ],
)
def test_the_python_of_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ntkit.finite.rules.RULES", dict(RULES))
    before = [(table, dict(table)) for table in (LIMITS, DUAL_RULES)]
    names: dict = {}
    try:
        for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.S | re.M):
            exec(compile(block, page, "exec"), names)
    finally:
        for table, rules in before:
            table.clear()
            table.update(rules)


def test_the_table_of_the_docs_is_that_of_the_tests():
    rows = re.findall(
        r"^\| (.*?) \| (structure|formed|contraction)", (ROOT / "docs/finite.md").read_text(), re.M
    )
    assert rows == [(name, case.way) for name, case in CASES.items()]


def test_the_table_of_limits_is_that_of_the_tests():
    rows = []
    for name, case in WIDE.items():
        program = str(ntkit.infinite_width(case.network(16), case.inputs(16, 1)).program)
        ways = ", ".join(dict.fromkeys(re.findall(WAYS, program)))
        rows.append(f"| {name} | {ways or 'products only'} |")
    text = (ROOT / "docs/infinite.md").read_text(encoding="utf-8")
    assert text.partition("| network | expectations |\n|---|---|\n")[2].splitlines()[: len(rows)] == rows


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0


@pytest.mark.parametrize("file", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.stem)
def test_a_table_of_parameters_names_them_all(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        table = re.search(
            r"^Parameters\n-+\n(.*?)(?=^\S+\n-+$|\Z)", ast.get_docstring(node) or "", re.M | re.S
        )
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if table is None or (isinstance(node, ast.ClassDef) and not made):
            continue
        heads = [line.partition(" : ")[0] for line in table[1].splitlines() if re.match(r"\S", line)]
        told = {name.strip("* ") for head in heads for name in head.split(",")}
        arguments = (made[0] if isinstance(node, ast.ClassDef) else node).args
        names = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        assert {a.arg for a in names if a is not None} - {"self", "cls"} <= told, node.name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(PAGES)])
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


def test_every_public_name_is_on_the_reference_page():
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   ([\w.]+)$", text, re.M))
    names = {name for name in ntkit.__all__ if name not in ("__version__", "report", "testing", "diagnose")}
    assert names <= listed, names - listed
    assert {"report.explain", *(f"diagnose.{name}" for name in ntkit.diagnose.__all__)} <= listed


def test_every_public_name_has_an_example():
    names = [*ntkit.__all__, "report.explain", "report.diagnosis"]
    names += [f"{room}.{name}" for room in ("diagnose", "testing") for name in getattr(ntkit, room).__all__]
    lacking = []
    for name in set(names) - {"__version__", "report", "testing", "diagnose"}:
        found = ntkit
        for part in name.split("."):
            found = getattr(found, part)
        if ">>>" not in (found.__doc__ or ""):
            lacking.append(name)
    assert not lacking
