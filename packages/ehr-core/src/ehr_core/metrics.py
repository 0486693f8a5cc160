"""For metrics that know no weights."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ehr_core.outcomes import Sample


def repeated(score: Callable[[Sample], float], sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
    """Score (R,) of each resample, every row repeated as often as it was drawn: `Metric.weighted` for any metric."""
    return np.array([score(take(sample, np.repeat(np.arange(len(sample)), row.astype(np.int64)))) for row in weight_RN])


def take(sample: Sample, rows: np.ndarray) -> Sample:
    """The rows of a sample, in this order; its tuning sample stays whole."""
    parts = {name: getattr(sample, name)[rows] for name in ("label", "prediction", "subject_N", "time_N")}
    groups = {name: values[rows] for name, values in sample.groups.items()}
    return dataclasses.replace(sample, **parts, groups=groups)
