"""The page that one explores at its largest: how large its file is, and how fast it answers a click.

2,000 samples with pictures, 200 queries, 10 outputs, 400 steps, with and without counterfactuals; the numbers
are drawn, since only their count matters. Clicks are timed in Chromium, from the event to the layout.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import fields
from pathlib import Path
from statistics import median

import torch

import ntkit
from ntkit.training.accounts.result import Account
from ntkit.training.counterfactuals.result import Counterfactual

QUERIES, OUTPUTS, SAMPLES, STEPS = 200, 10, 2000, 400
BARS = {"plain": 15e6, "with counterfactuals": 28e6}  # bytes
ANSWER = 100.0  # milliseconds
CLICKED = """selector => {
    const begin = performance.now();
    document.querySelector(selector).click();
    document.body.getBoundingClientRect();
    return performance.now() - begin;
}"""
CHOSEN = """value => {
    const box = document.querySelector("#x-query"), begin = performance.now();
    box.value = value;
    box.dispatchEvent(new Event("change", {bubbles: true}));
    document.body.getBoundingClientRect();
    return performance.now() - begin;
}"""


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


def answers(page: Path, chromium: str) -> list[float]:
    """Return the milliseconds of choosing queries and clicking samples."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1000, "height": 900})
        opened.goto(page.absolute().as_uri())
        opened.wait_for_selector("#explorer:not([hidden])")
        took = [opened.evaluate(CHOSEN, str(i)) for i in range(1, 21)]
        took += [opened.evaluate(CLICKED, f"#x-table tbody tr:nth-child({i}) button") for i in range(1, 11)]
        browser.close()
    return took


def main() -> None:
    """Write the pages, click, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/explorer"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    lines = ["| page | MB | bar | a click, ms, median (max) | bar |", "|---|---|---|---|---|"]
    for name, page in pages(chosen.out).items():
        size, clicks = page.stat().st_size, "no Chromium here | "
        if chromium is not None:
            took = answers(page, chromium)
            clicks = f"{median(took):.0f} ({max(took):.0f}) | {ANSWER:g}: {_told(max(took) < ANSWER)}"
        told = _told(size < BARS[name])
        lines.append(f"| {name} | {size / 1e6:.1f} | {BARS[name] / 1e6:g}: {told} | {clicks} |")
    (chosen.out / "explorer.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _told(reached: bool) -> str:
    return "reached" if reached else "**missed**"


if __name__ == "__main__":
    main()
