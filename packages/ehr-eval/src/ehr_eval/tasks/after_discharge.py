"""Questions about what follows a live discharge, asked at the discharge: readmission and next diagnoses."""

from datetime import datetime, timedelta

import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.outcomes import MULTILABEL
from ehr_core.protocols import OutcomeCodes

from ehr_eval.task_settings import DISEASES, NextDiagnosesConfig, Readmission30dConfig
from ehr_eval.tasks.records import belongs
from ehr_eval.tasks.stays import DischargeTask

LONG_AGO = datetime(1, 1, 1)
"""Time of what a record has without a time: it was always known."""


class Readmission30d(DischargeTask):
    """Does a new admission begin within the horizon? Death without readmission is negative."""

    def __init__(self, settings: Readmission30dConfig):
        super().__init__(settings, settings.horizon_days)

    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        back = pl.col("next_admission").is_not_null()
        return self.discharges(events, end).with_columns(back.alias("boolean_value"))

    def codes(self) -> OutcomeCodes:
        """An admission within the horizon: positive. Death before it: negative."""
        days = self.horizon / timedelta(days=1)
        return OutcomeCodes(tuple(self.groups["admission"]), tuple(self.groups["death"]), horizon_days=days)


class NextDiagnoses(DischargeTask):
    """Which groups of diagnoses are coded for the first time in the next stay?

    Asked at a live discharge of who comes back within the horizon. The next stay is whatever lies between its admission
    and the discharge, death or next admission that ends it, both included; where that is not on record there is no row.
    A label is true when the first code of its group in the whole record falls into that stay, and null (not asked) when
    the group was coded at the prediction time or before.
    """

    kind = MULTILABEL

    def __init__(self, settings: NextDiagnosesConfig):
        super().__init__(settings, settings.horizon_days)
        asked = {name: list(begins) for name, begins in settings.groups.items()} or DISEASES
        if not settings.systems:
            raise ConfigError(f"{self.setting('systems')} needs what comes before a diagnosis; [''] for nothing")
        for name, begins in asked.items():
            if not begins or not all(begins):
                raise ConfigError(f"{self.setting('groups')}.{name} needs beginnings of codes, none of them empty")
        self.names = tuple(asked)
        self.diagnoses = {
            name: [system + begin for system in settings.systems for begin in begins] for name, begins in asked.items()
        }

    def needed(self) -> dict[str, list[str]]:
        """Stays, and any of the diagnoses: a dataset may well lack one of the groups."""
        return super().needed() | {"diagnosis": [prefix for group in self.diagnoses.values() for prefix in group]}

    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        return (
            self.discharges(events, end)
            .filter(pl.col("next_admission").is_not_null() & pl.col("next_end").is_not_null())
            .join(self._first_codes(events, end), on="subject_id", how="left")
            .with_columns(pl.concat_list(self._is_new(str(k)) for k in range(len(self.names))).alias("boolean_values"))
            .sort("subject_id", "prediction_time")
        )

    def _first_codes(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        """Per subject the time of the first code of each group, in columns 0, 1, ...; null where there is none."""
        time, of_group = pl.col("time").fill_null(LONG_AGO), belongs(events, self.diagnoses).values()
        first = [time.filter(flag).min().alias(str(place)) for place, flag in enumerate(of_group)]
        return events.filter(time <= end).group_by("subject_id").agg(first)

    @staticmethod
    def _is_new(group: str) -> pl.Expr:
        first, not_yet = pl.col(group), pl.col(group).is_null() | (pl.col(group) > pl.col("prediction_time"))
        new = first.is_between(pl.col("next_admission"), pl.col("next_end"))
        return pl.when(not_yet).then(new.fill_null(False))
