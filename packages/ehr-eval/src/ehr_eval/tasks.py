"""Clinical questions asked of MEDS events. Codes are matched as prefixes; nothing crosses a subject.

Everything is decided on instants (all events of a subject at one time), because the order of rows within an instant
means nothing in MEDS.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.protocols import Outcome

from ehr_eval.plugin import InHospitalMortalityConfig, Readmission30dConfig

LABEL_COLUMNS = ("subject_id", "prediction_time", "boolean_value")


def codes_with(codes: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """The codes that begin with one of the prefixes."""
    return [code for code in codes if code.startswith(tuple(prefixes))]


def instants(events: pl.DataFrame, groups: Mapping[str, Sequence[str]], end: datetime) -> pl.DataFrame:
    """One row per subject and time at which something of a group happened: a bool column a group; ordered.

    Events without a time, and events after ``end``, are left out.
    """
    codes = events["code"].drop_nulls().unique().to_list()
    flags = [pl.col("code").is_in(codes_with(codes, prefixes)).alias(name) for name, prefixes in groups.items()]
    return (
        events.lazy()
        .filter(pl.col("time").is_not_null() & (pl.col("time") <= end))
        .select("subject_id", "time", *flags)
        .filter(pl.any_horizontal(*groups))
        .group_by("subject_id", "time")
        .agg(pl.col(name).any() for name in groups)
        .sort("subject_id", "time")
        .collect()
    )


def first_later(name: str) -> pl.Expr:
    """Time of the subject's next instant, after this one, of a group; null when there is none."""
    return pl.when(pl.col(name)).then(pl.col("time")).backward_fill().shift(-1).over("subject_id")


def first_of(name: str) -> pl.Expr:
    """Time of the subject's first instant of a group; null when there is none."""
    return pl.when(pl.col(name)).then(pl.col("time")).min().over("subject_id")


def stay_is_open() -> pl.Expr:
    """Whether a stay was open just before this instant.

    An instant with both an admission and a discharge leaves things as they were: it either hands over from one stay
    to the next, or is a stay of no length.
    """
    admission, discharge = pl.col("admission"), pl.col("discharge")
    after = pl.when(admission & ~discharge).then(True).when(discharge & ~admission).then(False)
    return after.forward_fill().shift(1).over("subject_id").fill_null(False)


class _StayTask:
    """What the two tasks share: which codes begin and end a stay, and which mean death."""

    def __init__(self, settings: InHospitalMortalityConfig | Readmission30dConfig):
        self.groups = {
            "admission": list(settings.admission),
            "discharge": list(settings.discharge),
            "death": list(settings.death),
        }
        for name, prefixes in self.groups.items():
            if not prefixes or not all(prefixes):
                raise ConfigError(f"task.{settings.name}.{name} needs at least one code prefix, none of them empty")

    needs: tuple[str, ...] = ()
    """Groups without which the question cannot be asked of a dataset."""

    def needed(self) -> dict[str, list[str]]:
        """Name to code prefixes of everything that must occur somewhere in the dataset."""
        return {name: self.groups[name] for name in self.needs}


class InHospitalMortality(_StayTask):
    """Does the patient die before the discharge? Asked ``prediction_offset_hours`` after each admission.

    A stay ends with the first discharge after its admission, or with the next admission where none was recorded. A
    stay that ended by the prediction time gives no row, nor does one whose end is not on record by ``end``. Death at
    the instant of the discharge is death in hospital; death after it is not.
    """

    needs = ("admission", "death")

    def __init__(self, settings: InHospitalMortalityConfig):
        super().__init__(settings)
        if settings.prediction_offset_hours < 0:
            raise ConfigError(f"task.{settings.name}.prediction_offset_hours must not be negative")
        self.offset = timedelta(hours=settings.prediction_offset_hours)

    def label(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Labels of one shard, ordered by subject and prediction time; ``end`` is the dataset's last time."""
        death, stop, asked = pl.col("first_death"), pl.col("stop"), pl.col("prediction_time")
        no_length = pl.col("discharge") & ~pl.col("was_open")
        return (
            instants(events, self.groups, end)
            .with_columns(
                first_of("death").alias("first_death"),
                pl.min_horizontal(first_later("discharge"), first_later("admission")).alias("stop"),
                stay_is_open().alias("was_open"),
                (pl.col("time") + self.offset).alias("prediction_time"),
            )
            .filter(pl.col("admission") & ~no_length)
            .filter((death.is_null() | (death > asked)) & (stop.is_null() | (stop > asked)))
            .filter(death.is_not_null() | stop.is_not_null())
            .with_columns((death.is_not_null() & (stop.is_null() | (death <= stop))).alias("boolean_value"))
            .select(LABEL_COLUMNS)
        )

    def outcome(self) -> Outcome:
        """Death first: positive. Discharge, or a next admission, first: negative."""
        return Outcome(tuple(self.groups["death"]), (*self.groups["discharge"], *self.groups["admission"]))


class Readmission30d(_StayTask):
    """Does a new admission begin within ``horizon_days`` of a live discharge? Asked at the discharge.

    A discharge at or after death gives no row. Death without readmission is negative. A discharge whose horizon
    reaches beyond ``end`` gives no row whatever happened, so that who is censored does not depend on the outcome.
    """

    needs = ("admission", "discharge")

    def __init__(self, settings: Readmission30dConfig):
        super().__init__(settings)
        if settings.horizon_days <= 0:
            raise ConfigError(f"task.{settings.name}.horizon_days must be above 0")
        self.horizon = timedelta(days=settings.horizon_days)

    def label(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Labels of one shard, ordered by subject and prediction time; ``end`` is the dataset's last time."""
        death, time = pl.col("first_death"), pl.col("time")
        readmitted = pl.col("next_admission") <= time + self.horizon
        return (
            instants(events, self.groups, end)
            .with_columns(
                first_of("death").alias("first_death"),
                first_later("admission").alias("next_admission"),
            )
            .filter(pl.col("discharge") & (death.is_null() | (death > time)))
            .filter(time + self.horizon <= end)
            .with_columns(time.alias("prediction_time"), readmitted.fill_null(False).alias("boolean_value"))
            .select(LABEL_COLUMNS)
        )

    def outcome(self) -> Outcome:
        """An admission within the horizon: positive. Death before it: negative."""
        days = self.horizon / timedelta(days=1)
        return Outcome(tuple(self.groups["admission"]), tuple(self.groups["death"]), horizon_days=days)
