"""Code systems: how a code falls into the parts that become tokens, and mapping files from one system to another.

A part says where in the code it stands, except for the first: E11.65 is ``E11``, ``3-6//65``; the ATC code C07AB02 is
``C07``, ``4//A``, ``SFX//B02``. Related codes share their first tokens, and rare ones need no token of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.parquet import read_frame

from ehr_tokenize.prepare.settings import MappingConfig

_REMOVED = str.maketrans("", "", ",.")
_BLANKS = re.compile(r"\s+")


def clean(text: str) -> str:
    """Upper case, no commas and full stops, ``_`` for blanks: one spelling for what people write in several ways."""
    return _BLANKS.sub("_", text.strip().upper().translate(_REMOVED))


def _parts(code: str, *cuts: tuple[str, int, int | None]) -> list[str]:
    whole = clean(code)
    return [f"{name}{whole[start:stop]}" for name, start, stop in cuts if whole[start:stop]]


def icd10cm(code: str) -> list[str]:
    """Category (3 characters), characters 4 to 6, and the rest of an ICD-10-CM code, with or without its point."""
    return _parts(code, ("", 0, 3), ("3-6//", 3, 6), ("SFX//", 6, None))


def icd10pcs(code: str) -> list[str]:
    """The seven characters of an ICD-10-PCS code; nothing for a code of another length."""
    return list(clean(code)) if len(clean(code)) == 7 else []


def icd9cm(code: str) -> list[str]:
    """Category (3 characters, 4 of an E code) and the rest of an ICD-9-CM diagnosis."""
    cut = 4 if clean(code).startswith("E") else 3
    return _parts(code, ("", 0, cut), ("SFX//", cut, None))


def icd9pcs(code: str) -> list[str]:
    """Category (2 characters) and the rest of an ICD-9-CM procedure."""
    return _parts(code, ("", 0, 2), ("SFX//", 2, None))


def atc(code: str) -> list[str]:
    """Therapeutic group (3 characters), character 4, and the rest of an ATC code."""
    return _parts(code, ("", 0, 3), ("4//", 3, 4), ("SFX//", 4, None))


def whole_number(text: str) -> list[str]:
    """``"054"`` to ``"54"``; nothing for other text."""
    return [str(int(text))] if text.isascii() and text.isdigit() else []


SYSTEMS: dict[str, Callable[[str], list[str]]] = {
    "icd10cm": icd10cm,
    "icd10pcs": icd10pcs,
    "icd9cm": icd9cm,
    "icd9pcs": icd9pcs,
    "atc": atc,
    "int": whole_number,
    "clean": lambda text: [clean(text)],
    "upper": lambda text: [text.upper()],
}
"""What a rule may pass a field on to, by name: text to the values that it becomes."""


def table(name: str, settings: object) -> Callable[[str], list[str]]:
    """A table of `PrepareConfig.tables` as a function. Raises ConfigError for one that cannot be read."""
    if not isinstance(settings, list) or any(not isinstance(row, list) or len(row) != 2 for row in settings):
        raise ConfigError(f"table {name!r} is no list of pairs [regular expression, what it becomes]")
    rows = []
    for pattern, result in settings:
        try:
            rows.append((re.compile(str(pattern)), result))
        except re.error as error:
            raise ConfigError(f"table {name!r}: {pattern!r} is no regular expression: {error}") from error

    def look_up(text: str) -> list[str]:
        for pattern, result in rows:
            if found := pattern.fullmatch(text):
                return [] if result is None else [found.expand(str(result))]
        return [text]

    return look_up


def read_mapping(name: str, settings: MappingConfig) -> dict[str, list[str]]:
    """Cleaned source to targets in order of name. Raises FormatError for a file that is missing or another table."""
    if settings.path is None:
        return {}
    path, wanted = Path(settings.path), [settings.source, settings.target]
    if not path.is_file():
        raise FormatError(f"mapping {name!r}: {path} is missing; give a CSV or Parquet file with columns {wanted}")
    try:
        rows = read_frame(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError) as error:
        raise FormatError(f"mapping {name!r}: {path} cannot be read: {str(error).splitlines()[0]}") from error
    lacking = [column for column in wanted if column not in rows.columns]
    if lacking:
        raise FormatError(f"mapping {name!r}: {path} has no column {lacking[0]!r}; it has {', '.join(rows.columns)}")
    targets: dict[str, set[str]] = {}
    for source, target in rows.select(pl.col(wanted).cast(pl.String)).drop_nulls().iter_rows():
        targets.setdefault(clean(source), set()).add(target.strip())
    return {source: _choose(sorted(found), settings.several) for source, found in sorted(targets.items())}


def _choose(targets: list[str], several: str) -> list[str]:
    """The targets that count, as `MappingConfig.several` says."""
    if several == "all" or len(targets) == 1:
        return targets
    return [targets[0][:3] if several == "category" else targets[0]]
