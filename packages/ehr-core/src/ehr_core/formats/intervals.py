"""How long the tokens for time are: a field of the token store, and of a run, which keeps its store's tokenizer.

    intervals.json    {token: {"mean_seconds": 5012.3, "lower_days": 0.04, "upper_days": 0.08}}

``upper_days`` is null for a token without a longest gap. A tokenizer without such tokens writes no file.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json, write_json
from ehr_core.formats.tokens import TOKENIZER

FILE = "intervals.json"


@dataclasses.dataclass(frozen=True)
class Interval:
    """What one token stands for."""

    mean_seconds: float
    """Mean in train."""
    lower_days: float
    upper_days: float | None
    """Not included; None: no longest."""


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Token to what it stands for; empty where no token stands for time."""

    tokens: Mapping[str, Interval] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tokens)

    @property
    def mean_seconds(self) -> dict[str, float]:
        """Token to the mean of its lengths in train."""
        return {name: one.mean_seconds for name, one in self.tokens.items()}

    @property
    def days(self) -> dict[str, tuple[float, float | None]]:
        """Token to its shortest and longest gap in days; None: no longest."""
        return {name: (one.lower_days, one.upper_days) for name, one in self.tokens.items()}

    @classmethod
    def join(cls, seconds: Mapping[str, float], days: Mapping[str, Any]) -> "Intervals":
        """From means and from (lower, upper) of the same tokens. Raises KeyError when they name different ones."""
        if seconds.keys() != days.keys():
            raise KeyError(min(seconds.keys() ^ days.keys()))
        return cls({name: Interval(float(seconds[name]), *_span(*days[name])) for name in seconds})

    def save(self, folder: Path) -> None:
        """Write ``intervals.json``."""
        write_json(folder / FILE, {name: dataclasses.asdict(one) for name, one in self.tokens.items()})

    @classmethod
    def load(cls, folder: Path) -> "Intervals":
        """What a token store or the folder ``tokenizer`` of a run says; empty where it says nothing.

        A folder of before there was such a file has the same in the ``state`` of its tokenizer.json, which is read
        then. Raises FormatError for a file that is damaged.
        """
        path = folder / FILE if (folder / FILE).is_file() else folder / TOKENIZER
        if not path.is_file():
            return cls()
        found = read_json(path)
        try:
            if path.name == TOKENIZER:
                state = found.get("state", {})
                return cls.join(state.get("interval_estimates", {}), state.get("interval_days", {}))
            intervals = cls({name: Interval(**one) for name, one in found.items()})
            numbers = [x for one in intervals.tokens.values() for x in dataclasses.astuple(one) if x is not None]
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError("a number is not finite")
            return intervals
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} does not say how long tokens for time are: {error!r}; make it anew") from error


def _span(lower: float, upper: float | None) -> tuple[float, float | None]:
    return float(lower), None if upper is None else float(upper)


load_intervals = Intervals.load
