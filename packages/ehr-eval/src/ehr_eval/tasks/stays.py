"""What the tasks of ehr-eval share: settings to groups of codes, stays in progress, and live discharges."""

from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import ClassVar

import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.outcomes import BINARY, COLUMNS
from ehr_core.protocols import OutcomeCodes

from ehr_eval.task_settings import InHospitalCodes, StayCodes
from ehr_eval.tasks.records import days, stays_of

KEY = ("subject_id", "prediction_time")
LONGEST = 47_450
"""Days in 130 years."""


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
        if not 0 <= settings.prediction_offset_hours <= 24 * LONGEST:
            name = self.setting("prediction_offset_hours")
            raise ConfigError(f"{name} must not be negative, nor over {24 * LONGEST:,} hours")
        self.offset = timedelta(hours=settings.prediction_offset_hours)

    def stays(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Stays that go on at their prediction time, at ``end`` at the latest.

        Columns: ``left`` (time of death, discharge or next admission; null: none is on record), ``died`` (in this stay)
        and ``discharged`` (whether a discharge is what comes first of that and the next admission).
        """
        death, close, asked = pl.col("death"), pl.col("close"), pl.col("prediction_time")
        return (
            stays_of(events, self.groups, end)
            .with_columns((pl.col("start") + self.offset).alias("prediction_time"))
            .filter((asked <= end) & (death.is_null() | (death > asked)) & (close.is_null() | (close > asked)))
            .with_columns(
                (death.is_not_null() & (close.is_null() | (death <= close))).alias("died"),
                pl.min_horizontal(death, close).alias("left"),
            )
        )

    def remaining(self) -> pl.Expr:
        """Days from the prediction time to ``left``."""
        return days(pl.col("left") - pl.col("prediction_time"))


class DischargeTask(StayTask):
    """A question about what follows a live discharge within ``horizon_days``, asked at the discharge.

    Each stay gives one row at most, at the discharge that closes it. There is none for a discharge at or after death,
    and none where the next stay begins at that instant: a transfer. Nor is there one for a discharge whose horizon
    reaches beyond the end of the data, whatever happened, so that who is censored does not depend on the outcome.
    """

    def __init__(self, settings: StayCodes, horizon_days: float):
        super().__init__(settings)
        if not 0 < horizon_days <= LONGEST:
            raise ConfigError(f"{self.setting('horizon_days')} must be above 0 and at most {LONGEST:,} days")
        self.horizon = timedelta(days=horizon_days)

    def discharges(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Live discharges, with ``next_admission`` (null: none within the horizon) and ``next_end`` of that stay.

        ``next_end`` is its discharge, death in it, or the admission after it; null: none is on record.
        """
        death, close, back = pl.col("death"), pl.col("close"), pl.col("next_start")
        ends = pl.min_horizontal(close, pl.when(death >= pl.col("start")).then(death))
        return (
            stays_of(events, self.groups, end)
            .with_columns(ends.shift(-1).over("subject_id").alias("next_end"))
            .filter(pl.col("discharged") & (death.is_null() | (death > close)) & (back.is_null() | (back > close)))
            .filter(close + self.horizon <= end)
            .with_columns(
                close.alias("prediction_time"),
                pl.when(back <= close + self.horizon).then(back).alias("next_admission"),
            )
        )
