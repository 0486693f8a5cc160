"""How long the tokens for time are: a field of the token store, and of a run, which keeps its store's tokenizer.

    intervals.json    {token: {"mean_seconds": 5012.3, "lower_days": 0.04, "upper_days": 0.08}}

``upper_days`` is null for a token without a longest gap. A tokenizer without such tokens writes no file.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json, typed, write_json
from ehr_core.formats.tokens import TOKENIZER, TokenizerFile

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
        return cls({name: Interval(float(seconds[name]), *days[name]) for name in seconds})

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
        if path.name != TOKENIZER:
            return cls(read_json(path, dict[str, Interval]))
        state = typed(read_json(path, TokenizerFile).state, _State, path, "$.state")
        try:
            return cls.join(state.interval_estimates, state.interval_days)
        except KeyError as error:
            raise FormatError(f"{path} does not say how long the token {error} is; make it anew") from None


class _State(msgspec.Struct):
    """What a tokenizer's state once said, beside other things."""

    interval_estimates: dict[str, float] = {}
    interval_days: dict[str, tuple[float, float | None]] = {}


load_intervals = Intervals.load
