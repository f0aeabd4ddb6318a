"""An output folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ntkit.errors import NtkitError
from ntkit.files import Json, as_path, write_atomically

MARKER = "result.json"


@contextmanager
def fresh_folder(out: str | Path, kind: str) -> Iterator[Path]:
    """Build an output folder in a hidden sibling and swap it in when the block ends without an error.

    The block must leave a ``result.json`` whose ``"kind"`` is ``kind``: a folder without it belongs to
    somebody else and is never replaced. When the block raises, what was there before stays as it was.

    Raises
    ------
    NtkitError
        When the folder cannot be written, or holds anything but an earlier result of this kind.
    """
    target = Path(out).expanduser().resolve()
    _refuse_foreign(target, kind)
    parents = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    except OSError as error:
        _remove_empty(parents)
        raise _unwritable(out, error) from error
    try:
        part.chmod(0o755)
        yield part
        _refuse_foreign(target, kind)
        _swap(part, target)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _remove_empty(parents)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file whole or not at all, and return its path; an older one is replaced.

    Raises
    ------
    NtkitError
        When the file cannot be written.
    """
    target = as_path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text.encode())
    except OSError as error:
        raise NtkitError(
            f"{target} cannot be written: {error.strerror or error}. Choose another place."
        ) from error
    return target


def _swap(part: Path, target: Path) -> None:
    """Put the new folder in place of the old one, which is restored if that fails."""
    if not target.exists():
        os.rename(part, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.rename(target, old)
    try:
        os.rename(part, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_record(folder: Path, kind: str) -> Json | None:
    """Return what the ``result.json`` of a folder says, None where it is not an output of this kind."""
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("kind") == kind else None


def _refuse_foreign(target: Path, kind: str) -> None:
    """Refuse to replace a file, or a folder that holds anything but an earlier result."""
    if not os.path.lexists(target):
        return
    with suppress(OSError):
        if target.is_dir() and not any(target.iterdir()):
            return
    if read_record(target, kind) is None:
        raise NtkitError(
            f"{target} exists and is not an earlier output of {kind!r}, so it is not replaced. Choose "
            f"another folder, or remove this one yourself."
        )


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for an output that never came."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _unwritable(out: str | Path, error: OSError) -> NtkitError:
    return NtkitError(
        f"The output folder {str(out)!r} cannot be written: {error.strerror or error}. Choose a folder in a "
        f"place where you may write, with enough room."
    )
