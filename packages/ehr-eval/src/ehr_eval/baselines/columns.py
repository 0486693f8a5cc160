"""What the linear baselines do to features first: clip, impute, say what was missing, standardise; fitted on train.

Shapes: N samples, F features, C columns that come out.
"""

from pathlib import Path

import numpy as np
from ehr_core.errors import ConfigError, FormatError


def check_positive(name: str, values: list[float], quantile: float) -> None:
    """Raise ConfigError for settings (``predictors.logistic.strengths``) that cannot work."""
    if not values or min(values) <= 0:
        raise ConfigError(f"predictors.{name} needs at least one number, all above 0")
    if not 0 <= quantile < 0.5:
        raise ConfigError(f"predictors.{name.partition('.')[0]}.clip_quantile must be in [0, 0.5)")


class Columns:
    """Values outside the quantiles are set to them, missing ones to the median; whether one was missing is a column."""

    def __init__(self, clip_quantile: float):
        self.clip_quantile = clip_quantile

    def fit(self, train_NF: np.ndarray) -> "Columns":
        """Fit everything on the train split."""
        seen_NF = ~np.isnan(train_NF)
        self.used_F = seen_NF.any(axis=0)
        train, seen = train_NF[:, self.used_F], seen_NF[:, self.used_F]
        quantile = self.clip_quantile
        self.low_F, self.median_F, self.high_F = np.nanquantile(train, [quantile, 0.5, 1 - quantile], axis=0).astype(
            np.float32
        )
        # The four values of a code are missing together: one column says so once.
        missing = ~seen
        _, first = np.unique(missing, axis=1, return_index=True)
        self.missing_F = np.sort([column for column in first if missing[:, column].any()]).astype(np.int64)
        filled = self._fill(train_NF)
        self.mean_C = filled.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation_C = filled.std(axis=0, dtype=np.float64).astype(np.float32)
        self.scale_C = np.where(deviation_C > 1e-6, deviation_C, np.inf).astype(np.float32)  # constant becomes 0
        return self

    def __call__(self, value_NF: np.ndarray) -> np.ndarray:
        """Columns (N, C) float32 of mean 0 and deviation 1."""
        return np.asarray((self._fill(value_NF) - self.mean_C) / self.scale_C)

    def _fill(self, value_NF: np.ndarray) -> np.ndarray:
        used = value_NF[:, self.used_F]
        missing = np.isnan(used)
        filled = np.where(missing, self.median_F, np.clip(used, self.low_F, self.high_F))
        return np.concatenate([filled, missing[:, self.missing_F].astype(np.float32)], axis=1)


STATE = ("used_F", "low_F", "median_F", "high_F", "missing_F", "mean_C", "scale_C")


def save(folder: Path, columns: Columns, **arrays: np.ndarray) -> None:
    """Write the columns and whatever was fitted on them, one ``.npy`` an array."""
    for name, array in {**{name: getattr(columns, name) for name in STATE}, **arrays}.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def load(folder: Path, columns: Columns, *names: str) -> list[np.ndarray]:
    """Put back the columns' state, and return the arrays that were saved with it. Raises FormatError."""
    try:
        for name in STATE:
            setattr(columns, name, np.load(folder / f"{name}.npy", allow_pickle=False))
        return [np.load(folder / f"{name}.npy", allow_pickle=False) for name in names]
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"{folder} does not hold what a baseline saved: {error}") from error
