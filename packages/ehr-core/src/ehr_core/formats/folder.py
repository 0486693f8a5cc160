"""Folders that exist whole or not at all, each with a manifest that says who made it from what.

A writer fills ``NAME.partial-PID`` and renames it to NAME when everything in it is on disk. The manifest holds no time
and no absolute path, so the same inputs and settings give the same bytes anywhere.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ehr_core.errors import FormatError

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder is, who made it, with which settings, from which inputs, and the digest of each file in it."""

    format: str
    """Name of the format, for example ``token-store``."""
    version: int
    """Version of the format; a reader refuses one that it does not know."""
    made_by: list[str]
    """``distribution==version`` of the packages and plugins that wrote it."""
    settings: dict[str, Any]
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of each input to its digest."""
    content: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts about the content that readers check or show, for example counts and the vocabulary's digest."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Relative path of each file to its sha256; filled in by the writer."""

    @property
    def digest(self) -> str:
        """sha256 of the manifest, and through ``files`` of everything in the folder."""
        return digest_of(dataclasses.asdict(self))


def digest_of(value: Any) -> str:
    """sha256 of a value as canonical JSON. Dataclasses count by their fields, paths as text."""
    return hashlib.sha256(json_bytes(value)).hexdigest()


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Canonical JSON: sorted keys, no NaN."""

    def default(part: Any) -> Any:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            return dataclasses.asdict(part)
        if isinstance(part, Path):
            return str(part)
        raise TypeError(f"{type(part).__name__} has no JSON form")

    text = json.dumps(value, sort_keys=True, indent=indent, default=default, allow_nan=False, ensure_ascii=False)
    return text.encode()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write a file to; at the end it is on disk and replaces ``path``.

    The one way in which a single file is written: a reader meets the old one or the new one, never a part.
    """
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole (`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(json_bytes(value, indent=2) + b"\n")


def write_text(path: Path, text: str) -> None:
    """Write text whole (`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises FormatError that names the file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} is not readable JSON: {error}") from error


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """Relative path to sha256 for every file below a folder but its manifest, in order of path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return dict(zip((p.relative_to(folder).as_posix() for p in paths), pool.map(file_digest, paths), strict=True))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to fill; at the end it becomes ``path``. After an error nothing remains.

    Raises FormatError when ``path`` exists and is not an empty folder.
    """
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raise FormatError unless a folder can be made at this path."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FormatError(f"{path} exists already; give another output or remove it first")


def publish(partial: Path, path: Path) -> None:
    """Put everything in ``partial`` on disk, then rename it to ``path`` in one step."""
    mode = _mode_of_new_files(partial)
    for file in partial.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)  # safetensors and temporary files are such as only their owner can read
        _fsync(file)
    _fsync(partial)
    if path.is_dir():
        path.rmdir()
    partial.rename(path)
    _fsync(path.parent)


def _mode_of_new_files(folder: Path) -> int:
    probe = folder / f".mode-{os.getpid()}"  # asking for the umask would change it for all threads
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _fsync(path: Path) -> None:
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` with the digests of the files that are in the folder now; returns it complete."""
    complete = dataclasses.replace(manifest, files=file_digests(folder))
    write_json(folder / MANIFEST, dataclasses.asdict(complete))
    return complete


def read_manifest(folder: Path, format: str, version: int) -> Manifest:
    """The manifest of a folder. Raises FormatError for a missing folder, another format or another version."""
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected a {format}")
    if not (folder / MANIFEST).is_file():
        raise FormatError(f"{folder} has no {MANIFEST}, so it is no {format} (or was not finished); make it anew")
    found = read_json(folder / MANIFEST)
    try:
        manifest = Manifest(**found)
    except TypeError as error:
        raise FormatError(f"{folder / MANIFEST} is not a manifest: {error}") from error
    if manifest.format != format:
        raise FormatError(f"{folder} is a {manifest.format}, expected a {format}")
    if manifest.version != version:
        raise FormatError(
            f"{folder} is a {format} of version {manifest.version}; this program reads version {version}. "
            f"Make it anew, or install the release that wrote it: {', '.join(manifest.made_by)}."
        )
    return manifest
