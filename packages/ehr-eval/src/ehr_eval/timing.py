"""Prediction times that may not be what was meant, counted: before anything is known, after death, long after."""

import sys
from pathlib import Path

import polars as pl
from ehr_core.formats.labels import Labels
from ehr_core.formats.meds import shards

DEATH = "MEDS_DEATH"
LATE = 365
"""Days after a subject's last event from which a prediction time is called late."""


def odd_times(meds: Path, labels: Labels) -> dict[str, int]:
    """Samples that are odd, by what they are: ``unseen`` (no event with a time yet), ``dead``, ``late``."""
    found = {"unseen": 0, "dead": 0, "late": 0}
    time = pl.col("time").cast(pl.Datetime("us"))
    places = shards(meds)
    for split in labels.splits:
        frames = [
            pl.scan_parquet(shard.path)
            .filter(pl.col("time").is_not_null())
            .group_by("subject_id")
            .agg(
                first=time.min(),
                last=time.max(),
                death=time.filter(pl.col("code").cast(pl.String).str.starts_with(DEATH)).min(),
            )
            for shard in places
            if shard.split == split
        ]
        asked = pl.from_arrow(labels.tables[split].select(["subject_id", "prediction_time"]))
        assert isinstance(asked, pl.DataFrame)
        known = asked.join(pl.concat(pl.collect_all(frames)), on="subject_id", how="left")
        when = pl.col("prediction_time")
        odd = {
            "unseen": pl.col("first").is_null() | (pl.col("first") > when),
            "dead": pl.col("death") <= when,
            "late": when - pl.col("last") > pl.duration(days=LATE),
        }
        counts = known.select(**{name: rule.fill_null(False).sum() for name, rule in odd.items()}).row(0, named=True)
        found = {name: found[name] + counts[name] for name in found}
    return found


def say_times(meds: Path, labels: Labels) -> None:
    """`describe_times` on standard error."""
    for line in describe_times(meds, labels):
        print(f"note: {line}", file=sys.stderr)


def describe_times(meds: Path, labels: Labels) -> list[str]:
    """`odd_times` in words; nothing where nothing is odd."""
    total = sum(len(labels.tables[split]) for split in labels.splits)
    words = {
        "unseen": "are asked before the patient's first event with a time: nothing is known of them then",
        "dead": "are asked at or after the patient's death",
        "late": f"are asked more than {LATE} days after the patient's last event",
    }
    return [
        f"{labels.name}: {n:,} of {total:,} samples {words[name]}" for name, n in odd_times(meds, labels).items() if n
    ]
