"""Records with troubles of all kinds at once: whatever one subject has, labels and features of another stay."""

from datetime import datetime, timedelta

import polars as pl
import pytest
from ehr_core.formats.meds import last_time, read_events, shards
from ehr_eval.features import read_history
from ehr_eval.task_settings import (
    InHospitalMortalityConfig,
    LengthOfStayConfig,
    Readmission30dConfig,
    TimeToDeathConfig,
)
from ehr_eval.tasks import InHospitalMortality, LengthOfStay, Readmission30d, TimeToDeath
from hypothesis import given, settings
from hypothesis import strategies as st

TASKS = {
    InHospitalMortality: InHospitalMortalityConfig,
    LengthOfStay: LengthOfStayConfig,
    TimeToDeath: TimeToDeathConfig,
    Readmission30d: Readmission30dConfig,
}
START = datetime(2020, 1, 1)
ADM, DIS, DIE = "HOSPITAL_ADMISSION//ER", "HOSPITAL_DISCHARGE//HOME", "MEDS_DEATH"
HEALTHY = [(2, -9000, "MEDS_BIRTH"), (2, 0, ADM), (2, 5, DIS), (2, 20, ADM), (2, 24, DIE), (3, 1, ADM), (3, 4, DIS)]
TIMES = st.one_of(
    st.floats(0, 90).map(lambda day: START + timedelta(days=day)),
    st.integers(0, 90).map(lambda day: START + timedelta(days=day)),
    st.sampled_from([datetime(1, 1, 1), datetime(1900, 1, 1), datetime(2999, 12, 31), datetime(9999, 12, 31)]),
    st.none(),
)
TROUBLED = st.lists(st.tuples(TIMES, st.sampled_from([ADM, ADM, DIS, DIS, DIE, "MEDS_BIRTH", "X"])), max_size=12)


@pytest.fixture
def labelled(events, dataset, tmp_path_factory):
    """Labels of every task, and the features of their samples, of the healthy subjects beside a troubled one."""

    def ask(troubled):
        rows = pl.DataFrame([(1, t, c, None) for t, c in troubled], events([]).schema, orient="row")
        whole = pl.concat([events([*HEALTHY, (4, 100, "END")]), rows])
        meds = dataset(tmp_path_factory.mktemp("meds"), train=[whole])
        (shard,) = [shard for shard in shards(meds) if shard.split == "train"]
        end = last_time(meds, [shard])
        found = {}
        for task, config in TASKS.items():
            table = task(config()).label(read_events(shard), end)
            samples = table.filter(pl.col("subject_id") > 1)
            history = read_history(meds, "train", samples)
            found[task.__name__] = samples.rows(), history.table.rows(), history.age_N.tolist()
            assert table.select(pl.struct("subject_id", "prediction_time").is_duplicated().any()).item() in (
                False,
                None,
            )
        return found, end

    return ask


def test_no_trouble_of_one_subject_reaches_labels_or_features_of_another(labelled, at):
    alone = labelled([])
    assert {name: len(rows) for name, (rows, *_) in alone[0].items()} == {
        "InHospitalMortality": 3,
        "LengthOfStay": 3,
        "TimeToDeath": 3,
        "Readmission30d": 2,
    }
    assert alone[1] == at(100)

    @settings(max_examples=60, deadline=None)
    @given(TROUBLED)
    def check(troubled):
        assert str(labelled(troubled)) == str(alone)  # as text, because an unknown age is no number

    check()
