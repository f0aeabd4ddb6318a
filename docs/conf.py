"""The documentation site: ``make docs``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ntkit.studies.catalog import STUDIES
from ntkit.version import __version__

project, author, release = "ntkit", "the authors of ntkit", __version__
copyright = "the authors of ntkit, Apache-2.0"

extensions = [
    "myst_nb",  # MyST Markdown, and notebooks that are run
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["studies/**", "_build/**"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.xref_missing"
]  # files beside the site: tests/test_docs.py follows all links to files
nb_execution_mode = "cache"  # what has not changed is not run again
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the notebooks' networks are small

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's tables say it in words
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = f"ntkit {release}"
html_sidebars = {"reference": [], "gallery": [], "contribute": []}
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_end": ["version-switcher", "theme-switcher"],
    "switcher": {"json_url": "_static/switcher.json", "version_match": release},
    "check_switcher": False,  # a relative file: it is read by the browser
    "show_prev_next": True,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_static_path = ["_static"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

linkcheck_ignore: list[str] = (
    [] if os.environ.get("NTKIT_ONLINE") else [r"https?://.*"]
)  # it is built offline


HERE = Path(__file__).parent


def gallery(app: object) -> None:
    """Write the page of the studies as cards, each with a figure, its paper and its results."""
    text = ["# Gallery", "", "The papers' experiments, one command each: `ntkit study NAME`.", ""]
    results = (HERE / "studies.md").read_text(encoding="utf-8")
    text += ["::::{grid} 1 2 3 3", ":gutter: 3", ""]
    for name, (source, title) in STUDIES.items():
        figure = re.search(rf"\((studies/{name}-[\w.-]+\.png)\)", results)
        text += [f":::{{grid-item-card}} {name}", f":link: study-{name}", ":link-type: ref"]
        if figure is not None:
            text += [f":img-top: {figure[1]}", f":img-alt: {title}"]
        text += ["", title, "", f"*{source}*", ":::", ""]
    text.append("::::")
    target = HERE / "gallery.md"
    made = "\n".join(text) + "\n"
    if not target.exists() or target.read_text(encoding="utf-8") != made:
        target.write_text(made, encoding="utf-8")


def named_studies(app: object, page: str, source: list[str]) -> None:
    """Give the studies the names that the gallery's cards lead to: Sphinx follows these links, too."""
    if page == "studies":
        source[0] = re.sub(r"(?m)^## (\S+)$", r"(study-\1)=\n## \1", source[0])


def formulas_as_they_are(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Show indented formulas as they are written, and bars as bars: before numpydoc reads a docstring."""
    section, out = "", []
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if following and set(following) == {"-"} and line.strip():
            section = line.strip()
        begins = line.startswith("    ") and i > 1 and not lines[i - 1].strip() and section in ("", "Notes")
        last = next((text for text in reversed(out) if text.strip()), "")
        if begins and not last.startswith("    ") and not last.endswith("::"):
            while out and not out[-1].strip():
                out.pop()
            out += ["", "::", ""]
        formula = section in ("", "Notes") and line.startswith("    ")
        out.append(line if formula or section == "Examples" else _without_bars(line))
    lines[:] = out


def _without_bars(line: str) -> str:
    parts = line.split("``")
    return "``".join(part if i % 2 else part.replace("|", r"\|") for i, part in enumerate(parts))


def setup(app: Any) -> None:
    """Connect what writes the gallery and leads to it, and what reads docstrings."""
    app.connect("builder-inited", gallery)
    app.connect("source-read", named_studies)
    app.connect("autodoc-process-docstring", formulas_as_they_are, priority=100)
