"""Artificial time tokens: names for a number of days, as in CEHR-BERT (Pang et al. 2021) and CEHR-GPT.

Each function is a table: the names in order, and for the first and last day that has each name. Days beyond the last
one are ``LT``, days below zero ``W-1`` (visits that overlap).
"""

from __future__ import annotations

import numpy as np
from ehr_core.constants import DAY_US
from ehr_core.errors import ConfigError

LONG, NEGATIVE = "LT", "W-1"


def _cehr_bert(day: int) -> str:
    return f"W{day // 7}" if day < 28 else f"M{day // 30}"


def _mix(day: int) -> str:
    if day <= 7:
        return f"D{day}"
    return f"W{-(-day // 7)}" if day <= 30 else f"M{-(-day // 30)}"


def _mix_long(day: int) -> str:
    if day <= 360:
        return _mix(day)
    return f"Q{-(-day // 90)}" if day <= 720 else f"Y{-(-day // 360)}"


FUNCTIONS = {
    "cehr_bert": (_cehr_bert, 360),
    "day": (lambda day: f"D{day}", 1080),
    "week": (lambda day: f"W{day // 7}", 1080),
    "month": (lambda day: f"M{day // 30}", 1080),
    "mix": (_mix, 361),
    "mix_long": (_mix_long, 1441),
}
"""Name to the name of a day, and the first day that is ``LT``."""
UNITS = {"D": 1, "W": 7, "M": 30, "Q": 90, "Y": 360}
LONG_DAYS = 3 * 365
"""What ``LT`` counts as where a number is needed."""


class DayTokens:
    """The tokens of one function. Raises ConfigError for a function that there is not."""

    def __init__(self, function: str, setting: str, prefix: str = ""):
        if function not in FUNCTIONS:
            raise ConfigError(f"tokenizer.{setting} is {function!r}; allowed: {', '.join(FUNCTIONS)}")
        name, limit = FUNCTIONS[function]
        days = [NEGATIVE, *(name(day) for day in range(limit)), LONG]
        self.names = tuple(f"{prefix}{text}" for text in dict.fromkeys(days))
        place = {text: index for index, text in enumerate(self.names)}
        self._index = np.array([place[f"{prefix}{text}"] for text in days])
        self.limit = limit

    def find(self, day_N: np.ndarray) -> np.ndarray:
        """(N,) index of the name of each number of days."""
        return self._index[np.clip(day_N, -1, self.limit) + 1]

    def days(self) -> dict[str, list[float | None]]:
        """Per token the fewest and (not included) the most days that it stands for; None: no most."""
        edge = (np.flatnonzero(np.diff(self._index, prepend=-1)) - 1).clip(0).tolist()
        ends = [*map(float, edge[1:]), None]
        return {name: [float(low), high] for name, low, high in zip(self.names, edge, ends, strict=True)}

    def parts(self) -> dict[str, list[int]]:
        """Per token its years (of 365 days), months (of 30) and days, for a head that predicts time in parts."""
        days = {}
        for name in self.names:
            text = name.removeprefix("i-")
            if text != NEGATIVE:
                days[name] = LONG_DAYS if text == LONG else UNITS[text[0]] * int(text[1:])
        return {name: [day // 365, day % 365 // 30, day % 365 % 30] for name, day in days.items()}


def day_of(time_N: np.ndarray) -> np.ndarray:
    """(N,) days since 1970, also before it."""
    day: np.ndarray = time_N // DAY_US
    return day
