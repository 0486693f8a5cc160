"""From the numbers of train to bins: quantiles, multiples of the standard deviation, reference ranges.

A number is in bin k when it reaches k of the breaks (numpy.digitize). Breaks that are equal stay: bin 7 of ten means
the eighth tenth for every token, though some bins cannot occur then.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.formats.parquet import read_frame
from ehr_tokenize.fit.quantiles import Counts

LABELS = {name: tuple(f"Q{k}" for k in range(size)) for name, size in
          (("deciles", 10), ("ventiles", 20), ("centiles", 100))}  # fmt: skip
LABELS["sigmas"] = ("Q3-", "Q2-", "Q1-", "Q0-", "Q0+", "Q1+", "Q2+", "Q3+")
"""Quantizer to the names of its bins."""
HUGE = float(np.finfo(np.float64).max)


def quantiles(value: np.ndarray, size: int) -> np.ndarray:
    """The 1/size, 2/size, ... quantiles of sorted numbers, interpolated linearly, in whole steps so that a break that
    is a number is exactly that number."""
    step = np.arange(1, size) * (len(value) - 1)
    low = step // size
    high = np.minimum(low + 1, len(value) - 1)
    below, above = value[low].astype(np.float64), value[high].astype(np.float64)
    found: np.ndarray = below + (above - below) * (step % size / size)
    return found


def sigmas(value: np.ndarray) -> np.ndarray:
    """Mean and multiples -3 to 3 of the standard deviation around it."""
    value = value.astype(np.float64)
    mean, deviation = value.mean(), value.std()
    if value[0] == value[-1]:  # all the same: neither above nor below
        mean = value[0]
        return np.array([mean] * 4 + [np.nextafter(mean, np.inf)] * 3)
    return np.asarray(mean + deviation * np.arange(-3, 4))


def around(value: np.ndarray, lower: float | None, upper: float | None) -> np.ndarray:
    """19 breaks: 5 bins below ``lower``, 10 within (both ends included), 5 above ``upper``.

    A limit that is missing leaves its bins empty. Where train has nothing below (above), what is there is in the
    outermost bin.
    """
    low = -HUGE if lower is None else lower
    over = HUGE if upper is None else float(np.nextafter(upper, np.inf))
    number = value.astype(np.float64)
    below, above = number[number < low], number[number >= over]
    within = number[(number >= low) & (number < over)]
    parts: list[np.ndarray] = [
        quantiles(below, 5) if len(below) else np.full(4, low),
        np.array([low]),
        quantiles(within, 10) if len(within) else np.full(9, low),
        np.array([over]),
        quantiles(above, 5) if len(above) else np.full(4, over),
    ]
    return np.concatenate(parts)


def fit_breaks(
    counts: Counts, quantizer: str, discrete: bool, ranges: Mapping[str, tuple[float | None, float | None]]
) -> dict[str, list[float]]:
    """Per name with numbers: its breaks. ``ranges`` take precedence over discrete values and quantiles."""
    size = len(LABELS[quantizer])
    found = {}
    for index, name in enumerate(counts.names_C):
        value = counts.value[counts.offset_C[index] : counts.offset_C[index + 1]]
        if not len(value):
            continue
        if name in ranges:
            breaks = around(value, *ranges[name])
        elif discrete and len(distinct := np.unique(value)) <= size:
            breaks = distinct[1:].astype(np.float64)
        else:
            breaks = sigmas(value) if quantizer == "sigmas" else quantiles(value, size)
        found[name] = breaks.tolist()
    return found


def reachable(breaks: list[float]) -> list[int]:
    """Bins that some number can be in: all but those between equal breaks."""
    return [k for k in range(len(breaks) + 1) if k in (0, len(breaks)) or breaks[k - 1] < breaks[k]]


def read_ranges(path: Path) -> dict[str, tuple[float | None, float | None]]:
    """Reference ranges by token. Raises ConfigError that names the file and the first row that is wrong."""
    try:
        table = read_frame(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except FileNotFoundError:
        raise ConfigError(f"tokenizer.reference_ranges: {path} is missing") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ConfigError(f"tokenizer.reference_ranges: {path} cannot be read: {str(error).splitlines()[0]}") from error
    if missing := [name for name in ("token", "lower", "upper") if name not in table.columns]:
        raise ConfigError(
            f"tokenizer.reference_ranges: {path} has no column {missing[0]}; it needs token, lower, upper"
        )
    found: dict[str, tuple[float | None, float | None]] = {}
    for number, row in enumerate(table.select("token", "lower", "upper").iter_rows(), start=1):
        token = row[0]
        try:
            lower, upper = (None if text in (None, "") else float(text) for text in row[1:])
        except ValueError:
            raise ConfigError(f"tokenizer.reference_ranges: {path}, row {number}: a limit is no number") from None
        if not all(limit is None or np.isfinite(limit) for limit in (lower, upper)):
            raise ConfigError(f"tokenizer.reference_ranges: {path}, row {number}: a limit is not finite")
        if lower is not None and upper is not None and lower > upper:
            raise ConfigError(f"tokenizer.reference_ranges: {path}, row {number}: lower is above upper")
        if token in found:
            raise ConfigError(f"tokenizer.reference_ranges: {path}, row {number}: {token!r} has a range above")
        found[token] = (lower, upper)
    return found


def check_ranges(ranges: Mapping[str, object], names: list[str]) -> None:
    """Raise ConfigError when no range is for a token that there is: most likely all names are misspelt."""
    if ranges and not set(ranges) & set(names):
        one = sorted(ranges)[0]
        near = difflib.get_close_matches(one, names, n=1, cutoff=0.0)
        hint = f"; the nearest to {one!r} is {near[0]!r}" if near else ""
        raise ConfigError(f"tokenizer.reference_ranges: none of its tokens has a number in train{hint}")
