"""Count-and-value features of the visible history, shared by all baselines.

For each code the number of events, and the last, smallest, largest and mean number; plus age. Visible is what has no
time (static) or a time at or before the prediction time. Codes are chosen on the train split. One pass over each
shard; memory is bounded by ``ROWS`` joined events at a time and by the result.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from ehr_core.ages import exact_years
from ehr_core.constants import DATA, MEDS_BIRTH
from ehr_core.errors import DataError
from ehr_core.formats.folder import read_json, write_json
from ehr_core.formats.labels import KEY, Labels
from ehr_core.formats.meds import read_treated, shards, subjects_of
from ehr_core.progress import track

from ehr_eval.settings import FeaturesConfig

FILE = "features.json"
ROWS = 10_000_000
"""Events joined with samples at once."""
NO_EVENTS = pl.DataFrame(
    schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
)
KEYS = ["row", "code"]
VALUES = ("last", "min", "max", "mean")


@dataclass(frozen=True)
class History:
    """The visible history of a split's samples: one row a sample and code, and age in years a sample."""

    table: pl.DataFrame
    """``row`` uint32, ``code``, ``count``, ``timed`` (events with a time), and the VALUES (null: no number)."""
    age_N: np.ndarray
    """float32; NaN when birth is unknown or after the prediction time."""
    treated: Counter[str] = dataclasses.field(default_factory=Counter)
    """What was odd in the records, by the names of `ehr_core.formats.meds.TREATED`."""


@dataclass(frozen=True)
class FeatureSet:
    """Which columns there are, fixed on the train split."""

    counted: tuple[str, ...]
    """Codes with a count."""
    measured: tuple[str, ...]
    """Codes with all four values."""
    constant: tuple[str, ...]
    """Codes that are static and have a number: one value says it all."""
    covered: float = 1.0
    """Share of the visible events of the train samples that have one of these codes."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns in order."""
        values = [f"{code}|{value}" for code in self.measured for value in VALUES]
        return ("age", *(f"{c}|count" for c in self.counted), *values, *(f"{c}|last" for c in self.constant))

    def save(self, folder: Path) -> None:
        """Write ``features.json``."""
        write_json(folder / FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "FeatureSet":
        """Read ``features.json``."""
        return read_json(folder / FILE, cls)


class Histories:
    """The histories of a labels folder's splits, each read once and kept for all baselines that ask for it."""

    def __init__(self, meds: Path, labels: Labels):
        self.meds, self.labels = meds, labels
        self._read: dict[str, History] = {}

    def of(self, split: str) -> History:
        """History of the samples of a split, which may have none."""
        if split not in self._read:
            samples = self.labels.tables.get(split)
            frame = NO_EVENTS.select(subject_id="subject_id", prediction_time="time")
            if samples is not None and len(samples):
                frame = cast(pl.DataFrame, pl.from_arrow(samples.select(list(KEY))))
            self._read[split] = found = read_history(self.meds, split, frame)
            _say(split, found)
        return self._read[split]


def _say(split: str, history: History) -> None:
    """What was odd in the records of a split, on stderr."""
    odd = {name: count for name, count in sorted(history.treated.items()) if count}
    if len(history.age_N) and np.isnan(history.age_N).all():
        odd.pop("subjects_without_birth", None)
        print(
            f"note: {split}: no sample has an age, because no birth is known; source.birth=[CODE] of source=meds names "
            "its code",
            file=sys.stderr,
        )
    if odd:
        print(f"treated in {split}: " + ", ".join(f"{name} {count:,}" for name, count in odd.items()), file=sys.stderr)


def read_history(meds: Path, split: str, samples: pl.DataFrame) -> History:
    """History of the samples (``subject_id``, ``prediction_time``) of one split, in their order.

    Raises DataError when subjects of the labels are not in the split's data: labels and dataset do not belong
    together, or split subjects differently.
    """
    rows = samples.select("subject_id", "prediction_time").with_row_index("row")
    tables: list[pl.DataFrame] = []
    ages: list[pl.DataFrame] = []
    known = 0
    odd: Counter[str] = Counter()
    found = [shard for shard in shards(meds) if shard.split == split] if len(rows) else []
    for shard in track(found, f"features {split}", len(found), "shards"):
        events, treated = read_treated(shard)
        odd.update(treated)
        there = rows.filter(rows["subject_id"].is_in(subjects_of(shard)))
        known += len(there)
        if len(there):
            tables.extend(_summarize(events, part) for part in _bounded(events, there))
            ages.append(_age(events, there))
    if known != len(rows):
        raise DataError(
            f"{len(rows) - known} of {len(rows)} samples of the split {split!r} have subjects that occur not once, "
            f"or more than once, in the shards of {meds / DATA / split}; labels and dataset do not belong together"
        )
    age_N = np.full(len(rows), np.nan, np.float32)
    for part in ages:
        age_N[part["row"].to_numpy()] = part["age"].to_numpy()
    return History(pl.concat(tables) if tables else _summarize(NO_EVENTS, rows), age_N, odd)


def _bounded(events: pl.DataFrame, samples: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The samples in groups whose join with their subjects' events has about ROWS rows at most."""
    sizes = events.group_by("subject_id").len()
    ordered = samples.join(sizes, on="subject_id", how="left").sort("row")
    group = (pl.col("len").fill_null(0).cast(pl.Int64).cum_sum() // ROWS).alias("group")
    yield from ordered.with_columns(group).drop("len").partition_by("group", include_key=False)


def _summarize(events: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """Visible events of each sample by code: see `History.table`."""
    visible = (
        samples.lazy()
        .join(events.lazy().filter(pl.col("code") != MEDS_BIRTH), on="subject_id")
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
    born = events.filter(pl.col("code") == MEDS_BIRTH).group_by("subject_id").agg(pl.col("time").min().alias("birth"))
    known = samples.join(born, on="subject_id", how="left").select(
        "row", pl.col("birth", "prediction_time").cast(pl.Datetime("us")).to_physical()
    )
    birth_N, time_N = (known[name].fill_null(0).to_numpy() for name in ("birth", "prediction_time"))
    age = pl.Series("age", exact_years(birth_N, time_N), pl.Float32)
    unborn = known["birth"].is_null() | (known["birth"] > known["prediction_time"])
    return pl.DataFrame([known["row"], age.set(unborn, float("nan"))])


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
    counted = tuple(codes["code"].to_list())
    return FeatureSet(counted, tuple(measured), tuple(constant), coverage([train], counted))


def coverage(histories: Sequence[History], codes: Sequence[str]) -> float:
    """Share of the visible events of all samples that have one of these codes; 0 where nothing is visible."""
    tables = [history.table.select("count", known=pl.col("code").is_in(list(codes))) for history in histories]
    whole = pl.concat(tables)
    total, known = int(whole["count"].sum()), int(whole.filter("known")["count"].sum())
    return known / total if total else 0.0


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
