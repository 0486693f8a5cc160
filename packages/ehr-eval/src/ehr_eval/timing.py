"""Prediction times that may not be what was meant are counted and said; those that cannot be are refused.

What is known of a subject is what `ehr_core.formats.meds` reads, so that an event of the year 2999 moves nothing here.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from ehr_core.constants import MEDS_BIRTH, MEDS_DEATH
from ehr_core.errors import DataError
from ehr_core.formats.labels import Labels
from ehr_core.formats.meds import last_time, read_events, shards, subjects_of
from ehr_core.outcomes import SURVIVAL

LATE = 365
"""Days after a subject's last event from which a prediction time is called late, and after the last event of the whole
records, or before a birth, from which it cannot be."""
CANNOT = {
    "unborn": f"are asked more than {LATE} days before the patient's birth",
    "beyond": f"are asked more than {LATE} days after the last event of the records",
}
ODD = {
    "unseen": "are asked before the patient's first event with a time: nothing but a birth is known of them then",
    "dead": "are asked at or after the patient's death",
    "late": f"are asked more than {LATE} days after the patient's last event",
    "outlast": "have a time to the event that ends after the last event of the records",
}


def odd_times(meds: Path, labels: Labels) -> dict[str, int]:
    """How many samples are odd, by the names of `ODD` and `CANNOT`."""
    found = dict.fromkeys([*ODD, *CANNOT], 0)
    places = shards(meds)
    end = pl.lit(last_time(meds, places)).cast(pl.Datetime("us"))
    when, late = pl.col("prediction_time"), pl.duration(days=LATE)
    rules = {
        "unseen": pl.col("first").is_null() | (pl.col("first") > when),
        "dead": pl.col("death") <= when,
        "late": when - pl.col("last") > late,
        "unborn": pl.col("birth") - when > late,
        "beyond": when - end > late,
    }
    if labels.question is not None and labels.question.kind == SURVIVAL:
        rules["outlast"] = when + pl.duration(seconds=pl.col("time_days") * 86_400) > end + pl.duration(days=1)
    for split in labels.splits:
        asked = pl.from_arrow(labels.tables[split])
        assert isinstance(asked, pl.DataFrame)
        subjects = asked["subject_id"].unique()
        frames = [
            _known(read_events(shard))
            for shard in places
            if shard.split == split and subjects.is_in(subjects_of(shard)).any()
        ]
        known = asked.join(pl.concat(frames or [_known(NO_EVENTS)]), on="subject_id", how="left")
        counts = known.select(**{name: rule.fill_null(False).sum() for name, rule in rules.items()}).row(0, named=True)
        found |= {name: found[name] + count for name, count in counts.items()}
    return found


NO_EVENTS = pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String})


def _known(events: pl.DataFrame) -> pl.DataFrame:
    """First and last event, birth and death of each subject."""
    time, code = pl.col("time"), pl.col("code")
    return (
        events.lazy()
        .filter(time.is_not_null())
        .group_by("subject_id")
        .agg(
            first=time.filter(code != MEDS_BIRTH).min(),
            last=time.max(),
            birth=time.filter(code == MEDS_BIRTH).min(),
            death=time.filter(code.str.starts_with(MEDS_DEATH)).min(),
        )
        .collect()
    )


def check_times(counts: Mapping[str, int], labels: Labels) -> None:
    """Raise DataError for prediction times that cannot be, by the counts of `odd_times`."""
    wrong = _words(counts, CANNOT, labels)
    if wrong:
        raise DataError(f"{'; '.join(wrong)}; correct or remove them")


def describe_times(counts: Mapping[str, int], labels: Labels) -> list[str]:
    """The counts of `odd_times` in words; nothing where nothing is odd."""
    return _words(counts, ODD, labels)


def _words(counts: Mapping[str, int], words: Mapping[str, str], labels: Labels) -> list[str]:
    total = sum(len(labels.tables[split]) for split in labels.splits)
    return [f"{labels.name}: {counts[n]:,} of {total:,} samples {text}" for n, text in words.items() if counts.get(n)]
