"""Percentile intervals from resampling subjects (the cluster bootstrap), so that a subject's rows stay together."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ehr_core.outcomes import Sample

CELLS = 2_000_000
"""Weights held at once: resamples are drawn in blocks of about so many cells."""


def draws(subject_N: np.ndarray, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of weights (R, N): how often each row's subject was drawn, with replacement, in each resample."""
    subjects, place_N = np.unique(subject_N, return_inverse=True)
    count, rng = len(subjects), np.random.default_rng(seed)
    block = max(1, min(num_resamples, CELLS // max(len(subject_N), 1)))
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        flat = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        weight_RS = np.bincount(flat.ravel(), minlength=rows * count).reshape(rows, count)
        yield weight_RS[:, place_N].astype(np.float64)


def resample(
    metrics: Mapping[str, Any], samples: Mapping[str, Sample], num_resamples: int, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """(predictor, metric) to scores (R,). All predictors see the same resamples, so their differences are paired."""
    parts: dict[tuple[str, str], list[np.ndarray]] = {(p, m): [] for p in samples for m in metrics}
    subject_N = next(iter(samples.values())).subject_N
    for weight_RN in draws(subject_N, num_resamples, seed):
        for (predictor, metric), scores in parts.items():
            scores.append(np.asarray(metrics[metric].weighted(samples[predictor], weight_RN)))
    return {key: np.concatenate(scores) if scores else np.empty(0) for key, scores in parts.items()}


def interval(scores_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval; resamples without a score (one class only) are left out. NaN when none has one."""
    kept = scores_R[np.isfinite(scores_R)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
