"""Probabilities and decisions: Brier, log loss, F1, accuracy. Legend: see the package."""

import numpy as np
from ehr_core.errors import ConfigError
from ehr_core.outcomes import MULTICLASS, Sample

from ehr_eval.metrics.base import Weighted, divide, mean, mean_of_defined
from ehr_eval.settings import F1Config


class Brier(Weighted):
    """Mean squared difference between probability and label (Brier 1950)."""

    higher_is_better = False

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Brier score (R,) of each resample; NaN where it holds one class only."""
        total_R, positive_R = weight_RN.sum(axis=1), weight_RN @ sample.label
        score_R = mean((sample.prediction - sample.label) ** 2, weight_RN)
        return np.where((positive_R > 0) & (positive_R < total_R), score_R, np.nan)


class LogLoss(Weighted):
    """Mean negative log of the probability that the true answer was given."""

    higher_is_better = False

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Log loss (R,) of each resample. A probability of zero counts as the smallest step above it."""
        if sample.question.kind == MULTICLASS:
            own_N = np.take_along_axis(sample.prediction, sample.label[:, None].astype(np.int64), axis=1)[:, 0]
        else:
            own_N = np.where(sample.label > 0, sample.prediction, 1 - sample.prediction)
        return mean(-np.log(np.maximum(own_N, np.finfo(np.float64).eps)), weight_RN)


class F1(Weighted):
    """Harmonic mean of precision and recall; 0 when nothing is called positive."""

    def __init__(self, settings: F1Config):
        if settings.threshold is not None and not 0 <= settings.threshold <= 1:
            raise ConfigError(f"metric.{settings.name}.threshold must be in [0, 1]")
        super().__init__(settings)

    def threshold(self, sample: Sample) -> float:
        """The probability from which a sample counts as positive."""
        if self.settings.threshold is not None:
            return float(self.settings.threshold)
        tuning = sample.tuning
        if tuning is None or not tuning.label.any():
            return 0.5
        order_N = np.argsort(-tuning.prediction, kind="stable")
        sorted_N = tuning.prediction[order_N]
        true_N = np.cumsum(tuning.label[order_N])
        score_N = 2 * true_N / (np.arange(1, len(true_N) + 1) + true_N[-1])
        last_N = np.append(sorted_N[1:] != sorted_N[:-1], True)  # equal probabilities are called together
        return float(sorted_N[np.argmax(np.where(last_N, score_N, -1.0))])

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """F1 (R,) of each resample; NaN where it has no positive."""
        called_N = sample.prediction >= self.threshold(sample)
        return _f1(sample.label > 0, called_N, weight_RN)


class Accuracy(Weighted):
    """Share of samples whose likeliest class is the true one."""

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Accuracy (R,) of each resample."""
        return mean((_likeliest(sample) == sample.label).astype(np.float64), weight_RN)


class MacroF1(Weighted):
    """F1 of each class, the likeliest one being called; their plain mean over the classes that occur."""

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Mean F1 (R,) of each resample. A class that is called and does not occur counts as 0."""
        called_N = _likeliest(sample)
        scores = []
        for k in range(sample.question.num_outputs):
            true_N, own_N = sample.label == k, called_N == k
            missed_R = np.where(weight_RN @ own_N > 0, 0.0, np.nan)
            score_R = _f1(true_N, own_N, weight_RN)
            scores.append(np.where(np.isnan(score_R), missed_R, score_R))
        return mean_of_defined(scores)


def _likeliest(sample: Sample) -> np.ndarray:
    return sample.prediction.argmax(axis=1) if len(sample) else np.empty(0, np.int64)


def _f1(true_N: np.ndarray, called_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """F1 (R,); NaN where nothing is true."""
    true_R = weight_RN @ true_N
    score_R = divide(2 * (weight_RN @ (true_N & called_N)), true_R + weight_RN @ called_N)
    return np.where(true_R > 0, score_R, np.nan)
