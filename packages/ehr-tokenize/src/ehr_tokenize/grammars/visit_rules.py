"""Rules of visit grammars: which rows make a visit, and at which level of its hierarchy a code is told.

Shapes: N rows (timed events of a shard, in order of subject and time), I instants (rows of one subject and time).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ehr_core.constants import DAY_US, HOUR_US
from ehr_core.errors import ConfigError

from ehr_tokenize.grammars.visits_settings import VisitsConfig

GROUPINGS = ("encounter", "hybrid", "same_day", "time_window")
ICD_LEVELS = ("full", "3-digit")
ATC_LEVELS = (1, 3, 4, 5, 7)
UNKNOWN = 1
"""Id of an unknown sex or region, and of the entity ``other``."""
NUM_ENTITIES = 16
ICD10 = {"ICD10", "ICD10CM"}
ICD9 = {"ICD9", "ICD9CM"}


def check(settings: VisitsConfig) -> None:
    """Raise ConfigError for settings that make no grammar."""
    choices: dict[str, tuple[Any, ...]] = {
        "grouping": GROUPINGS,
        "icd_level": ICD_LEVELS,
        "atc_level": ATC_LEVELS,
        "static": ("columns", "prefix", "none"),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ConfigError(
                f"tokenizer.{name} is {getattr(settings, name)}; allowed: {', '.join(str(value) for value in allowed)}"
            )
    for name, least in (("max_sexes", 2), ("max_regions", 2)):
        if getattr(settings, name) < least:
            raise ConfigError(f"tokenizer.{name} is {getattr(settings, name)}; it must be at least {least}")
    if not settings.gap_hours > 0:
        raise ConfigError(f"tokenizer.gap_hours is {settings.gap_hours}; it must be above 0")
    types = {*settings.entities.values(), "other"}
    wrong = sorted(set(settings.only_entities) - types)
    if wrong:
        raise ConfigError(f"tokenizer.only_entities names {wrong[0]!r}; allowed: {', '.join(sorted(types))}")
    if len(types) + UNKNOWN > NUM_ENTITIES:
        raise ConfigError(f"tokenizer.entities has {len(types) - 1} types; at most {NUM_ENTITIES - UNKNOWN - 1}")


def group(
    subject_N: np.ndarray, time_N: np.ndarray, admit_N: np.ndarray, leave_N: np.ndarray, settings: VisitsConfig
) -> np.ndarray:
    """(N,) number of the visit in the shard, ascending; -1 outside all visits.

    The rows of one instant are in one visit. Whether two instants share a visit is decided by rows up to the later one.
    """
    if not len(time_N):
        return np.zeros(0, np.int64)
    new_N = np.ones(len(time_N), bool)
    new_N[1:] = (subject_N[1:] != subject_N[:-1]) | (time_N[1:] != time_N[:-1])
    first_I = np.flatnonzero(new_N)
    subject_I, time_I = subject_N[first_I], time_N[first_I]
    start_I = np.ones(len(first_I), bool)
    other_I = subject_I[1:] != subject_I[:-1]
    inside_I = np.ones(len(first_I), bool)
    day_I = time_I // DAY_US
    if settings.grouping == "same_day":
        start_I[1:] = other_I | (day_I[1:] != day_I[:-1])
    elif settings.grouping == "time_window":
        start_I[1:] = other_I | (np.diff(time_I) > settings.gap_hours * HOUR_US)
    else:
        start_I, inside_I = _stays(subject_I, admit_N, leave_N, first_I)
        if settings.grouping == "hybrid":
            outside_I = ~inside_I
            begins_I = outside_I.copy()
            begins_I[1:] &= other_I | inside_I[:-1] | (day_I[1:] != day_I[:-1])
            start_I, inside_I = start_I | begins_I, np.ones(len(first_I), bool)
    group_I = np.where(inside_I, np.cumsum(start_I) - 1, -1)
    return group_I[np.cumsum(new_N) - 1]


def _stays(
    subject_I: np.ndarray, admit_N: np.ndarray, leave_N: np.ndarray, first_I: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(I,) where a stay starts, and which instants are inside one.

    Each instant with an admission starts a stay. After an instant with both, the later row says whether it goes on.
    """
    row_N = np.arange(len(admit_N))
    last_admit_I = np.maximum.reduceat(np.where(admit_N, row_N, -1), first_I)
    last_leave_I = np.maximum.reduceat(np.where(leave_N, row_N, -1), first_I)
    border_I = (last_admit_I >= 0) | (last_leave_I >= 0)
    index_I = np.arange(len(first_I))
    # The last border before each instant, if it is of the same subject, tells whether a stay is open.
    before_I = np.concatenate([[-1], np.maximum.accumulate(np.where(border_I, index_I, -1))[:-1]])
    open_I = (before_I >= 0) & (subject_I[before_I] == subject_I) & (last_admit_I > last_leave_I)[before_I]
    start_I = last_admit_I >= 0
    return start_I, start_I | open_I


def shorten(code: str, settings: VisitsConfig) -> str:
    """A code at the level that the settings ask for: ``DIAGNOSIS//ICD10CM//E11.65`` to ``DIAGNOSIS//ICD10CM//E11``.

    ICD diagnoses and ATC codes stand behind the name of their system. What is behind them, such as ``//PRIMARY``, and
    all other codes stay as they are.
    """
    parts = code.split("//")
    marks = [re.sub(r"[^A-Z0-9]", "", part.upper()) for part in parts]
    system, at = _find_code(marks)
    if at >= len(parts):
        return code
    if system == "ATC":
        parts[at] = parts[at][: settings.atc_level]
    elif system and settings.icd_level != "full" and "PROCEDURE" not in marks[:at]:
        plain = parts[at].replace(".", "")
        parts[at] = plain[: 4 if system == "9" and plain[:1] in ("E", "e") else 3]
    return "//".join(parts)


def _find_code(marks: list[str]) -> tuple[str, int]:
    """``ATC``, ``10`` or ``9``, and the place of the code behind the system's name, as in ``["ICD10CM", code]`` or
    ``["ICD", "10", code]``; nothing for any other system."""
    for index, mark in enumerate(marks):
        if mark == "ATC" or mark in ICD10 or mark in ICD9:
            return "ATC" if mark == "ATC" else "10" if mark in ICD10 else "9", index + 1
        if mark == "ICD" and marks[index + 1 : index + 2] in (["10"], ["9"]):
            return marks[index + 1], index + 2
    return "", 0


def first_of_visit(group_N: np.ndarray, name_N: np.ndarray, keep_N: np.ndarray) -> np.ndarray:
    """(N,) whether a row is the first of its visit with its name; always outside of visits."""
    at = np.flatnonzero(keep_N & (group_N >= 0))
    key = group_N[at] * (int(name_N.max(initial=0)) + 1) + name_N[at]
    _, first = np.unique(key, return_index=True)
    found_N = group_N < 0
    found_N[at[first]] = True
    return found_N
