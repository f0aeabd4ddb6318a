"""The page that one explores at its largest: how large its file is, and how fast it answers a click.

2,000 samples with pictures, 200 queries, 10 outputs, 400 steps, with and without counterfactuals; the numbers
are drawn, since only their count matters. In Chromium every kind of answer is asked for with real keys and a
real mouse, and its time is Chromium's own (Event Timing): from the input to the next picture on the screen.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from statistics import median

import torch
from playwright.sync_api import Page, sync_playwright

import ntkit
from ntkit.training.accounts.result import Account
from ntkit.training.counterfactuals.result import Counterfactual

QUERIES, OUTPUTS, SAMPLES, STEPS = 200, 10, 2000, 400
BARS = {"plain": 15e6, "with counterfactuals": 28e6}  # bytes
ANSWER = 100.0  # milliseconds
WATCHED = """() => {
    window.timed = [];
    const keep = list => window.timed.push(...list.getEntries().map(entry => entry.duration));
    new PerformanceObserver(keep).observe({type: "event", durationThreshold: 16});
}"""
SORTS = "#x-table thead button"
SHORTEST = 16.0  # milliseconds; what is faster is not told apart
SETTLED = 120  # milliseconds, after which an input has its entries
Took = dict[str, list[float]]  # kind of click -> milliseconds


def pages(folder: Path) -> dict[str, Path]:
    """Write the page without and with counterfactuals."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(QUERIES, OUTPUTS, SAMPLES, generator=draw, dtype=torch.float64) ** 3
    by_step = torch.randn(QUERIES, OUTPUTS, STEPS, generator=draw, dtype=torch.float64)
    first = torch.randn(QUERIES, OUTPUTS, generator=draw, dtype=torch.float64)
    zero = torch.zeros_like(first)
    terms = {f.name: zero for f in fields(Account) if f.name in ("decay", "start", "buffers", "rounding")}
    terms |= {"residual": zero, "unsigned": zero, "initial": first, "prediction": first + rows.sum(-1)}
    terms |= {"contributions": rows, "by_step": by_step * rows.sum(-1, keepdim=True) / STEPS}
    account = Account(**terms, tol=1e-8, nodes={3: STEPS}, converged=True, steps=STEPS)
    effects = Counterfactual(rows.flip(0), account.prediction, steps=STEPS)
    pictures = torch.rand(SAMPLES + QUERIES, 784, generator=draw)
    options = {"labels": torch.arange(SAMPLES) % 10, "train": pictures[:SAMPLES], "picture": (28, 28)}
    options |= {"classes": [*"0123456789"], "truth": torch.arange(QUERIES) % 10}
    options["queries"] = pictures[SAMPLES:]
    found = {}
    for name in BARS:
        found[name] = folder / f"{name.replace(' ', '_')}.html"
        beside = effects if "with" in name else None
        ntkit.report.explain(account, found[name], counterfactual=beside, **options)
    return found


