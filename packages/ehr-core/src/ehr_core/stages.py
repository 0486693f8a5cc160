"""The stage graph: work that is done once, each piece in a folder named by everything that its content depends on.

A stage is a function, its settings and the folders that it reads. Its key is made here, in one place, from settings,
the content of every file that a setting names, the keys of its inputs, and the code of the packages involved, ehr-core
among them. A folder appears whole, so one that exists is finished; what a stage does not depend on does not change its
key. ::

    graph = Graph(folder)
    data = graph.add("data", write_records, source_settings)
    tokens = graph.add("tokens", tokenize, tokenizer_settings, {"meds": data})
    graph.run()

A function is called as ``function(output, settings, **inputs)`` with the inputs' folders by name.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import textwrap
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ehr_core.component import Component
from ehr_core.config import to_plain
from ehr_core.errors import EhrError, FormatError, NotApplicable
from ehr_core.formats.folder import (
    MANIFEST,
    digest_of,
    file_digest,
    file_digests,
    new_folder,
    read_json,
    write_json,
    write_sealed,
)
from ehr_core.plugins import KINDS, build, registry

KEY = 12
"""Hex digits of a key that name a folder."""
NOT_APPLICABLE = "not_applicable.json"
"""In the folder of a stage that could not be done, with the ``reason``; what depends on it is not done either."""


# -- keys


@functools.cache
def code_digest(package: str) -> str:
    """sha256 of the Python and YAML files of an importable package, so that changed code is never served stale."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return "absent"
    root = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    files = sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")) if root.is_dir() else [root]
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()


def content_digest(path: Path) -> str:
    """sha256 of what a file or a folder holds, wherever it is; what a manifest says of other files is not believed."""
    if path.is_dir():
        manifest = path / MANIFEST
        return digest_of([file_digests(path), file_digest(manifest) if manifest.is_file() else None])
    return file_digest(path) if path.exists() else "absent"


