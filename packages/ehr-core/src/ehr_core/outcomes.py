"""The kinds of outcome that a question can have, and the columns in which labels and predictions write them.

A task, a labels folder, an objective, a baseline, a predictor and a metric each speak some of these kinds. Arrays that
go from one to the other have one shape a kind (N samples, K classes or labels):

| kind | label | prediction |
|---|---|---|
| ``binary`` | (N,) 0 or 1 | (N,) probability of 1 |
| ``multiclass`` | (N,) class, from 0 | (N, K) probability of each class, rows add up to 1 |
| ``multilabel`` | (N, K) 0 or 1, NaN: not known | (N, K) probability of each label |
| ``regression`` | (N,) number | (N,) expected number |
| ``survival`` | (N, 2) days, 1 for event or 0 for censored | (N,) risk: the higher, the sooner |

Labels and predictions are float64. `ehr_core.formats.labels` and `ehr_core.formats.predictions` read and write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL = (
    "binary",
    "multiclass",
    "multilabel",
    "regression",
    "survival",
)


@dataclass(frozen=True)
class Columns:
    """Columns of one kind of outcome."""

    label: tuple[str, ...]
    prediction: str
    truth: str
    """What a synthetic cohort knows to be the best possible prediction, in the shape of one."""
    many: bool = False
    """Whether a prediction is a list with one number for each class or label."""


COLUMNS: dict[str, Columns] = {
    BINARY: Columns(("boolean_value",), "predicted_boolean_probability", "true_probability"),
    MULTICLASS: Columns(("integer_value",), "predicted_probabilities", "true_probabilities", many=True),
    MULTILABEL: Columns(("boolean_values",), "predicted_boolean_probabilities", "true_probabilities", many=True),
    REGRESSION: Columns(("float_value",), "predicted_float_value", "true_value"),
    SURVIVAL: Columns(("time_days", "event"), "predicted_risk", "true_risk"),
}
"""Kind of outcome to its columns; the keys are all kinds that there are."""
KINDS = tuple(COLUMNS)


@dataclass(frozen=True)
class Question:
    """What labels ask: the kind of outcome and the names of its classes or labels.

    It goes from the labels to whatever learns from them: an objective makes its head for it, a baseline its estimator.
    """

    kind: str
    """One of `KINDS`."""
    names: tuple[str, ...] = ()
    """Classes or labels in order, K of them; empty for kinds that have none."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the kind of outcome is {self.kind!r}; allowed: {', '.join(KINDS)}")

    @property
    def num_outputs(self) -> int:
        """K, or 1 for kinds without names."""
        return len(self.names) or 1


@dataclass(frozen=True)
class Sample:
    """What a metric looks at: labels and predictions of one predictor for N samples, with what belongs to them."""

    question: Question
    label: np.ndarray
    prediction: np.ndarray
    """Both in the shapes of the module's table."""
    subject_N: np.ndarray
    """int64."""
    time_N: np.ndarray
    """int64 microseconds since 1970: the prediction times."""
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(N,) text by name of a grouping, such as sex."""
    tuning: Sample | None = None
    """The same predictor on the tuning split, for metrics that choose a threshold; None where there is none."""

    def __len__(self) -> int:
        return len(self.subject_N)
