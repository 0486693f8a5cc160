"""Settings of `ehr_tokenize.prepare`. Import-light, so that every tokenizer's settings may hold them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class MappingConfig:
    """A file that maps values, for example ICD-9 to ICD-10 or drug names to ATC codes. None is shipped."""

    path: Path | None = None
    """CSV or Parquet file. None: there is no mapping, so a rule that needs it does not apply."""
    source: str = "from"
    """Column with the value to look up; case, blanks and punctuation do not matter."""
    target: str = "to"
    """Column with what it becomes; several rows of one source are several targets."""
    several: str = "all"
    """Several targets: ``all``; ``first`` in order of name; ``category``, three characters of the first."""


@dataclass
class RuleConfig:
    """What becomes of some events. The first rule that applies to an event decides; without one it stays as it is."""

    codes: list[str] = field(default_factory=list)
    """The rule is for codes that start with one of these."""
    pattern: str | None = None
    """Regular expression for the whole code; its named groups are fields of ``to``."""
    where: dict[str, str] = field(default_factory=dict)
    """Column to regular expression for the whole of its text; a null does not match. Named groups are fields."""
    within: dict[str, Any] = field(default_factory=dict)
    """Field, as in ``to``, to [low, high], both allowed: the rule is for events whose field is such a number."""
    numeric: bool | None = None
    """true: only events with a number; false: only those without; null: both."""
    to: list[str] = field(default_factory=list)
    """The events it becomes, ``CODE`` or ``CODE = NUMBER``; none: it is dropped.

    ``{...}`` is replaced: ``{code}``, ``{0}``, ``{1}`` (the code's components between ``//``), a named group, a column,
    and after ``=`` also ``{value}``, the event's number. ``{1|clean|race}`` passes it on to code systems, tables and
    mappings, ``{1?NONE}`` says what stands where nothing is left. An entry with a field of nothing is left out, one
    with a field of several values occurs once for each. A rule all of whose entries are left out does not apply.
    """
    normalize: bool = False
    """Whether new codes are in upper case, without ``,`` and ``.``, and with ``_`` for blanks."""


@dataclass
class CompleteConfig:
    """An event that stands for a missing one: where instants have ``at`` but not ``without``, ``add`` is put last."""

    at: str = ""
    """Start of codes."""
    without: str = ""
    """Start of codes."""
    add: str = ""
    """The code to add."""


@dataclass
class PrepareConfig:
    """Changes to events before they become tokens: the same for every grammar. By default there is none."""

    columns: list[str] = field(default_factory=list)
    """Columns of the dataset that rules may use beside code and number, such as text_value. A missing one is null."""
    end_of_day: list[str] = field(default_factory=list)
    """Events with codes that start with one of these and a time of midnight sharp are known by date only. They move to
    23:59:59, so that they do not come before what happened on that day."""
    delay_hours: dict[str, float] = field(default_factory=dict)
    """Start of codes to hours after their time at which such events are known, for example a score of the first day."""
    order: list[str] = field(default_factory=list)
    """Starts of codes in the order that events of one instant get; ``*`` is the place of all others, else the end."""
    complete: list[CompleteConfig] = field(default_factory=list)
    """Events to add where others are missing."""
    drop: list[str] = field(default_factory=list)
    """Events with codes that start with one of these are left out."""
    tables: dict[str, Any] = field(default_factory=dict)
    """Tables for rules: name to a list of pairs [regular expression for the whole value, what it becomes], ``\\1``
    being a group and null nothing. The first that matches counts; a value that none matches stays as it is."""
    mappings: dict[str, MappingConfig] = field(default_factory=dict)
    """Mapping files for rules, by name."""
    rules: list[RuleConfig] = field(default_factory=list)
    """Rules, tried in order."""
