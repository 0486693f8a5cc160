"""AUROC, average precision and Brier score, each for one sample and for many weighted resamples at once.

Shapes: N rows, R resamples, G groups of equal probability. A row's weight is how often a resample drew it, so a
thousand resamples need one sort instead of a thousand.
"""

import numpy as np

from ehr_eval.plugin import AuprcConfig, AurocConfig, BrierConfig


class _Weighted:
    """A metric that is defined by its weighted form."""

    higher_is_better = True

    def __init__(self, settings: AurocConfig | AuprcConfig | BrierConfig):
        self.settings = settings

    def __call__(self, label_N: np.ndarray, probability_N: np.ndarray) -> float:
        """The score; NaN when ``label_N`` has one class only."""
        return float(self.weighted(label_N, probability_N, np.ones((1, len(label_N))))[0])

    def weighted(self, label_N: np.ndarray, probability_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        """Score (R,) of each resample; NaN where it holds one class only."""
        raise NotImplementedError


def _by_probability(
    label_N: np.ndarray, probability_N: np.ndarray, weight_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives (R, G) in each group of equal probability, ascending."""
    order_N = np.argsort(probability_N, kind="stable")
    sorted_N = probability_N[order_N]
    start_G = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))
    weight_RN = weight_RN[:, order_N]
    positive_RN = weight_RN * label_N[order_N].astype(np.float64)
    negative_RN = weight_RN - positive_RN
    if len(start_G) == len(order_N):
        return positive_RN, negative_RN
    return np.add.reduceat(positive_RN, start_G, axis=1), np.add.reduceat(negative_RN, start_G, axis=1)


def _divide(top_R: np.ndarray, bottom_R: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the divisor is zero."""
    result_R = np.full(len(top_R), np.nan)
    np.divide(top_R, bottom_R, out=result_R, where=bottom_R > 0)
    return result_R


class Auroc(_Weighted):
    """Probability that a positive is ranked above a negative, ties counted half (Hanley and McNeil 1982)."""

    def weighted(self, label_N: np.ndarray, probability_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        """AUROC (R,) of each resample."""
        if not len(label_N):
            return np.full(len(weight_RN), np.nan)
        positive_RG, negative_RG = _by_probability(label_N, probability_N, weight_RN)
        below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
        wins_R = np.einsum("rg,rg->r", positive_RG, below_RG)
        return _divide(wins_R, positive_RG.sum(axis=1) * negative_RG.sum(axis=1))


class Auprc(_Weighted):
    """Average precision: precision at each threshold, weighted by the recall it adds. No interpolation."""

    def weighted(self, label_N: np.ndarray, probability_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        """Average precision (R,) of each resample."""
        if not len(label_N):
            return np.full(len(weight_RN), np.nan)
        positive_RG, negative_RG = _by_probability(label_N, probability_N, weight_RN)
        positive_RG, negative_RG = positive_RG[:, ::-1], negative_RG[:, ::-1]
        true_RG = np.cumsum(positive_RG, axis=1)
        called_RG = true_RG + np.cumsum(negative_RG, axis=1)
        precision_RG = np.divide(true_RG, called_RG, out=np.zeros_like(true_RG), where=called_RG > 0)
        total_R = true_RG[:, -1]
        average_R = _divide(np.einsum("rg,rg->r", positive_RG, precision_RG), total_R)
        return np.where(called_RG[:, -1] > total_R, average_R, np.nan)


class Brier(_Weighted):
    """Mean squared difference between probability and label (Brier 1950)."""

    higher_is_better = False

    def weighted(self, label_N: np.ndarray, probability_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        """Brier score (R,) of each resample."""
        label_N = label_N.astype(np.float64)
        total_R, positive_R = weight_RN.sum(axis=1), weight_RN @ label_N
        score_R = _divide(weight_RN @ (probability_N - label_N) ** 2, total_R)
        return np.where((positive_R > 0) & (positive_R < total_R), score_R, np.nan)
