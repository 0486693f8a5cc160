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
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from ehr_core.errors import FormatError

MANIFEST = "manifest.json"
SEAL = "sha256"
"""Field of a JSON object with the digest of all others (`write_sealed`)."""
MOST_BYTES, DEEPEST = 2**28, 64
"""Size and nesting of JSON that is read; the largest vocabularies take a tenth of that."""
NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
T = TypeVar("T")


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


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object whole, with the digest of all else in it under SEAL, which `read_json` verifies.

    For files that no manifest vouches for, manifests first among them.
    """
    plain = msgspec.json.decode(json_bytes(value))  # as it will be read: keys are text, which decides their order
    write_json(path, plain | {SEAL: digest_of(plain)})


@overload
def read_json(path: Path) -> Any: ...
@overload
def read_json(path: Path, kind: type[T]) -> T: ...
def read_json(path: Path, kind: Any = Any) -> Any:
    """Read JSON into a type: a dataclass, a `msgspec.Struct`, or a generic such as ``dict[str, int]``.

    Raises FormatError that names the file, and the field (``$.content.rows``) that is missing, of another type, or not
    known; also for a file of more than MOST_BYTES, one that nests deeper than DEEPEST, and one that was changed after
    `write_sealed`.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FormatError(f"{path} has {path.stat().st_size:,} bytes; JSON of at most {MOST_BYTES:,} is read")
        raw = path.read_bytes()
        if _nests_deep(raw):
            raise FormatError(f"{path} is not readable JSON: it nests deeper than {DEEPEST} levels")
        plain = msgspec.json.decode(raw)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise FormatError(f"{path} is not readable JSON: {str(error).splitlines()[0]}") from None
    if isinstance(plain, dict) and (digest := plain.pop(SEAL, None)) is not None and digest != digest_of(plain):
        raise FormatError(f"{path} was changed after it was written: it differs from its {SEAL}; make it anew")
    return typed(plain, kind, path)


def typed(value: Any, kind: type[T], path: Path, place: str = "$") -> T:
    """A value of JSON as a type; see `read_json`. ``place`` is where the value stands in the file."""
    try:
        found = msgspec.convert(value, kind, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        words, _, field = str(error).partition(" - at `$")
        raise FormatError(f"{path}: {place}{field.removesuffix('`')}: {words[:1].lower()}{words[1:]}") from None
    if dataclasses.is_dataclass(kind) and (more := value.keys() - {field.name for field in dataclasses.fields(kind)}):
        raise FormatError(f"{path}: {place} has the unknown field {min(more)!r}")
    return found


def _nests_deep(raw: bytes) -> bool:
    """Whether brackets nest deeper than DEEPEST; up to twice as deep may pass."""
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(None, NOT_BRACKETS)
    for _ in range(DEEPEST):
        shorter = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(brackets):
            return False  # nothing left, or not JSON
        brackets = shorter
    return bool(brackets)


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
    write_sealed(folder / MANIFEST, dataclasses.asdict(complete))
    return complete


def read_manifest(folder: Path, format: str, version: int, needed: Collection[str] = ("",)) -> Manifest:
    """The manifest of a folder, whose files are verified (`verify`, which see for ``needed``).

    Raises FormatError for a missing folder, another format or another version.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected a {format}")
    if not (folder / MANIFEST).is_file():
        raise FormatError(f"{folder} has no {MANIFEST}, so it is no {format} (or was not finished); make it anew")
    manifest = read_json(folder / MANIFEST, Manifest)
    if manifest.format != format:
        raise FormatError(f"{folder} is a {manifest.format}, expected a {format}")
    if manifest.version != version:
        raise FormatError(
            f"{folder} is a {format} of version {manifest.version}; this program reads version {version}. "
            f"Make it anew, or install the release that wrote it: {', '.join(manifest.made_by)}."
        )
    verify(folder, manifest, needed)
    return manifest


def verify(folder: Path, manifest: Manifest, needed: Collection[str] = ("",)) -> None:
    """Raise FormatError for a file that is not as the manifest says: missing, or of another content.

    ``needed`` names files, or beginnings of their paths: what a reader does not open need not be there. Each file is
    hashed once in the life of the process, and again when its size or time of change is another. Files that the
    manifest does not list are nobody's; a reader that takes whatever it finds in a folder asks `check_listed`.
    """
    names = [name for name in manifest.files if name.startswith(tuple(needed))]
    with ThreadPoolExecutor(min(len(names), 4) or 1) as pool:  # hashing releases the GIL
        list(pool.map(lambda name: _verify_file(folder / name, manifest.files[name]), names))


def verify_below(folder: Path) -> None:
    """`verify` a folder by its own manifest, or by that of the folder which it is a part of; without one, nothing."""
    for place in (folder, folder.absolute().parent):
        if (place / MANIFEST).is_file():
            inside = folder.absolute().relative_to(place.absolute()).as_posix()
            verify(place, read_json(place / MANIFEST, Manifest), ["" if inside == "." else f"{inside}/"])
            return


def check_listed(folder: Path, manifest: Manifest, paths: Collection[Path]) -> None:
    """Raise FormatError for a file in the folder that its manifest does not list, and that would be read."""
    for path in paths:
        if path.relative_to(folder).as_posix() not in manifest.files:
            raise FormatError(f"{path} is not listed in {folder / MANIFEST}; remove it")


def _verify_file(path: Path, digest: str) -> None:
    try:
        state = path.stat()
        found = _digest(path.absolute(), state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing; {MANIFEST} lists it, so part of the folder was lost") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    if found != digest:
        raise FormatError(f"{path} is damaged or another file: its content is not what {MANIFEST} lists; make it anew")


@lru_cache(maxsize=65_536)
def _digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)
