"""Stages that are done once: each is a folder named by a digest of everything that its content depends on.

A stage's folder appears whole (its maker writes with `ehr_core.formats.folder.new_folder`, or renames at the end), so a
folder that exists is finished. The key covers inputs, settings and the code of the components that take part; what a
stage does not depend on does not change its key.
"""

import contextlib
import functools
import hashlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ehr_core.config import to_plain
from ehr_core.formats.folder import digest_of
from ehr_core.plugins import registry

KEY = 12
"""Hex digits of a key that name a folder."""


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


def component_key(kind: str, settings: Any) -> dict[str, Any]:
    """What a component contributes to a key: its settings, and the code of the package it comes from."""
    target = registry().get(kind, settings.name).target
    return {"settings": to_plain(settings), "code": code_digest(target.partition(":")[0].partition(".")[0])}


def command_key(name: str) -> str:
    """What a command contributes to a key: the code of its package."""
    return code_digest(registry().get("command", name).target.partition(":")[0].partition(".")[0])


class Stages:
    """Runs stages below a folder, or finds them done. ``reran`` counts those that ran, ``total`` all."""

    def __init__(self, folder: Path, dry_run: bool = False):
        self.folder, self.dry_run = folder, dry_run
        self.done: dict[str, Path] = {}
        self.reran = 0

    def path(self, name: str, key: Any) -> Path:
        """Where a stage with this key is, or will be."""
        return self.folder / f"{name.replace('/', '-')}-{digest_of(key)[:KEY]}"

    def run(self, name: str, key: Any, make: Callable[[Path], None], words: str = "", inside: str = "") -> Path:
        """The stage's folder; ``make(path)`` makes it (whole) unless it, or the part named ``inside``, exists."""
        path = self.path(name, key)
        self.done[name] = path
        if (path / inside).exists():
            say(name, "up to date", words)
        elif self.dry_run:
            self.reran += 1
            say(name, "would run", words)
        else:
            self.reran += 1
            say(name, "running", words)
            self.folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            make(path)
            say(name, f"{time.monotonic() - started:.1f} s", "done")
        return path

    @property
    def paths(self) -> dict[str, str]:
        """Stage name to folder name, for ``stages.json``."""
        return {name: path.name for name, path in self.done.items()}


def say(name: str, state: str, words: str = "") -> None:
    """One line about a stage, on stderr."""
    print(f"{name:<34} {state:<11} {words}".rstrip(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what commands print to stderr, so that stdout carries the runner's result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def unique(names: Sequence[str]) -> list[str]:
    """The names without repetitions, in order."""
    return list(dict.fromkeys(names))
