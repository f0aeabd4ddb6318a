"""The diagnoses, measured: ``make bench-diagnose``.

Who tells pictures from elsewhere (four pairs), whose scores go with the error of shifted digits, who finds
flipped labels beside cleanlab and the mean loss, and what it costs. Results are kept as JSON, job by job, so
that a killed run goes on; ``--page docs/diagnose.md`` writes the tables into the page, between its marks.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from diagnoses import domains, labels
from diagnoses.tables import into_page, tables

from ntkit.files import write_atomically

LABELS = ("mnist-cnn", "mnist-mlp", "digits", "cancer", "wine")
PAIRS = ("mnist", "fashion", "digits", "cifar")


def jobs(seeds: int) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    chosen = range(seeds)
    found: dict[str, Callable[[], object]] = {"costs": domains.costs, "audit costs": labels.costs}
    for name in LABELS:  # first what the bar is about
        found[f"labels {name} 0.1"] = lambda name=name: [
            *labels.measure(name, chosen, shares=(0.1,), kinds=("uniform",))
        ]
    found |= {f"pair {name}": lambda name=name: domains.measure(name) for name in PAIRS}
    found["shifts"] = domains.shifts
    for name in LABELS:
        for share in labels.SHARES:
            for kind in labels.KINDS:
                if (share, kind) != (0.1, "uniform"):
                    found[f"labels {name} {share} {kind}"] = lambda n=name, s=share, k=kind: [
                        *labels.measure(n, chosen, shares=(s,), kinds=(k,))
                    ]
    return found


def main() -> None:
    """Measure what is not there yet; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    parser.add_argument("--seeds", type=int, default=3, help="draws of flipped labels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/diagnose"))
    parser.add_argument("--page", type=Path, help="a Markdown page with marks, to write the tables into")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, job in jobs(chosen.seeds).items():
        file = chosen.out / f"{name.replace(' ', '_')}.json"
        if chosen.only in name and not file.exists():
            print(name, flush=True)
            machine = f"{platform.machine()}, {chosen.threads} thread(s), torch {torch.__version__}"
            text = json.dumps({"machine": machine, "result": job()}, indent=1)
            write_atomically(file, text.encode())
    found = tables({f.stem: json.loads(f.read_text()) for f in sorted(chosen.out.glob("*.json"))})
    print("\n\n".join(found.values()))
    if chosen.page is not None:
        into_page(chosen.page, found)


if __name__ == "__main__":
    main()
