"""What the metrics share."""

from typing import Any

import numpy as np
from ehr_core.outcomes import Sample


class Weighted:
    """A metric that is defined by its weighted form."""

    higher_is_better = True

    def __init__(self, settings: Any):
        self.settings = settings

    def __call__(self, sample: Sample) -> float:
        """The score; NaN where it is not defined, as without rows."""
        return float(self.weighted(sample, np.ones((1, len(sample))))[0])

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Score (R,) of each resample; NaN where it is not defined."""
        raise NotImplementedError


def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the divisor is zero."""
    result = np.full(np.broadcast_shapes(np.shape(top), np.shape(bottom)), np.nan)
    np.divide(top, bottom, out=result, where=np.asarray(bottom) > 0)
    return result


def mean(value_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """Weighted mean (R,) of a value a row."""
    return divide(weight_RN @ value_N, weight_RN.sum(axis=1))


def mean_of_defined(score_KR: list[np.ndarray]) -> np.ndarray:
    """Mean over K of scores (R,), of those that are defined; NaN where none is."""
    score = np.stack(score_KR)
    defined = ~np.isnan(score)
    return divide(np.where(defined, score, 0.0).sum(axis=0), defined.sum(axis=0))
