"""Count-and-value features of the visible history, shared by all baselines.

For each code the number of events, and the last, smallest, largest and mean number; plus age. Visible is what has no
time (static) or a time at or before the prediction time. Codes are chosen on the train split. One pass over each
shard; memory is bounded by ``ROWS`` joined events at a time and by the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from ehr_core.errors import DataError
from ehr_core.formats.tables import read_labels
from ehr_core.progress import track

from ehr_eval.dataset import NEEDED, read_events, shards
from ehr_eval.plugin import FeaturesConfig

BIRTH = "MEDS_BIRTH"
ROWS = 10_000_000
"""Events joined with samples at once."""
YEAR_SECONDS = 365.25 * 86_400
KEYS = ["row", "code"]
VALUES = ("last", "min", "max", "mean")


@dataclass(frozen=True)
class History:
    """The visible history of a split's samples: one row a sample and code, and age in years a sample."""

    table: pl.DataFrame
    """``row`` uint32, ``code``, ``count``, ``timed`` (events with a time), and the VALUES (null: no number)."""
    age_N: np.ndarray
    """float32; NaN when birth is unknown or after the prediction time."""


@dataclass(frozen=True)
class FeatureSet:
    """Which columns there are, fixed on the train split."""

    counted: tuple[str, ...]
    """Codes with a count."""
    measured: tuple[str, ...]
    """Codes with all four values."""
    constant: tuple[str, ...]
    """Codes that are static and have a number: one value says it all."""

    @property
    def names(self) -> list[str]:
        """Names of the columns in order."""
        values = [f"{code}|{value}" for code in self.measured for value in VALUES]
        return ["age", *(f"{c}|count" for c in self.counted), *values, *(f"{c}|last" for c in self.constant)]


def read_history(meds: Path, split: str, samples: pl.DataFrame) -> History:
    """History of the samples (``subject_id``, ``prediction_time``) of one split, in their order.

    Raises DataError when subjects of the labels are not in the split's data: labels and dataset do not belong
    together, or split subjects differently.
    """
    rows = samples.select("subject_id", "prediction_time").with_row_index("row")
    tables: list[pl.DataFrame] = []
    ages: list[pl.DataFrame] = []
    known = 0
    paths = shards(meds, split)
    for path in track(paths, f"features {split}", len(paths), "shards"):
        events = read_events(path)
        there = rows.join(events.select("subject_id").unique(), on="subject_id", how="semi")
        known += len(there)
        if len(there):
            tables.extend(_summarize(events, part) for part in _bounded(events, there))
            ages.append(_age(events, there))
    if known != len(rows):
        raise DataError(
            f"{len(rows) - known} of {len(rows)} samples of the split {split!r} have subjects that occur not once, "
            f"or more than once, in the shards of {meds / 'data' / split}; labels and dataset do not belong together"
        )
    age_N = np.full(len(rows), np.nan, np.float32)
    for part in ages:
        age_N[part["row"].to_numpy()] = part["age"].to_numpy()
    return History(pl.concat(tables) if tables else _summarize(_no_events(), rows), age_N)


def _no_events() -> pl.DataFrame:
    return pl.DataFrame(schema={**NEEDED, "numeric_value": pl.Float32})


def _bounded(events: pl.DataFrame, samples: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The samples in groups whose join with their subjects' events has about ROWS rows at most."""
    sizes = events.group_by("subject_id").len()
    ordered = samples.join(sizes, on="subject_id", how="left").sort("row")
    group = (pl.col("len").cast(pl.Int64).cum_sum() // ROWS).alias("group")
    yield from ordered.with_columns(group).drop("len").partition_by("group", include_key=False)


def _summarize(events: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """Visible events of each sample by code: see `History.table`."""
    visible = (
        samples.lazy()
        .join(events.lazy().filter(pl.col("code") != BIRTH), on="subject_id")
        .filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))
        .select("row", "code", "time", pl.col("numeric_value").alias("value"))
    )
    counts = visible.group_by(KEYS).agg(pl.len().alias("count"), pl.col("time").count().alias("timed"))
    number = pl.col("value").cast(pl.Float64)
    values = (
        # The sort is stable: of two numbers at one instant the later row is the last.
        visible.filter(pl.col("value").is_finite())
        .sort("time", nulls_last=False, maintain_order=True)
        .group_by(KEYS)
        .agg(
            number.last().alias("last"),
            number.min().alias("min"),
            number.max().alias("max"),
            number.mean().alias("mean"),
        )
    )
    return counts.join(values, on=KEYS, how="left").sort(KEYS).collect()


def _age(events: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    born = events.filter(pl.col("code") == BIRTH).group_by("subject_id").agg(pl.col("time").min().alias("birth"))
    seconds = (pl.col("prediction_time") - pl.col("birth")).dt.total_seconds()
    years = pl.when(seconds >= 0).then(seconds / YEAR_SECONDS).cast(pl.Float32).fill_null(float("nan"))
    return samples.join(born, on="subject_id", how="left").select("row", years.alias("age"))


def choose(train: History, settings: FeaturesConfig) -> FeatureSet:
    """Columns from the train split: codes visible in at least ``min_count`` samples, the most frequent ones."""
    codes = (
        train.table.group_by("code")
        .agg(pl.len().alias("samples"), pl.col("last").count().alias("numbers"), pl.col("timed").sum())
        .filter(pl.col("samples") >= settings.min_count)
        .sort(["samples", "code"], descending=[True, False])
        .head(settings.max_codes)
        .sort("code")
    )
    numeric = codes.filter(pl.col("numbers") >= settings.min_count)
    measured = numeric.filter(pl.col("timed") > 0)["code"].to_list()
    constant = numeric.filter(pl.col("timed") == 0)["code"].to_list()
    return FeatureSet(tuple(codes["code"].to_list()), tuple(measured), tuple(constant))


def matrix(history: History, features: FeatureSet) -> np.ndarray:
    """Features (N, F) float32: counts are 0 and values NaN where the code is not visible."""
    names = features.names
    result = np.full((len(history.age_N), len(names)), np.nan, np.float32)
    result[:, 0] = history.age_N
    result[:, 1 : 1 + len(features.counted)] = 0.0
    start = 1
    for value, codes, stride, offset in _columns(features):
        place = pl.DataFrame(
            {"code": list(codes), "place": range(len(codes))}, schema={"code": pl.String, "place": pl.Int64}
        )
        found = history.table.select("row", "code", value).drop_nulls(value).join(place, on="code")
        column = start + offset + stride * found["place"].to_numpy()
        result[found["row"].to_numpy(), column] = found[value].to_numpy()
    return result


def _columns(features: FeatureSet) -> Iterator[tuple[str, Sequence[str], int, int]]:
    """(value, codes, step between codes, place of the first) for every block of columns after age."""
    yield "count", features.counted, 1, 0
    start = len(features.counted)
    for index, value in enumerate(VALUES):
        yield value, features.measured, len(VALUES), start + index
    yield "last", features.constant, 1, start + len(VALUES) * len(features.measured)


def samples_of(labels: Path, split: str) -> pl.DataFrame:
    """Labels of a split as a Polars frame, in the order in which everything about them is kept."""
    frame = pl.from_arrow(read_labels(labels, split))
    assert isinstance(frame, pl.DataFrame)
    return frame
