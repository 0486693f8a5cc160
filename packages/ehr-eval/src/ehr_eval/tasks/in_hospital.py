"""Questions about a stay, asked some hours after its admission: mortality, what is left of it, time to death."""

import itertools
from datetime import datetime, timedelta

import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.outcomes import MULTICLASS, REGRESSION, SURVIVAL
from ehr_core.protocols import OutcomeCodes

from ehr_eval.task_settings import LengthOfStayClassConfig
from ehr_eval.tasks.stays import InHospitalTask


class InHospitalMortality(InHospitalTask):
    """Does the patient die before the discharge? A stay whose end is not on record gives no row."""

    needs = ("admission", "death")

    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        return self.stays(events, end).filter(pl.col("left").is_not_null()).rename({"died": "boolean_value"})

    def codes(self) -> OutcomeCodes:
        """Death first: positive. Discharge, or a next admission, first: negative."""
        return OutcomeCodes(tuple(self.groups["death"]), (*self.groups["discharge"], *self.groups["admission"]))


class LengthOfStay(InHospitalTask):
    """Days from the prediction time to the end of the stay, in discharge or death.

    A stay whose end is not on record gives no row, and neither does one that only the next admission shows to be over.
    """

    kind = REGRESSION

    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        ended = pl.col("died") | pl.col("discharged")
        return self.stays(events, end).filter(ended).with_columns(self.remaining().alias("float_value"))


class LengthOfStayClass(LengthOfStay):
    """The class of the days from the prediction time to the end of the stay; a class begins with its lower edge."""

    kind = MULTICLASS

    def __init__(self, settings: LengthOfStayClassConfig):
        super().__init__(settings)
        self.edges = list(settings.edges)
        if not self.edges or self.edges[0] <= 0 or any(low >= high for low, high in itertools.pairwise(self.edges)):
            raise ConfigError(f"{self.setting('edges')} must be numbers of days above 0 in ascending order")
        shown = [f"{edge:g}" for edge in self.edges]
        between = [f"{low}-{high} days" for low, high in itertools.pairwise(shown)]
        self.names = (f"<{shown[0]} days", *between, f">={shown[-1]} days")

    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        remaining = pl.col("left") - pl.col("prediction_time")  # exact, where days are rounded
        reached = pl.sum_horizontal((remaining >= timedelta(days=edge)).cast(pl.Int64) for edge in self.edges)
        return super()._answered(events, end).with_columns(reached.alias("integer_value"))


class TimeToDeath(InHospitalTask):
    """Days from the prediction time to death in this stay.

    Censored at whatever else ends the stay, and at the end of the data where nothing did.
    """

    kind = SURVIVAL
    needs = ("admission", "death")

    def _answered(self, events: pl.DataFrame, end: datetime) -> pl.DataFrame:
        watched = self.stays(events, end).with_columns(pl.col("left").fill_null(end))
        watched = watched.filter(pl.col("left") > pl.col("prediction_time"))
        return watched.with_columns(self.remaining().alias("time_days"), pl.col("died").alias("event"))
