"""The page of all studies: their tables and figures, from the folders that they left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ntkit.display.numbers import number
from ntkit.errors import NtkitError
from ntkit.files import Json, write_atomically
from ntkit.report.output_folder import read_record
from ntkit.studies.catalog import STUDIES, kind

_MARKS = {True: "yes", False: "**no**", None: ""}


def document(results: str | os.PathLike[str], page: str | os.PathLike[str]) -> Path:
    """Write the Markdown page of the studies found below ``results``; their figures go beside it.

    A study that is not there keeps the section that the page has of it already.

    Raises
    ------
    NtkitError
        When no study has left its folder there.
    """
    source, target = Path(results), Path(page)
    read = {name: read_record(source / name, kind(name)) for name in STUDIES}
    records = {name: record for name, record in read.items() if record is not None}
    if not records:
        raise NtkitError(f"There is no study below {source}. Run them first: ntkit study all --out {source}")
    pictures = target.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    entries = _kept(target)
    for name, record in records.items():
        _remove_pictures(name, pictures)
        entries[name] = _row(name, record), _section(name, record, source / name, pictures)
    there = [entries[name] for name in STUDIES if name in entries]
    lacking = [name for name in STUDIES if name not in entries]
    text = "\n\n".join([_head([row for row, _ in there], lacking), *(body for _, body in there)]) + "\n"
    write_atomically(target, text.encode())
    return target


def _kept(page: Path) -> dict[str, tuple[str, str]]:
    """Return row and section of each study that a page has."""
    if not page.exists():
        return {}
    head, *sections = page.read_text(encoding="utf-8").rstrip("\n").split("\n\n## ")
    bodies = {body.partition("\n")[0]: f"## {body}" for body in sections}
    rows = {
        row.split("](#")[0].removeprefix("| ["): row for row in head.splitlines() if row.startswith("| [")
    }
    return {name: (rows[name], bodies[name]) for name in rows.keys() & bodies.keys()}


def _remove_pictures(name: str, pictures: Path) -> None:
    """Remove the pictures that a page showed of a study; another study's name may begin with this one's."""
    longer = tuple(f"{other}-" for other in STUDIES if other.startswith(f"{name}-"))
    for file in pictures.glob(f"{name}-*.png"):
        if not (longer and file.name.startswith(longer)):
            file.unlink()


def _row(name: str, record: Json) -> str:
    bars = [c["holds"] for c in record["claims"] if c["holds"] is not None]
    state = f"{sum(bars)} of {len(bars)}" if bars else "reported only"
    return f"| [{name}](#{name}) | {record['source']} | {state} | {record['seconds']:.0f} |"


def _head(rows: list[str], lacking: list[str]) -> str:
    missing = f"\n\nNot run: {', '.join(lacking)}." if lacking else ""
    return (
        "# The studies\n\n"
        "The papers' experiments, as `ntkit study all --out FOLDER` ran them and "
        "`ntkit study document FOLDER --page docs/studies.md` wrote them down. "
        "A bar that was missed stands here as missed.\n\n"
        "| study | source | bars held | seconds |\n|---|---|---|---|\n" + "\n".join(rows) + missing
    )


def _section(name: str, record: Json, folder: Path, pictures: Path) -> str:
    parts = [f"## {name}", f"{STUDIES[name][1]}. {record['source']}."]
    rows = ["| | paper | measured | bar | holds? |", "|---|---|---|---|---|"]
    for c in record["claims"]:
        measured = number(c["measured"]) if isinstance(c["measured"], float | int) else c["measured"]
        cells = (c["what"], c["paper"], measured, c["bar"], _MARKS[c["holds"]])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    parts.append("\n".join(rows))
    parts += [f"*{note}*" for note in record["notes"]]
    for title, file in record["figures"].items():
        shutil.copyfile(folder / file, pictures / f"{name}-{file}")
        parts.append(f"![{title}]({pictures.name}/{name}-{file})")
    return "\n\n".join(parts)
