"""How a number shows among the tokens: one quantile token for all codes, one per group, fused with the code, or alone.

``shared``: ``LAB//K``, ``Q3``. ``group``: ``LAB//K``, ``LAB//Q3``, by the prefix that chose the style. ``fused``: one
token ``LAB//K//Q3``. ``alone``: ``Q3`` only, for the further numbers of an event whose code stands before them, such
as both pressures behind VITAL//BLOOD_PRESSURE.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ehr_core.errors import ConfigError
from ehr_core.formats.vocabulary import Token, Vocabulary

STYLES = ("shared", "group", "fused", "alone")


def equal_width(low: float, high: float, size: int) -> list[float]:
    """Breaks of so many bins of one width between two numbers."""
    return np.linspace(low, high, size + 1)[1:-1].tolist()


class Numbers:
    """Styles by start of code, the longest that fits deciding. Raises ConfigError for a style that there is not."""

    def __init__(self, styles: Mapping[str, str], size: int):
        for prefix, style in styles.items():
            if style not in STYLES:
                raise ConfigError(f"tokenizer.numbers.{prefix} is {style!r}; allowed: {', '.join(STYLES)}")
        self._styles = dict(sorted(styles.items(), key=lambda entry: -len(entry[0])))
        self.size = size

    def __bool__(self) -> bool:
        """Whether any code has another style than ``shared``."""
        return bool(self._styles)

    def style(self, code: str) -> str:
        """The style of a code."""
        return next((style for prefix, style in self._styles.items() if code.startswith(prefix)), "shared")

    def stem(self, code: str) -> str:
        """What stands before ``Q1``, ``Q2``, ... in the tokens for numbers of a code."""
        for prefix, style in self._styles.items():
            if code.startswith(prefix):
                head = {"group": prefix.removesuffix("//"), "fused": code}.get(style)
                return f"{head}//" if head else ""
        return ""

    def tokens(self, bins: Mapping[str, np.ndarray]) -> list[Token]:
        """Quantile tokens with their counts: the shared ones, then those of groups. ``bins``: counts per code."""
        stems = sorted({"", *(self.stem(code) for code in bins if self.style(code) == "group")})
        total = {stem: np.zeros(self.size, np.int64) for stem in stems}
        for code, counts in bins.items():
            if self.style(code) != "fused":
                total[self.stem(code)] += counts
        return [
            Token(f"{stem}Q{k + 1}", "quantile", (), int(total[stem][k])) for stem in stems for k in range(self.size)
        ]

    def fused(self, bins: Mapping[str, np.ndarray], breaks: Mapping[str, list[float]]) -> dict[str, list[Token]]:
        """Per code of style ``fused`` the tokens that are code and quantile in one: as many as its breaks make."""
        return {
            code: [
                Token(f"{code}//Q{k + 1}", "code", (code,), int(bins[code][k])) for k in range(len(breaks[code]) + 1)
            ]
            for code in breaks
            if self.style(code) == "fused"
        }

    def first(self, code: str, vocabulary: Vocabulary) -> int:
        """The id of the first quantile token of a code, the others following it; 0 for a code without any."""
        return vocabulary.ids.get(f"{self.stem(code)}Q1", 0)
