"""Run studies: each leaves a folder with its table, numbers, figures and page, whole or not at all."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from joblib import Parallel, delayed
from safetensors.numpy import save

from ntkit.compute.threads import passive_workers
from ntkit.display.numbers import number
from ntkit.errors import NtkitError, whole
from ntkit.files import Json, write_atomically
from ntkit.report.output_folder import MARKER, fresh_folder, read_record, write_text
from ntkit.report.study_page import StudyPage, render_study
from ntkit.studies.catalog import LONG, PAPERS, STUDIES, about, configure, kind, module, places
from ntkit.studies.environment import peak_memory, versions
from ntkit.studies.index import IndexEntry, render_index
from ntkit.studies.parts import resuming
from ntkit.studies.study import Result, StudyConfig


@dataclass(frozen=True)
class Outcome:
    """A study that was run, or was there already, or refused: what ``result.json`` holds, or the refusal."""

    name: str
    folder: Path
    record: Json | None
    refusal: NtkitError | None = None

    @property
    def holds(self) -> bool:
        """Whether it ran and every bar holds."""
        return self.record is not None and all(c["holds"] is not False for c in self.record["claims"])


def run_study(name: str, config: StudyConfig, out: str | Path) -> Outcome:
    """Run one study and leave ``result.json``, figures (PNG and SVG), ``report.html`` in the folder ``out``.

    ``arrays.safetensors`` holds what the figures draw. A study that has more to leave, or a page of its own,
    has a function ``leave(result, folder)``. Started again after it was killed, it goes on where it was.

    Raises
    ------
    NtkitError
        When the folder cannot be written or holds something else, or the study refuses.
    """
    study = module(name)
    begin = time.perf_counter()
    signature = json.dumps([kind(name), asdict(config), versions()])
    target = Path(out).expanduser().resolve()
    with fresh_folder(out, kind(name)) as folder, resuming(target, signature, folder) as work:
        result = study.run(config)
        seconds = time.perf_counter() - begin + work.seconds
        figures = study.figure(result)
        for title, figure in figures.items():
            for suffix in ("png", "svg"):
                options = {"dpi": 150, "facecolor": "white", "metadata": {"Title": title}}
                figure.savefig(folder / f"{_slug(title)}.{suffix}", **options)
                figure.set_layout_engine("none")  # it is laid out once, for all formats
        if result.arrays:
            write_atomically(folder / "arrays.safetensors", save(dict(result.arrays)))
        record = numbers(name, result, seconds, {title: f"{_slug(title)}.png" for title in figures})
        if hasattr(study, "leave"):
            study.leave(result, folder)
        if not (folder / "report.html").exists():
            source, title = about(name)
            page = StudyPage(
                name=name,
                title=title,
                source=source,
                lead=(study.__doc__ or "").strip().partition("\n\n")[2] or title,
                claims=result.claims,
                notes=result.notes,
                figures=figures,
                facts=_facts(record),
            )
            (folder / "report.html").write_text(render_study(page), encoding="utf-8")
        (folder / MARKER).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Outcome(name, Path(out), record)


def run_all(
    out: str | Path, *, quick: bool, seed: int, device: str, keep_going: bool = True, jobs: int = 1
) -> Iterator[Outcome]:
    """Run every study into a folder of its own below ``out``; what is there with this configuration stays.

    A study that refuses (data that is not there) does not stop the others; one that misses a bar does, unless
    ``keep_going``. After each, ``index.html`` shows what is there. ``jobs`` run at a time, each with its part
    of the processors; the longest begin first then, and they come as they end.

    Raises
    ------
    NtkitError
        When ``jobs`` is no number of processes, or the index cannot be written.
    """
    whole("jobs", jobs, 1)
    given = {"quick": quick, "seed": seed, "device": device}
    names = STUDIES if jobs == 1 else sorted(STUDIES, key=lambda name: name not in LONG)
    outcomes: Iterator[Outcome] = (_one(name, Path(out) / name, given) for name in names)
    with passive_workers(), warnings.catch_warnings():
        if jobs > 1:  # joblib has a worker that has grown begin anew, between two studies
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            many = Parallel(jobs, return_as="generator_unordered")
            outcomes = cast("Iterator[Outcome]", many(delayed(_one)(n, Path(out) / n, given) for n in names))
        for outcome in outcomes:
            if outcome.record is not None:
                write_index(out)
            yield outcome
            if outcome.record is not None and not (outcome.holds or keep_going):
                return


def _one(name: str, folder: Path, given: Mapping[str, Any]) -> Outcome:
    try:
        config = configure(name, **given)
        record = finished(name, config, folder)
        return run_study(name, config, folder) if record is None else Outcome(name, folder, record)
    except NtkitError as refusal:
        return Outcome(name, folder, None, refusal)


def write_index(out: str | Path) -> Path:
    """Write ``index.html`` into a folder of studies: their pictures, and by paper and section what they show.

    Raises
    ------
    NtkitError
        When it cannot be written.
    """
    records = {name: read_record(Path(out) / name, kind(name)) for name in STUDIES}
    entries = []
    for name, record in records.items():
        if record is not None:
            bars = [c["holds"] for c in record["claims"] if c["holds"] is not None]
            picture = next(iter(record["figures"].values()), None)
            entries.append(IndexEntry(name, STUDIES[name][1], places(name), sum(bars), len(bars), picture))
    return write_text(Path(out) / "index.html", render_index(entries, PAPERS))


def table(outcome: Outcome) -> str:
    """Return the table of a study as text: paper, measured, bar, and whether it holds."""
    record = outcome.record
    assert record is not None, "a study that refused has no table"
    marks = {True: "yes", False: "NO", None: ""}
    rows = [("", "paper", "measured", "bar", "holds?")]
    for c in record["claims"]:
        measured = number(c["measured"]) if isinstance(c["measured"], float | int) else c["measured"]
        rows.append((c["what"], c["paper"], measured, c["bar"], marks[c["holds"]]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"note: {note}" for note in record["notes"]]
    return "\n".join([*lines, f"report: {outcome.folder / 'report.html'} ({record['seconds']:.0f} s)"])


def finished(name: str, config: StudyConfig, folder: Path) -> Json | None:
    """Return what a folder holds of this study with this configuration and these versions, if it does."""
    record = read_record(folder, kind(name))
    wanted = json.loads(json.dumps({"config": asdict(config), "versions": versions()}))
    return record if record is not None and all(record.get(k) == v for k, v in wanted.items()) else None


def numbers(name: str, result: Result, seconds: float, figures: dict[str, str]) -> Json:
    """Return what ``result.json`` holds; a number that is not finite stands there as text."""
    claims = [_finite(asdict(c) | {"bar": c.bar, "holds": c.holds}) for c in result.claims]
    return {
        "kind": kind(name),
        "study": name,
        "source": about(name)[0],
        "config": asdict(result.config),
        "changed": _finite(result.config.changed),
        "versions": versions(),
        "claims": claims,
        "notes": list(result.notes),
        "numbers": _finite(dict(result.numbers)),
        "figures": figures,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
    }


def _finite(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _facts(record: Json) -> tuple[tuple[str, str], ...]:
    shown = [
        (k.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v))
        for k, v in record["config"].items()
    ]
    return (
        *shown,
        ("seconds", f"{record['seconds']:.0f}"),
        ("peak memory", f"{record['peak_memory_bytes'] / 2**30:.2f} GiB"),
        *record["versions"].items(),
    )


def _slug(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
