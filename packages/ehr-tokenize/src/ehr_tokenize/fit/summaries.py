"""Summaries of shards on disk, so that fitting needs memory for a shard and a killed fit goes on where it was.

`Tokenizer.summary_type` is made of dataclasses, lists, tuples, sets, dictionaries, counters, plain values, arrays and
`Counts`, each with its parts, as in ``dict[str, int]``. A kept summary is a safetensors file: arrays, and beside them
the rest as JSON. Nothing in it names code: the type says what to make of it. When it is read again, arrays are
memory-mapped and the numbers of `Counts` stay in the file until a slice is asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import sys
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ehr_core.errors import FormatError
from ehr_core.formats.arrays import open_arrays
from safetensors.numpy import save_file

from ehr_tokenize.fit.quantiles import Counts

PLAIN = (str, int, float, bool)
KEY, DIGEST = "summary", "sha256"


@dataclasses.dataclass(frozen=True)
class FileNumbers:
    """float32 numbers in a file, read a slice at a time."""

    path: Path
    start: int
    """Byte of the first number."""
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.size)
        return np.fromfile(self.path, "<f4", max(stop - start, 0), offset=self.start + 4 * start)


def _keepable(kind: Any) -> bool:
    if kind in (*PLAIN, type(None), np.ndarray, Counts):
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return len([a for a in arguments if a is not type(None)]) == 1 and all(_keepable(a) for a in arguments)
    if origin in (list, tuple, set, dict, collections.Counter):
        return bool(arguments) and all(_keepable(a) for a in arguments if a is not Ellipsis)
    if dataclasses.is_dataclass(kind):
        return all(_keepable(typing.get_type_hints(kind)[field.name]) for field in dataclasses.fields(kind))
    return False


def keep(kind: Any, summary: Any, path: Path) -> None:
    """Write a summary of the type ``kind``; the file is there whole or not at all."""
    assert _keepable(kind), f"summaries of type {kind} cannot be kept; see `ehr_tokenize.fit.summaries`"
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_plain(summary, arrays), separators=(",", ":"))
    texts = {KEY: text, DIGEST: _digest(text, arrays)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, temporary, texts)
    temporary.replace(path)


def _digest(text: str, arrays: dict[str, np.ndarray]) -> str:
    """sha256 of a summary, its arrays in the order of their numbers."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(arrays, key=int):
        whole.update(np.ascontiguousarray(arrays[name]).data if arrays[name].size else b"")
    return whole.hexdigest()


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON, its arrays put aside under the number that stands for them."""
    if isinstance(value, np.ndarray):
        arrays[str(len(arrays))] = np.ascontiguousarray(value)
        return len(arrays) - 1
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return [[_plain(key, arrays), _plain(part, arrays)] for key, part in value.items()]
    if isinstance(value, set):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(part, arrays) for part in value]
    return value


def recall(kind: Any, path: Path) -> Any:
    """What `keep` wrote, as a value of the type. Raises FormatError for a damaged file."""
    arrays, starts, texts = open_arrays(path)
    try:
        if DIGEST in texts and texts[DIGEST] != _digest(texts[KEY], arrays):  # earlier releases wrote none
            raise ValueError("its content was changed")
        found = msgspec.json.decode(texts[KEY])
        return _Reader(path, arrays, starts).read(kind, found)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise FormatError(f"{path} is not a summary: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class _Reader:
    path: Path
    arrays: dict[str, np.ndarray]
    starts: dict[str, int]

    def read(self, kind: Any, found: Any) -> Any:
        """The JSON value as a value of the type."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is Counts:
            # Names are interned: of many shards with the same codes there is one text each.
            names = [sys.intern(name) for name in found["names_C"]]
            rows, offset, value = (self.arrays[str(found[name])] for name in ("rows_C", "offset_C", "value"))
            numbers = FileNumbers(self.path, self.starts[str(found["value"])], len(value))
            return Counts(names, np.array(rows), np.array(offset), numbers)
        if kind is np.ndarray:
            return self.arrays[str(found)]
        if origin in (typing.Union, types.UnionType):
            return None if found is None else self.read(next(a for a in arguments if a is not type(None)), found)
        if origin in (list, set):
            return origin(self.read(arguments[0], part) for part in found)
        if origin is tuple:
            each = (arguments[0],) * len(found) if Ellipsis in arguments else arguments
            return tuple(self.read(a, part) for a, part in zip(each, found, strict=True))
        if origin in (dict, collections.Counter):
            part = arguments[1] if origin is dict else int
            return origin({self.read(arguments[0], key): self.read(part, value) for key, value in found})
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            return kind(**{name: self.read(hints[name], value) for name, value in found.items()})
        return sys.intern(found) if kind is str else found
