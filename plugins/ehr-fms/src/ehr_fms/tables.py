"""The tables of a configuration: which rows become which tokens. Settings are checked here, once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from ehr_core.config import nearest
from ehr_core.errors import ConfigError

from ehr_fms.expressions import NUMBER, TEXT, TRUTH, parse

TABLES = ("prefix", "events", "suffix")
KEYS = {"prefix": str, "code": str, "numeric": bool, "filter": str, "value": str, "when": str}
COLUMNS = {"code": TEXT, "numeric_value": NUMBER, "hours": NUMBER, "age": NUMBER}
"""What expressions know, beside the further columns of the settings."""


@dataclass(frozen=True)
class Entry:
    """One entry of a table."""

    prefix: str
    pattern: re.Pattern[str] | None
    """None: the entry is for the hospitalization, not for rows."""
    numeric: bool
    filter: pl.Expr | None
    value: pl.Expr | None
    at_admission: bool

    def text(self, code: str) -> str | None:
        """The token, without bin, of a MEDS code; None when the entry is not for it."""
        found = self.pattern.match(code) if self.pattern else None
        if found is None:
            return None
        groups = [group for group in found.groups() if group]
        rest = "_".join(groups) if found.re.groups else code[found.end() :].removeprefix("//")
        return "_".join(part for part in (self.prefix, rest) if part) or code


def read_tables(path: Path) -> dict[str, list[Any]]:
    """The tables of a YAML file. Raises ConfigError that names the file."""
    if path.is_dir():
        raise ConfigError(f"tokenizer.tables: {path} is a folder; give a YAML file")
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"tokenizer.tables: {path} is missing") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokenizer.tables: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in found):
        raise ConfigError(f"tokenizer.tables: {path} must map {', '.join(TABLES)} to lists")
    for name in found:
        if name not in TABLES:
            raise ConfigError(f"tokenizer.tables: {path} has {name!r}.{nearest(str(name), TABLES)}")
    return {name: found.get(name, []) for name in TABLES}


def known_columns(further: Mapping[str, str]) -> dict[str, str]:
    """Columns of expressions with their kinds. Raises ConfigError for a kind that there is not."""
    for name, kind in further.items():
        if kind not in (TEXT, NUMBER):
            raise ConfigError(f"tokenizer.columns.{name} is {kind!r}; allowed: number, text")
        if name in COLUMNS:
            raise ConfigError(f"tokenizer.columns.{name}: expressions know {name!r} already")
    return COLUMNS | dict(further)


def entries(table: str, found: list[Any], columns: Mapping[str, str]) -> list[Entry]:
    """The entries of a table. Raises ConfigError that names the entry and its key."""
    return [_entry(table, f"tokenizer.{table}[{index}]", entry, columns) for index, entry in enumerate(found)]


def _entry(table: str, where: str, found: Any, columns: Mapping[str, str]) -> Entry:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where} is {found!r}; expected keys {', '.join(KEYS)}")
    for key, value in found.items():
        if key not in KEYS:
            raise ConfigError(f"{where} has no key {key!r}.{nearest(str(key), KEYS)}")
        if not isinstance(value, KEYS[key]):
            raise ConfigError(f"{where}.{key} is {value!r}; expected {KEYS[key].__name__}")
    when = found.get("when", "known")
    if when not in ("known", "admission") or ("when" in found and table != "prefix"):
        raise ConfigError(f"{where}.when is {when!r}; allowed: known, admission, and in prefix only")
    if "code" not in found and not (table == "prefix" and "value" in found):
        raise ConfigError(f"{where} has no code; only an entry of prefix with a value may do without")
    if table == "prefix" and not found.get("prefix"):
        raise ConfigError(f"{where} has no prefix, so nothing could stand for a missing value")
    numeric = found.get("numeric", "value" in found)
    if "value" in found and not numeric:
        raise ConfigError(f"{where} has a value, but numeric is false")
    try:
        pattern = re.compile(found["code"]) if "code" in found else None
    except re.error as error:
        raise ConfigError(f"{where}.code: {found['code']!r} is no regular expression: {error}") from error
    if pattern is None:  # of a hospitalization only the age is known
        columns = {"age": columns["age"]}
    chosen = {
        key: parse(found[key], columns, wanted, f"{where}.{key}") if key in found else None
        for key, wanted in (("filter", TRUTH), ("value", NUMBER))
    }
    return Entry(found.get("prefix", ""), pattern, numeric, chosen["filter"], chosen["value"], when == "admission")
