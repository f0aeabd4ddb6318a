"""Run the tests on every Python of this machine that ntkit supports, each in its own environment.

``python tools/matrix.py [names of tests, options of pytest ...]`` makes or renews ``.venv-3.N`` by the
Makefile, runs the tests there, keeps what they printed in ``out/matrix/3.N.txt`` and prints a table.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEWEST = 14
SAY = "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.prefix == sys.base_prefix)"


def oldest() -> int:
    """Return the minor version that ntkit asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return int(re.fullmatch(r">=3\.(\d+)", project["requires-python"])[1])


def version(python: str) -> str | None:
    """Return the version of an interpreter, None if it does not run, or is that of an environment."""
    try:
        answer = subprocess.run([python, "-c", SAY], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = answer.stdout.split()
    return told[0] if answer.returncode == 0 and told[1:] == ["True"] else None


def interpreters() -> dict[int, tuple[str, str]]:
    """Return the interpreters found, by minor version: (executable, version)."""
    found = {}
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for minor in range(oldest(), NEWEST + 1):
        name = f"python3.{minor}"
        folders = os.environ.get("PATH", "").split(os.pathsep)
        places = [os.path.join(folder, name) for folder in folders]
        places += sorted(glob.glob(f"{pyenv}/versions/3.{minor}.*/bin/{name}"))
        for python in places:  # a shim may be there and lead nowhere
            told = version(python) if os.access(python, os.X_OK) else None
            if told is not None and told.startswith(f"3.{minor}."):
                found[minor] = python, told
                break
    return found


def run(minor: int, python: str, arguments: list[str]) -> tuple[bool, str, float]:
    """Run the tests with one interpreter; return whether they passed, their last line, and the seconds."""
    log = ROOT / "out" / "matrix" / f"3.{minor}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    command = ["make", "--no-print-directory", "test", f"PYTHON={python}", f"VENV=.venv-3.{minor}"]
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [*command, f"TESTS={' '.join(arguments)}"], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT
        )
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    ends = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|errors?)\b.* in ", line)]
    what = ends[-1] if ends else f"did not start: see out/matrix/{log.name}"
    return done.returncode == 0, what, time.perf_counter() - begin


def main() -> int:
    """Run all, print the table, return 1 if one failed or none was found."""
    found = interpreters()
    rows, good = [], bool(found)
    for minor in range(oldest(), NEWEST + 1):
        if minor not in found:
            rows.append((f"3.{minor}", "not found", ""))
            continue
        python, told = found[minor]
        print(f"Python {told} ...", flush=True)
        passed, what, seconds = run(minor, python, sys.argv[1:])
        rows.append(
            (told, "passed" if passed else "FAILED", f"{what} ({seconds:.0f} s with the installation)")
        )
        good &= passed
    print("\n| Python | tests | |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
