"""The folder of a run as it is made: new or empty, and gone again where it cannot be begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntkit.errors import RunFolderError
from ntkit.training.log import LOG, LogWriter
from ntkit.training.manifest import MANIFEST


@contextmanager
def new_folder(folder: Path) -> Iterator[LogWriter]:
    """Yield the log of a new run, to write its beginning; nothing is left behind if that fails."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty, and no run is overwritten. Choose another, or delete it."
            )
        log = LogWriter(folder / LOG)
    except OSError as error:
        _remove(folder, made)
        raise RunFolderError(
            f"{folder} cannot be written ({error.strerror}). Choose a folder that can."
        ) from error
    try:
        yield log
    except (OSError, RunFolderError) as error:
        log.close()
        _remove(folder, made)
        raise RunFolderError(f"{folder} cannot be written ({error}). Choose another.") from error


def _remove(folder: Path, made: bool) -> None:
    for name in (LOG, MANIFEST):
        (folder / name).unlink(missing_ok=True) if folder.is_dir() else None
    if made and folder.is_dir():
        folder.rmdir()
