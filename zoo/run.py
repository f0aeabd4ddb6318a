"""Many models of other libraries through ntkit, each in a process of its own: ``make zoo``.

What is done with the same versions is not run again (``--again`` does). Results go to ``docs/zoo.json``,
the page is ``docs/zoo.md``; with ``--limits`` (``make zoo-limits``) to ``docs/zoo_limits.json`` and its page.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import limits
import limits_page
import measure
import page
import torch
from entry import Entry
from measure import told

import ntkit
from ntkit.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {
    "torch": ("torch_models",),
    "torchvision": ("torchvision_models",),
    "timm": ("timm_models",),
    "transformers": ("transformers_texts", "transformers_senses"),
    "torch_geometric": ("geometric_models",),
    "diffusers": ("diffusers_models",),
    "peft": ("peft_models",),
}
MEMORY = 10 * 2**30  # bytes that one model may hold
WAIT = 20  # times its patience that one may take on a busy machine
ABOVE = "infinite training machine diagnose data report studies".split()  # rooms that finite kernels lack

Measure = Callable[[Entry, Callable[[dict[str, Any]], None]], dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """What is done with each model, and what is made of the results."""

    measure: Measure
    page: Callable[[dict[str, Any]], tuple[str, list[str]]]
    name: str  # of the files in docs
    rooms: frozenset[str]  # of ntkit that no result depends on
    patience: int  # seconds of a processor that one model may take


KERNELS = Table(measure.measure, page.page, "zoo", frozenset(ABOVE), 120)
LIMITS = Table(limits.measure, limits_page.page, "zoo_limits", frozenset(ABOVE[1:]), 900)


def entries(library: str) -> list[Entry]:
    """Return the models of a library."""
    return [entry for name in LIBRARIES[library] for entry in importlib.import_module(name).ENTRIES]


def versions(library: str, table: Table = KERNELS) -> dict[str, str]:
    """Return what a result depends on: torch, the library, and ntkit's sources."""
    source = ROOT / "src" / "ntkit"
    sources = sorted(p for p in source.rglob("*.py") if p.relative_to(source).parts[0] not in table.rooms)
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]
    return {
        "torch": importlib.metadata.version("torch").partition("+")[0],
        library: importlib.metadata.version(library).partition("+")[0],
        "ntkit": digest,
        "python": platform.python_version(),
    }


def run(entry: Entry, table: Table = KERNELS) -> dict[str, Any]:
    """Measure a model in a process of its own; a crash or a late end is a result too.

    What takes longer than the patience of its table is ended by the system, whatever else the machine does.
    """
    context = multiprocessing.get_context("fork")  # the libraries are imported once, here
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(table, entry, mouth))
    process.start()
    mouth.close()
    result: dict[str, Any] = {"name": entry.name, "status": "crashed", "words": "before it began"}
    result |= {"note": entry.note, "per_sample": entry.per_sample}
    end = time.monotonic() + WAIT * table.patience
    late = False
    try:
        while not (late := not ear.poll(max(0.0, end - time.monotonic()))):
            result = ear.recv()
    except EOFError:
        pass
    if late:
        process.kill()
    process.join()
    if late or process.exitcode == -signal.SIGXCPU:
        if "ntkit" not in result and result.get("status") != "served":
            where = result.get("words", "")
            result |= {"status": "late", "words": f"{where}: ended after {table.patience} s"}
    return result


def _child(table: Table, entry: Entry, mouth: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (table.patience, table.patience + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        mouth.send(table.measure(entry, mouth.send))
    except Exception as error:
        result = {"name": entry.name, "status": "broken", "words": told(error), "note": entry.note}
        mouth.send({**result, "per_sample": entry.per_sample})


def main() -> None:
    """Run what is asked for, write the results and the page, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patterns, as in 'timm/*'; all without any")
    parser.add_argument("--again", action="store_true", help="repeat what is done")
    parser.add_argument("--limits", action="store_true", help="limits of infinite width, not kernels")
    parser.add_argument("--results", type=Path, help="a file of another place")
    parser.add_argument("--page", type=Path, help="a page of another place")
    chosen = parser.parse_args()
    table = LIMITS if chosen.limits else KERNELS
    chosen.results = chosen.results or ROOT / "docs" / f"{table.name}.json"
    chosen.page = chosen.page or ROOT / "docs" / f"{table.name}.md"
    done = json.loads(chosen.results.read_text(encoding="utf-8")) if chosen.results.exists() else {}
    ntkit.EmpiricalNTK(torch.nn.Linear(1, 1))(torch.ones(1, 1))  # what torch imports late, it imports here
    results: dict[str, Any] = {}
    for library in LIBRARIES:
        if chosen.names and not any(fnmatchcase(library, p.partition("/")[0]) for p in chosen.names):
            results |= {k: r for k, r in done.items() if k.startswith(f"{library}/")}
            continue
        now = versions(library, table)
        for entry in entries(library):
            key = f"{library}/{entry.name}"
            results[key] = done.get(key)
            if chosen.names and not any(fnmatchcase(key, pattern) for pattern in chosen.names):
                continue
            if chosen.again or results[key] is None or results[key]["versions"] != now:
                begin = time.perf_counter()
                results[key] = {**run(entry, table), "versions": now}
                words = results[key].get("words", "")[:150]
                error = f"{results[key]['error']:.0e}" if "error" in results[key] else ""
                seconds = time.perf_counter() - begin
                print(f"{seconds:6.1f} s  {key}: {results[key]['status']} {error} {words}", flush=True)
                known = {k: r for k, r in {**done, **results}.items() if r is not None}
                write_atomically(chosen.results, (json.dumps(known, indent=1) + "\n").encode())
    results = {k: r for k, r in results.items() if r is not None}
    write_atomically(chosen.results, (json.dumps(results, indent=1) + "\n").encode())
    text, missed = table.page(results)
    write_atomically(chosen.page, text.encode())
    print("\n".join(missed))
    sys.exit(int(bool(missed)))


if __name__ == "__main__":
    main()
