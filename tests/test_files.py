"""Folders for what does not fit in memory go away with their process, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ntkit.files import Scratch

pytest.importorskip("fcntl", reason="no locks on this system")
HOLD = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from ntkit.files import Scratch
held = [Scratch("test"), Scratch("test")]
(held[0].path / "large").write_bytes(b"0" * 100)
print(*(s.path for s in held), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def held(place: Path) -> tuple[subprocess.Popen[str], list[Path]]:
    command = [sys.executable, "-c", HOLD, str(place)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [Path(p) for p in process.stdout.readline().split()]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(place: Path) -> None:
    dead, left = held(place)
    alive, kept = held(place)
    others = [place / name for name in ("ntkit-of-an-older-version", "somebody's")]
    for path in others:
        path.mkdir()
    assert all(p.is_dir() for p in left + kept)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    mine = Scratch("test")
    assert not any(p.exists() for p in left)
    assert all(p.is_dir() for p in [*kept, *others, mine.path])
    alive.communicate("")
    assert not any(p.exists() for p in kept), "a process that ends removes its own"
    mine.remove()
    assert sorted(place.iterdir()) == sorted(others)