class Clicks:
    """Ask the page for every kind of answer, and keep what each took."""

    def __init__(self, opened: Page) -> None:
        self.page = opened
        self.took: Took = {}
        opened.evaluate(WATCHED)

    def time(self, kind: str, act: Callable[[], None], changes: bool = True) -> None:
        """Keep the milliseconds of an input; one that changes nothing is an error."""
        before = self.page.evaluate("window.timed.length = 0, location.hash")
        act()
        self.page.wait_for_timeout(SETTLED)
        if changes and self.page.evaluate("location.hash") == before:
            raise RuntimeError(f"{kind}: the page did not answer")
        self.took.setdefault(kind, []).append(self.page.evaluate(f"Math.max({SHORTEST}, ...window.timed)"))

    def keys(self, kind: str, selector: str, *keys: str) -> None:
        """Press keys, one after the other, where the selector leads."""
        self.page.focus(selector)
        self.page.wait_for_timeout(SETTLED)
        for key in keys:
            self.time(kind, partial(self.page.keyboard.press, key))

    def click(self, kind: str, selector: str, changes: bool = True) -> None:
        """Click what is scrolled into view before."""
        self.page.locator(selector).first.scroll_into_view_if_needed()
        self.page.wait_for_timeout(SETTLED)
        self.time(kind, partial(self.page.click, selector), changes)

    def drag(self, kind: str, selector: str, begin: float, end: float) -> None:
        """Drag from one part of the width to another."""
        self.page.locator(selector).scroll_into_view_if_needed()
        box = self.page.locator(selector).bounding_box()
        if box is None:
            raise RuntimeError(f"{selector} is not shown")
        x, y = box["x"], box["y"] + box["height"] / 2
        self.page.mouse.move(x + begin * box["width"], y)
        self.page.mouse.down()
        self.page.mouse.move(x + end * box["width"], y)
        self.page.wait_for_timeout(SETTLED)
        self.time(kind, self.page.mouse.up)

    def all(self) -> None:
        """Ask for each answer, twice or more often."""
        self.keys("query", "#x-query", *["ArrowDown"] * 8)
        self.page.evaluate("document.activeElement.blur()")
        self.keys("query, by arrow", "body", *["ArrowRight"] * 8, *["ArrowLeft"] * 2)
        self.keys("output", "#x-output", *["ArrowDown"] * (OUTPUTS + 1), "Home")
        self.keys("beside", "#x-beside", *["ArrowDown"] * 8)
        for _ in range(2):
            for name in self.page.eval_on_selector_all(SORTS, "all => all.map(one => one.dataset.sort)"):
                self.click(f"sort by {name}", f"{SORTS}[data-sort={name}]")
        for i in range(1, 9):
            self.click("sample", f"#x-table tbody tr:nth-child({i}) button")
        for name in ("later", "later", "last", "earlier", "first"):
            self.click("page of the table", f"#x-{name}")
        for i in (1, 3):
            self.click("sample, in the diagram", f"#x-waterfall rect:not(.total) >> nth={i}")
            self.click("query that it moved", f"#x-sample li:nth-child({i + 1}) button")
        self.drag("brush", "#x-time svg", 0.2, 0.5)
        self.drag("brush", "#x-time svg", 0.1, 0.8)
        self.keys("brush, by arrow", "#x-time input >> nth=0", "ArrowRight", "ArrowRight")
        self.keys("brush, by arrow", "#x-time input >> nth=1", "ArrowLeft", "ArrowLeft")
        self.keys("label", "#x-label", *["ArrowDown"] * 3, "Home")
        self.keys("sign", "#x-sign", *["ArrowDown"] * 2, "Home")
        self.keys("search", "#x-search", "1", "2", "Backspace", "Backspace")
        self.click("CSV", "#x-csv", changes=False)
        self.keys("nothing beside", "#x-beside", "Home")


def answers(page: Path, chromium: str) -> Took:
    """Return the milliseconds of each click, by kind."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1000, "height": 900})
        opened.goto(page.absolute().as_uri())
        opened.wait_for_selector("#explorer:not([hidden])")
        clicks = Clicks(opened)
        clicks.all()
        browser.close()
    return clicks.took


def by_kind(found: dict[str, Took]) -> list[str]:
    """Return the lines of a table: median and largest of each kind of click, on each page."""
    lines = [f"| ms, median (max) of | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for kind in dict.fromkeys(kind for took in found.values() for kind in took):
        cells = [_spread(took[kind]) if kind in took else "" for took in found.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Write the pages, click, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/explorer"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    lines = ["| page | MB | bar | clicks | ms, median (max) | bar |", "|---|---|---|---|---|---|"]
    found: dict[str, Took] = {}
    for name, page in pages(chosen.out).items():
        size, clicks = page.stat().st_size, "no Chromium here | | "
        if chromium is not None:
            found[name] = answers(page, chromium)
            took = [each for kind in found[name].values() for each in kind]
            clicks = f"{len(took)} | {_spread(took)} | {ANSWER:g}: {_told(max(took) < ANSWER)}"
        told = _told(size < BARS[name])
        lines.append(f"| {name} | {size / 1e6:.1f} | {BARS[name] / 1e6:g}: {told} | {clicks} |")
    lines += ["", *by_kind(found)] if found else []
    (chosen.out / "explorer.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _spread(took: list[float]) -> str:
    return f"{median(took):.0f} ({max(took):.0f})"


def _told(reached: bool) -> str:
    return "reached" if reached else "**missed**"


if __name__ == "__main__":
    main()
