"""How well predictions order samples: AUROC, average precision, concordance. Legend: see the package."""

import numpy as np
from ehr_core.outcomes import MULTICLASS, Sample

from ehr_eval.metrics.base import Weighted, divide, mean_of_defined

CELLS = 4_000_000
"""Weights that are sorted at once, where a row of the sample becomes several."""


def _by_prediction(
    label_N: np.ndarray, prediction_N: np.ndarray, weight_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives (R, G) in each group of equal prediction, ascending."""
    order_N = np.argsort(prediction_N, kind="stable")
    sorted_N = prediction_N[order_N]
    start_G = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))
    weight_RN = weight_RN[:, order_N]
    positive_RN = weight_RN * label_N[order_N]
    negative_RN = weight_RN - positive_RN
    if len(start_G) == len(order_N):
        return positive_RN, negative_RN
    return np.add.reduceat(positive_RN, start_G, axis=1), np.add.reduceat(negative_RN, start_G, axis=1)


def auroc(label_N: np.ndarray, prediction_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """AUROC (R,), ties counted half; NaN where a resample has one class only."""
    if not len(label_N):
        return np.full(len(weight_RN), np.nan)
    positive_RG, negative_RG = _by_prediction(label_N, prediction_N, weight_RN)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    wins_R = np.einsum("rg,rg->r", positive_RG, below_RG)
    return divide(wins_R, positive_RG.sum(axis=1) * negative_RG.sum(axis=1))


class Auroc(Weighted):
    """Probability that a positive is ranked above a negative, ties counted half (Hanley and McNeil 1982)."""

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """AUROC (R,) of each resample."""
        return auroc(sample.label, sample.prediction, weight_RN)


class Auprc(Weighted):
    """Average precision: precision at each threshold, weighted by the recall it adds. No interpolation."""

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Average precision (R,) of each resample; NaN where it holds one class only."""
        if not len(sample):
            return np.full(len(weight_RN), np.nan)
        positive_RG, negative_RG = _by_prediction(sample.label, sample.prediction, weight_RN)
        positive_RG, negative_RG = positive_RG[:, ::-1], negative_RG[:, ::-1]
        true_RG = np.cumsum(positive_RG, axis=1)
        called_RG = true_RG + np.cumsum(negative_RG, axis=1)
        precision_RG = np.divide(true_RG, called_RG, out=np.zeros_like(true_RG), where=called_RG > 0)
        total_R = true_RG[:, -1]
        average_R = divide(np.einsum("rg,rg->r", positive_RG, precision_RG), total_R)
        return np.where(called_RG[:, -1] > total_R, average_R, np.nan)


class MacroAuroc(Weighted):
    """AUROC of each class against the others, or of each label among the samples that know it; their plain mean.

    A class or label that has one side only counts for nothing: it has no AUROC.
    """

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Mean AUROC (R,) of each resample."""
        scores = []
        for k in range(sample.question.num_outputs):
            if sample.question.kind == MULTICLASS:
                scores.append(auroc((sample.label == k).astype(np.float64), sample.prediction[:, k], weight_RN))
                continue
            known_N = ~np.isnan(sample.label[:, k])
            scores.append(auroc(sample.label[known_N, k], sample.prediction[known_N, k], weight_RN[:, known_N]))
        return mean_of_defined(scores)


class MicroAuroc(Weighted):
    """AUROC of every known label of every sample, all in one list."""

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """AUROC (R,) of each resample."""
        row_M, label_M = np.nonzero(~np.isnan(sample.label))
        value_M, prediction_M = sample.label[row_M, label_M], sample.prediction[row_M, label_M]
        block = max(1, CELLS // max(len(row_M), 1))
        starts = range(0, len(weight_RN), block)
        parts = [auroc(value_M, prediction_M, weight_RN[start : start + block][:, row_M]) for start in starts]
        return np.concatenate(parts) if parts else np.empty(0)


class CIndex(Weighted):
    """Share of pairs that can be compared in which the sooner event had the higher risk, ties in risk counted half.

    A pair can be compared when its sooner time is an event (Harrell 1982); of two equal times, when one of them is an
    event and the other is censored, which then counts as the later.
    """

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Concordance (R,) of each resample; NaN where no pair can be compared.

        Times become ranks. Two ranks differ first in one of their bits, and each bit is one sort: below a common
        prefix, samples with the bit unset come sooner than those that have it. So all pairs are counted in
        O(N log N log N) for all resamples together.
        """
        time_N, event_N = sample.label[:, 0], sample.label[:, 1] > 0
        rank_N = np.unique(np.stack([time_N, ~event_N], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        wins_R, pairs_R = np.zeros(len(weight_RN)), np.zeros(len(weight_RN))
        for bit in range(int(rank_N.max(initial=0)).bit_length()):
            later_N = (rank_N >> bit) & 1 == 1
            used_N = np.flatnonzero(later_N | event_N)
            prefix_N = rank_N[used_N] >> (bit + 1)
            wins, pairs = _sooner(prefix_N, later_N[used_N], sample.prediction[used_N], weight_RN[:, used_N])
            wins_R += wins
            pairs_R += pairs
        return divide(wins_R, pairs_R)


def _sooner(
    prefix_N: np.ndarray, later_N: np.ndarray, risk_N: np.ndarray, weight_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (R,) of pairs of one prefix, a later one and an event before it, with the lower risk, and of all."""
    order_N = np.lexsort([risk_N, prefix_N])
    prefix_N, later_N, risk_N = prefix_N[order_N], later_N[order_N], risk_N[order_N]
    new_N = np.concatenate([[True], prefix_N[1:] != prefix_N[:-1]])
    start_G = np.flatnonzero(new_N | np.concatenate([[True], risk_N[1:] != risk_N[:-1]]))
    weight_RN = weight_RN[:, order_N]
    later_RG = np.add.reduceat(weight_RN * later_N, start_G, axis=1)
    event_RG = np.add.reduceat(weight_RN * ~later_N, start_G, axis=1)
    below_RG = np.cumsum(later_RG, axis=1) - later_RG
    first_P = np.flatnonzero(new_N[start_G])
    size_P = np.diff(np.append(first_P, len(start_G)))
    base_RG = np.repeat(below_RG[:, first_P], size_P, axis=1)
    wins_R = np.einsum("rg,rg->r", event_RG, below_RG - base_RG + later_RG / 2)
    later_RP, event_RP = (np.add.reduceat(part, first_P, axis=1) for part in (later_RG, event_RG))
    return wins_R, np.einsum("rp,rp->r", later_RP, event_RP)
