"""Patients out of a JSON file of any size, one after the other: memory is bounded by the largest patient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ehr_core.errors import FormatError

CHUNK = 1 << 20
LIMIT = 1 << 26
"""Characters that one patient may have; beyond them the file is taken to be broken."""


def patients(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a top-level list, or of the list ``patients`` of a top-level object. Raises FormatError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(file, path).patients()
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not UTF-8") from None


class _Reader:
    """A window on the text; ``at`` is where the next thing starts in ``text``."""

    def __init__(self, file: TextIO, path: Path):
        self.file, self.path = file, path
        self.text, self.at, self.number = "", 0, 0
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def patients(self) -> Iterator[dict[str, Any]]:
        opening = self.take("[{")
        if opening == "{":
            self.find_list()
        if self.peek() == "]":
            self.at += 1
        else:
            while True:
                self.number += 1
                found = self.value()
                if not isinstance(found, dict):
                    raise self.error("is no object")
                yield found
                if self.take(",]") == "]":
                    break
        if opening == "{":
            while self.take(",}") == ",":
                self.pair()
        if self.peek():
            raise FormatError(f"{self.path} goes on after its patients; expected one list, or an object that has one")

    def find_list(self) -> None:
        """Go on to the first element of ``patients``, over whatever keys are before it."""
        while self.peek() == '"':
            if self.key() == "patients" and self.take("["):
                return
            self.value()
            if self.take(",}") == "}":
                break
        raise FormatError(f"{self.path} is an object without a list 'patients'")

    def pair(self) -> None:
        self.key()
        self.value()

    def key(self) -> Any:
        found = self.value()
        self.take(":")
        return found

    def fill(self) -> bool:
        """Read on, twice as far each time, so that a large patient is not decoded over and over."""
        more = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if not self.fill():
                return ""

    def take(self, allowed: str) -> str:
        """The next sign, which must be one of these."""
        found = self.peek()
        if not found or found not in allowed:
            raise self.error(f"is not followed by {' or '.join(allowed)}")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.text, self.at)
                # A number at the end of the window, or before a ``.`` or ``e`` there, may go on behind it.
                if self.text[end : end + 3].strip(".eE+-") or not self.fill():
                    self.at = min(end, len(self.text))
                    return found
            except RecursionError:
                raise self.error("nests too deep") from None
            except ValueError:
                if len(self.text) - self.at > LIMIT or not self.fill():
                    raise self.error("is not readable JSON") from None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object, none of whose keys may be there twice: one of the two would be lost."""
        found = dict(pairs)
        if len(found) < len(pairs):
            raise self.error("has a key twice")
        return found

    def error(self, what: str) -> FormatError:
        where = f", patient {self.number}" if self.number else ""
        return FormatError(
            f"{self.path}{where} {what}; expected a list of patients, or an object whose 'patients' is one"
        )
