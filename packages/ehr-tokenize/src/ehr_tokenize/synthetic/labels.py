"""Labels of a shard for every task, each row with the best possible prediction of it (`truth`)."""

from typing import Any

import numpy as np
import pyarrow as pa
from ehr_core.formats.label_values import TYPES
from ehr_core.outcomes import COLUMNS, MULTILABEL

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.laws import DAY, Laws, Stay
from ehr_tokenize.synthetic.simulate import ALIVE, DIED, Stays, Subjects
from ehr_tokenize.synthetic.truth import (
    LENGTH,
    LENGTH_CLASS,
    MORTALITY,
    NEXT,
    READMISSION,
    TASKS,
    TIME_TO_DEATH,
    Visible,
    severity_posterior,
)


def following(stays: Stays) -> np.ndarray:
    """(N,) index of the same subject's next stay; of the stay itself where there is none."""
    order = np.lexsort((stays.previous_N, stays.subject_N))
    found = np.arange(len(order))
    same = stays.subject_N[order[1:]] == stays.subject_N[order[:-1]]
    found[order[:-1][same]] = order[1:][same]
    return found


def answers(stays: Stays, its: np.ndarray, time_N: np.ndarray, task: str) -> list[np.ma.MaskedArray[Any, Any]]:
    """The label columns of a task for stays ``its``, asked at ``time_N``; what is not asked is masked."""
    days = (stays.end_N[its] - time_N) / DAY
    died = stays.ending_N[its] == DIED
    back = stays.next_N[its] - time_N <= params.READMISSION_DAYS * DAY
    new_ND = np.ma.masked_array(stays.new_ND[following(stays)[its]], stays.disease_ND[its])
    columns: dict[str, list[Any]] = {
        MORTALITY: [died],
        LENGTH: [days],
        LENGTH_CLASS: [np.searchsorted(params.LENGTH_EDGES, days, side="right")],
        TIME_TO_DEATH: [days, died],
        READMISSION: [back],
        NEXT: [new_ND],
    }
    return [np.ma.asarray(column) for column in columns[task]]


def column(values: np.ma.MaskedArray[Any, Any], type: pa.DataType) -> pa.Array:
    """(N,) values, or (N, K) as lists of K, masked ones as nulls."""
    flat = pa.array(values.data.ravel(), mask=np.ma.getmaskarray(values).ravel())
    if values.ndim == 1:
        return flat.cast(type)
    edges = pa.array(np.arange(0, values.size + 1, values.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(edges, flat).cast(type)


def asked(laws: Laws, stays: Stays, task: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the stays that a task is asked of, and (N,) the seconds at which, ordered by subject and time."""
    horizon = TASKS[task].horizon_days
    if horizon is None:
        time = stays.admission_N + DAY
        chosen = stays.end_N > time
    else:
        time = stays.end_N
        chosen = (stays.ending_N == ALIVE) & (time <= laws.end - horizon * DAY)
    if TASKS[task].question.kind == MULTILABEL:
        assert horizon is not None
        chosen &= stays.next_N <= time + horizon * DAY
    its = np.flatnonzero(chosen)
    its = its[np.lexsort((time[its], stays.subject_N[its]))]
    return its, time[its]


def label_tables(
    laws: Laws, subjects: Subjects, stays: Stays, early_NS: np.ndarray, all_NS: np.ndarray, first_id: int
) -> dict[str, pa.Table]:
    """Labels of every task. ``early_NS`` and ``all_NS``: log likelihood of what a stay shows on day one, in all."""
    stay, tables = vars(stays.stay()), {}
    for name, task in TASKS.items():
        its, time = asked(laws, stays, name)
        at_discharge = task.horizon_days is not None
        visible = Visible(
            Stay(**{key: array[its] for key, array in stay.items()}),
            stays.admission_N[its],
            time,
            (all_NS if at_discharge else early_NS)[its],
            subjects.male_M[stays.subject_N[its]],
            stays.destination_N[its] if at_discharge else None,
        )
        best = task.law(laws, visible, severity_posterior(laws, visible))
        names = (*COLUMNS[task.question.kind].label, COLUMNS[task.question.kind].truth)
        values = (*answers(stays, its, time, name), np.ma.asarray(best))
        tables[name] = pa.table(
            {
                "subject_id": pa.array(stays.subject_N[its] + first_id, pa.int64()),
                "prediction_time": pa.array(time * 1_000_000, pa.int64()).cast(pa.timestamp("us")),
                **{key: column(value, TYPES[key]) for key, value in zip(names, values, strict=True)},
            }
        )
    return tables
