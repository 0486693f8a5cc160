"""Curves and counts behind the figures, thinned to what a figure can show."""

from dataclasses import dataclass

import numpy as np

POINTS = 200
"""Points of a curve in a figure, at most."""


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed in bins of equal size, and two summaries."""

    predicted_B: np.ndarray
    observed_B: np.ndarray
    count_B: np.ndarray
    error: float
    """Expected calibration error: mean distance of predicted and observed over bins, weighted by count."""


def _totals(label_N: np.ndarray, probability_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives (G,) at each distinct threshold, from the highest down."""
    order_N = np.argsort(-probability_N, kind="stable")
    sorted_N, label_N = probability_N[order_N], label_N[order_N].astype(np.float64)
    end_G = np.flatnonzero(np.concatenate([sorted_N[1:] != sorted_N[:-1], [True]]))
    return np.cumsum(label_N)[end_G], np.cumsum(1 - label_N)[end_G]


def _thin(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    count = len(arrays[0])
    keep = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))
    return tuple(array[keep] for array in arrays)


def roc(label_N: np.ndarray, probability_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate, from (0, 0) to (1, 1)."""
    true_G, false_G = _totals(label_N, probability_N)
    x, y = _thin(np.concatenate([[0.0], false_G / false_G[-1]]), np.concatenate([[0.0], true_G / true_G[-1]]))
    return x, y


def precision_recall(label_N: np.ndarray, probability_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at each threshold, from the highest down."""
    true_G, false_G = _totals(label_N, probability_N)
    x, y = _thin(true_G / true_G[-1], true_G / (true_G + false_G))
    return x, y


def reliability(label_N: np.ndarray, probability_N: np.ndarray, num_bins: int = 10) -> Reliability:
    """Bins of equal count by predicted probability; equal predictions always share a bin."""
    edges = np.unique(np.quantile(probability_N, np.linspace(0, 1, num_bins + 1)))
    bin_N = np.clip(np.searchsorted(edges, probability_N, side="left") - 1, 0, max(len(edges) - 2, 0))
    count_B = np.bincount(bin_N)
    used = count_B > 0
    count_B = count_B[used]
    predicted_B = np.bincount(bin_N, probability_N)[used] / count_B
    observed_B = np.bincount(bin_N, label_N.astype(np.float64))[used] / count_B
    error = float(np.sum(np.abs(predicted_B - observed_B) * count_B) / len(label_N))
    return Reliability(predicted_B, observed_B, count_B, error)


def confusion(label_N: np.ndarray, probability_NK: np.ndarray) -> np.ndarray:
    """Counts (K, K) int64: true class in rows, likeliest class in columns."""
    count = probability_NK.shape[1]
    flat_N = label_N.astype(np.int64) * count + probability_NK.argmax(axis=1)
    return np.bincount(flat_N, minlength=count**2).reshape(count, count)


def histogram(value_N: np.ndarray, num_bins: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Outline of the shares of values between the first and the last hundredth, with what is outside at the ends."""
    low, high = np.quantile(value_N, [0.01, 0.99])
    if low == high:
        low, high = low - 0.5, high + 0.5
    count_B, edges = np.histogram(np.clip(value_N, low, high), num_bins, (low, high))
    share_B = count_B / len(value_N)
    return np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(share_B, 2), [0.0]])


def thirds(risk_N: np.ndarray) -> list[np.ndarray]:
    """Who belongs to the lowest, middle and highest third of the risks (N,) bool; equal risks share a group."""
    low, high = np.quantile(risk_N, [1 / 3, 2 / 3])
    return [risk_N <= low, (risk_N > low) & (risk_N <= high), risk_N > max(low, high)]


def kaplan_meier(time_N: np.ndarray, event_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share that is free of the event over time (Kaplan and Meier 1958), as steps from 1 at time 0."""
    time_G, group_N = np.unique(time_N, return_inverse=True)
    events_G = np.bincount(group_N, event_N, minlength=len(time_G))
    leaving_G = np.bincount(group_N, minlength=len(time_G))
    risk_G = len(time_N) - np.concatenate([[0], np.cumsum(leaving_G)[:-1]])
    share_G = np.cumprod(1.0 - events_G / risk_G)
    x, y = _thin(np.concatenate([[0.0], time_G]), np.concatenate([[1.0], share_G]))
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
