"""Distance of predicted numbers: MAE, RMSE, R2. Legend: see the package."""

import numpy as np
from ehr_core.outcomes import Sample

from ehr_eval.metrics.base import Weighted, divide, mean


class Mae(Weighted):
    """Mean absolute error."""

    higher_is_better = False

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Mean absolute error (R,) of each resample."""
        return mean(np.abs(sample.prediction - sample.label), weight_RN)


class Rmse(Weighted):
    """Root of the mean squared error."""

    higher_is_better = False

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Root of the mean squared error (R,) of each resample."""
        return np.sqrt(mean((sample.prediction - sample.label) ** 2, weight_RN))


class R2(Weighted):
    """One minus the squared error over that of the mean; NaN where all labels are equal."""

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """R2 (R,) of each resample."""
        if not len(sample):
            return np.full(len(weight_RN), np.nan)
        label_N = sample.label - sample.label.mean()  # moves nothing, and keeps the difference of squares exact
        total_R = weight_RN.sum(axis=1)
        spread_R = weight_RN @ label_N**2 - divide((weight_RN @ label_N) ** 2, total_R)
        spread_R = np.where(spread_R > 1e-12 * total_R * np.abs(label_N).max() ** 2, spread_R, 0.0)
        return 1.0 - divide(weight_RN @ (sample.prediction - sample.label) ** 2, spread_R)
