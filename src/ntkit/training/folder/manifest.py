"""The manifest of a run folder: what was recorded, written atomically and guarded by its own hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ntkit.errors import RunFolderError
from ntkit.files import Json, write_atomically

MANIFEST = "manifest.json"
FORMAT = 2


def write_manifest(folder: Path, content: Json) -> None:
    """Replace the manifest of a folder in one go."""
    sealed = {"format": FORMAT, **content}
    sealed["sha256"] = _seal(sealed)
    write_atomically(folder / MANIFEST, (json.dumps(sealed, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Json:
    """Return the manifest of a folder, checked."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} does not exist, so {folder} is not a run folder. Give the folder that ntkit.record made."
        ) from error
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read as a manifest ({error}). Restore it from a copy."
        ) from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _seal(content):
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


def _seal(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