def settings_key(settings: Any) -> Any:
    """Settings as JSON values with the content of files in the place of their names.

    A field counts as the name of a file or folder when it is typed `Path`, alone or within a list or a dictionary. Of a
    source, which knows which files below a folder it reads, its fingerprint counts.
    """
    if component_of(settings, "source") is not None:
        hints = typing.get_type_hints(type(settings))
        plain = {name: value for name, value in to_plain(settings).items() if Path not in _parts(hints[name])}
        return {"settings": plain, "files": dict(build("source", settings).fingerprint())}
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        hints = typing.get_type_hints(type(settings))
        fields = [field.name for field in dataclasses.fields(settings) if field.name != "defaults"]
        return {name: _field_key(getattr(settings, name), hints[name]) for name in fields}
    if isinstance(settings, Mapping):
        return {str(key): settings_key(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [settings_key(value) for value in settings]
    return {"content": content_digest(settings)} if isinstance(settings, Path) else to_plain(settings)


def _field_key(value: Any, hint: Any) -> Any:
    if Path not in _parts(hint):
        return settings_key(value)
    if isinstance(value, str | Path):
        return {"content": content_digest(Path(value))}
    if isinstance(value, list | tuple):
        return [_field_key(part, Path) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _field_key(part, Path) for key, part in value.items()}
    return settings_key(value)


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from _parts(part)


def component_of(settings: Any, kind: str) -> Component | None:
    """The component of a kind whose settings these are, or None."""
    component = registry().components[kind].get(getattr(settings, "name", None) or "")
    return component if component is not None and component.config is type(settings) else None


def packages_of(settings: Any) -> set[str]:
    """Import packages of the components whose settings these are, or hold."""
    found: set[str] = set()
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        for kind in KINDS:
            if (component := component_of(settings, kind)) is not None:
                found |= needed_packages(component.target.partition(":")[0].partition(".")[0])
        values: Any = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    elif isinstance(settings, Mapping):
        values = settings.values()
    else:
        values = settings if isinstance(settings, list | tuple) else ()
    return found.union(*map(packages_of, values))


@functools.cache
def needed_packages(package: str) -> frozenset[str]:
    """A plugin's import package and those of the workbench that its distribution requires."""
    plugins = registry().plugins
    distribution = next((p.distribution for p in plugins if p.module.partition(".")[0] == package), None)
    try:
        required = importlib.metadata.requires(distribution) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        required = None
    names = {re.split(r"[^\w-]", text.strip(), maxsplit=1)[0].replace("-", "_") for text in required or ()}
    return frozenset({package} | {name for name in names if name.startswith("ehr_")})


@functools.cache
def imported_packages(function: Callable[..., Any]) -> frozenset[str]:
    """Import packages of the workbench that a function's body imports."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # written at a prompt
        return frozenset()
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return frozenset(name for module in modules if (name := module.partition(".")[0]).startswith("ehr_"))


# -- the graph


@dataclasses.dataclass(frozen=True)
class Given:
    """A folder that no stage makes: the user's own, known by its content."""

    path: Path
    key: str

    @classmethod
    def of(cls, path: Path) -> "Given":
        """Known by all that is in it."""
        return cls(path, content_digest(path))


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One piece of work. Make it with `Graph.add`."""

    name: str
    function: Callable[..., Any]
    settings: Any
    inputs: Mapping[str, "Stage | Given"]
    folder: Path
    """Where the folders of stages are."""
    words: str = ""
    """What to say about it, for people."""
    whole: bool = False
    """Whether the function makes its own folder whole, for example because it goes on after a kill where it was."""
    always: bool = False
    """Whether it is done although an input has no result; it finds a `NOT_APPLICABLE` there then."""
    free: Any = None
    """Settings that do not change the result: who watches, how many processes. The function gets them as ``free``."""

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything that the result depends on."""
        inputs = {name: part.key for name, part in self.inputs.items()}
        function = inspect.unwrap(self.function)
        packages = {"ehr_core", function.__module__.partition(".")[0], *imported_packages(function)}
        packages |= packages_of(self.settings)
        code = {package: code_digest(package) for package in sorted(packages)}
        place = f"{function.__module__}.{function.__qualname__}"
        return digest_of([place, settings_key(self.settings), inputs, code])

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder / f"{self.name.replace('/', '-')}-{self.key[:KEY]}"

    @property
    def done(self) -> bool:
        """Whether the folder is there. Raises FormatError for one that has lost files since it was made."""
        if not self.path.is_dir():
            return False
        if self._listing.is_file():
            kept = read_json(self._listing, dict[str, int])
            lost = [name for name, size in kept.items() if _size(self.path / name) != size]
            if lost:
                raise FormatError(
                    f"{self.path} has lost or changed {len(lost)} of its {len(kept)} files, {lost[0]} among them; "
                    "remove the folder, and it is made again"
                )
        return True

    @property
    def _listing(self) -> Path:
        """Beside the folder: the files that it had when it was made, and their sizes."""
        return self.path.with_name(f".{self.path.name}.files.json")

    @property
    def begun(self) -> bool:
        """Whether work on it was stopped on the way, and would go on."""
        return self.path.with_name(f"{self.path.name}.running").is_dir()

    @property
    def reason(self) -> str | None:
        """Why there is no result, of a stage that is done and could not answer."""
        return read_reason(self.path)

    def make(self) -> None:
        """Call the function on the inputs' folders. A stage whose input has no result has none, for the same reason."""
        reasons = [part.reason for part in self.inputs.values() if isinstance(part, Stage) and part.reason is not None]
        try:
            if reasons and not self.always:
                self._refuse(reasons[0])
            else:
                self._make()
        except (OSError, FormatError):
            if not self.path.is_dir():  # else another process has just made the same
                raise
        files = {p.relative_to(self.path).as_posix(): _size(p) for p in sorted(self.path.rglob("*")) if p.is_file()}
        write_json(self._listing, files)

    def _make(self) -> None:
        folders = {name: part.path for name, part in self.inputs.items()}
        more = {} if self.free is None else {"free": self.free}
        try:
            if self.whole:
                self.function(self.path, self.settings, **folders, **more)
            else:
                with new_folder(self.path) as partial:
                    self.function(partial, self.settings, **folders, **more)
        except NotApplicable as reason:
            self._refuse(str(reason))

    def _refuse(self, reason: str) -> None:
        with new_folder(self.path) as partial:
            write_reason(partial, reason)


def write_reason(folder: Path, reason: str) -> None:
    """Say in a folder why there is nothing else in it."""
    write_sealed(folder / NOT_APPLICABLE, {"reason": reason})


def read_reason(folder: Path) -> str | None:
    """Why there is nothing in a folder, where it says so."""
    path = folder / NOT_APPLICABLE
    return read_json(path, _Reason).reason if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class _Reason:
    reason: str


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


class Graph:
    """Stages in the order in which they were added, which is one in which they can run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stages: list[Stage] = []
        self.ran: list[Stage] = []
        """Those that this run had to do."""

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        settings: Any,
        inputs: Mapping[str, Stage | Given] | None = None,
        *,
        words: str = "",
        whole: bool = False,
        always: bool = False,
        free: Any = None,
    ) -> Stage:
        """A further stage; see `Stage` for the fields. Nothing runs yet."""
        stage = Stage(name, function, settings, dict(inputs or {}), self.folder, words, whole, always, free)
        self.stages.append(stage)
        return stage

    def run(self) -> None:
        """Do every stage that is not done. An error leaves what was done before it."""
        for stage in self.stages:
            self.do(stage)

    def do(self, stage: Stage) -> None:
        """Do one stage, unless it is done; what it reads has to be."""
        if stage.done:
            say(stage.name, "up to date", stage.words)
            return
        say(stage.name, "going on" if stage.begun else "running", stage.words)
        others = self.folder.glob(f"{stage.path.name.rpartition('-')[0]}-*.running")
        if not stage.begun and (other := next(others, None)):
            say("", "", f"{other.name} was stopped, but has other settings, inputs or code: this begins anew")
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ran.append(stage)
        stage.make()
        state = f"{time.monotonic() - started:.1f} s"
        say(stage.name, state, f"not applicable: {stage.reason}" if stage.reason else "done")

    def plan(self) -> list[Stage]:
        """What `run` would do, said and not done; nothing is written."""
        waiting = [stage for stage in self.stages if not stage.done]
        for stage in self.stages:
            state = "up to date" if stage not in waiting else "would go on" if stage.begun else "would run"
            say(stage.name, state, stage.words)
        return waiting

    def get(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)


def say(name: str, state: str, words: str = "") -> None:
    """One line about a stage, on stderr."""
    print(f"{name:<42} {state:<11} {words}".rstrip(), file=sys.stderr, flush=True)


def check_writable(folder: Path) -> None:
    """Raise EhrError unless files can be made in a folder, or in the one that it will be made in; nothing is left."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise EhrError(f"{folder} cannot be made: {there} is a file; give another output")
    probe = there / f".ehr-writable-{time.monotonic_ns()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EhrError(f"{folder} cannot be written: {error.strerror} in {there}; give another output") from None
