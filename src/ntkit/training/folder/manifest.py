"""The manifest of a run folder: what was recorded, written atomically and guarded by its own hash."""

from __future__ import annotations

from pathlib import Path

from ntkit.errors import RunFolderError
from ntkit.files import Json, sealed, unsealed, write_atomically

MANIFEST = "manifest.json"
FORMAT = 2


def write_manifest(folder: Path, content: Json) -> None:
    """Replace the manifest of a folder in one go."""
    write_atomically(folder / MANIFEST, sealed({"format": FORMAT, **content}))


def read_manifest(folder: Path) -> Json:
    """Return the manifest of a folder, checked."""
    path = folder / MANIFEST
    try:
        content = unsealed(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} does not exist, so {folder} is not a run folder. Give the folder that ntkit.record made."
        ) from error
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read as a manifest ({error}). Restore it from a copy."
        ) from error
    if content is None:
        raise RunFolderError(
            f"{path} was edited or damaged: it does not match its own hash. Restore it from a copy, or "
            f"record the run again."
        )
    if content["format"] != FORMAT:
        raise RunFolderError(
            f"{path} has format {content['format']}, this ntkit reads {FORMAT}. Use the version of ntkit "
            f"that wrote it ({content.get('ntkit')})."
        )
    return content
