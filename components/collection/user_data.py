"""The user's preference data, passed through unchanged.

Local files are copied byte for byte into `user/`, so that what was validated is what was given even if a file changes
later. Of remote data (`s3://`, `hf://`) only the address is kept, as {"uri": address} in `user/source.json`: whoever
validates reads the rows from there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from components.shared.artifacts import MANIFEST, read_artifact
from components.shared.errors import InputError
from components.shared.files import write_json
from components.shared.progress import track

__all__ = ["SOURCE_FILE", "pass_through"]

SOURCE_FILE = "source.json"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def pass_through(preference_data: str, folder: Path) -> dict[str, object]:
    """Copies the user's file or the data files of the user's folder, or records a remote address.

    Args:
        preference_data: A file, a folder, an earlier `pairs` artifact, or an address (`s3://bucket/prefix`,
            `hf://owner/name`).
        folder: Where the copies go; created.

    Returns:
        What was taken, for the provenance: {"uri": address} or {"files": names}.

    Raises:
        InputError: Nothing there, or a folder without data files.
        ArtifactError: A folder with a manifest that is no intact `pairs` artifact.
    """
    folder.mkdir(parents=True)
    if "://" in preference_data and not preference_data.startswith("file://"):
        write_json(folder / SOURCE_FILE, {"uri": preference_data})
        return {"uri": preference_data}
    files = _data_files(Path(preference_data.removeprefix("file://")).expanduser())
    for name, file in track(files.items(), "copy preference data", total=len(files)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    return {"files": list(files)}


def _data_files(source: Path) -> dict[str, Path]:
    """Data files by the name that they get in `user/`."""
    where = f"preference_data {source}"
    if (source / MANIFEST).is_file():
        return _files_of_pairs(source)
    if source.is_file():
        files = {source.name: source}
    elif source.is_dir():
        found = {file.relative_to(source): file for file in sorted(source.rglob("*")) if file.is_file()}
        files = {name.as_posix(): file for name, file in found.items() if _is_data_file(name)}
    else:
        raise InputError("no such file or folder.", where=where, hint="Check the path, or give s3:// or hf://.")
    if not files:
        raise InputError(f"the folder holds no data file ({', '.join(_SUFFIXES)}).", where=where)
    if SOURCE_FILE in files:
        raise InputError(f"{SOURCE_FILE} is a name with a meaning of its own.", where=where, hint="Rename the file.")
    return files


def _is_data_file(relative: Path) -> bool:
    return relative.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in relative.parts)


def _files_of_pairs(folder: Path) -> dict[str, Path]:
    """The rows of an earlier `pairs` artifact: its `pairs.jsonl`, or what lies in its `user/`."""
    artifact = read_artifact(folder, "pairs")
    names = [name for name in artifact.manifest["files"] if name == "pairs.jsonl" or name.startswith("user/")]
    return {name.removeprefix("user/"): artifact.path / name for name in names}
