"""What the tasks of ehr-eval share: settings to groups of codes, stays in progress, and live discharges."""

from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import ClassVar

import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.outcomes import BINARY, COLUMNS
from ehr_core.protocols import OutcomeCodes

from ehr_eval.task_settings import InHospitalCodes, StayCodes
from ehr_eval.tasks.instants import days, first_later, first_of, instants, stay_is_open

KEY = ("subject_id", "prediction_time")


class StayTask(ABC):
    """A question about stays in hospital. A subclass says of whom, when, and what the answer is (`_answered`)."""

    kind: ClassVar[str] = BINARY
    needs: ClassVar[tuple[str, ...]] = ("admission", "discharge")
    """Groups without which the question cannot be asked of a dataset."""
    names: tuple[str, ...] = ()

    def __init__(self, settings: StayCodes):
        self.settings = settings
        self.groups = {name: list(getattr(settings, name)) for name in ("admission", "discharge", "death")}
        for name, prefixes in self.groups.items():
            if not prefixes or not all(prefixes):
                raise ConfigError(f"{self.setting(name)} needs at least one code prefix, none of them empty")

    def setting(self, name: str) -> str:
        """What a setting is called on a command line."""
        return f"task.{self.settings.name}.{name}"

    def needed(self) -> dict[str, list[str]]:
        """Name to code prefixes of everything that must occur somewhere in the dataset."""
        return {name: self.groups[name] for name in self.needs}

    def label(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Labels of one shard, ordered by subject and prediction time; ``end`` is the dataset's last time."""
        return self._answered(events, end).select(*KEY, *COLUMNS[self.kind].label)

    @abstractmethod
    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """One row a sample, ordered, with ``subject_id``, ``prediction_time``, the kind's columns and any others."""

    def codes(self) -> OutcomeCodes | None:
        """No code answers the question, unless a subclass says so."""
        return None


class InHospitalTask(StayTask):
    """A question about a stay, asked ``prediction_offset_hours`` after its admission of whoever is still there.

    A stay ends with death or the first discharge after its admission, or with the next admission where no discharge was
    recorded. A stay that ended by the prediction time gives no row. Death at the instant of the discharge is death in
    hospital; death after it is not.
    """

    def __init__(self, settings: InHospitalCodes):
        super().__init__(settings)
        if settings.prediction_offset_hours < 0:
            raise ConfigError(f"{self.setting('prediction_offset_hours')} must not be negative")
        self.offset = timedelta(hours=settings.prediction_offset_hours)

    def stays(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Stays that go on at their prediction time, at ``end`` at the latest.

        Columns: ``left`` (time of death, discharge or next admission; null: none is on record), ``died`` (in this stay)
        and ``discharged`` (whether a discharge is what comes first of that and the next admission; may be null).
        """
        death, stop, asked = pl.col("first_death"), pl.col("stop"), pl.col("prediction_time")
        no_length = pl.col("discharge") & ~pl.col("was_open")
        return (
            instants(events, self.groups, end)
            .with_columns(
                first_of("death").alias("first_death"),
                first_later("discharge").alias("next_discharge"),
                pl.min_horizontal(first_later("discharge"), first_later("admission")).alias("stop"),
                stay_is_open().alias("was_open"),
                (pl.col("time") + self.offset).alias("prediction_time"),
            )
            .filter(pl.col("admission") & ~no_length & (asked <= end))
            .filter((death.is_null() | (death > asked)) & (stop.is_null() | (stop > asked)))
            .with_columns(
                (stop == pl.col("next_discharge")).alias("discharged"),
                (death.is_not_null() & (stop.is_null() | (death <= stop))).alias("died"),
                pl.min_horizontal(death, stop).alias("left"),
            )
        )

    def remaining(self) -> pl.Expr:
        """Days from the prediction time to ``left``."""
        return days(pl.col("left") - pl.col("prediction_time"))


class DischargeTask(StayTask):
    """A question about what follows a live discharge within ``horizon_days``, asked at the discharge.

    A discharge at or after death gives no row. Nor does one whose horizon reaches beyond the end of the data, whatever
    happened, so that who is censored does not depend on the outcome.
    """

    def __init__(self, settings: StayCodes, horizon_days: float):
        super().__init__(settings)
        if horizon_days <= 0:
            raise ConfigError(f"{self.setting('horizon_days')} must be above 0")
        self.horizon = timedelta(days=horizon_days)

    def discharges(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Live discharges, with ``next_admission`` (null: none within the horizon)."""
        death, time = pl.col("first_death"), pl.col("time")
        back = pl.col("later_admission")
        return (
            instants(events, self.groups, end)
            .with_columns(
                first_of("death").alias("first_death"),
                first_later("admission").alias("later_admission"),
                time.alias("prediction_time"),
            )
            .filter(pl.col("discharge") & (death.is_null() | (death > time)))
            .filter(time + self.horizon <= end)
            .with_columns(pl.when(back <= time + self.horizon).then(back).alias("next_admission"))
        )
