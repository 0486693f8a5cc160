"""Ridge regression for numbers. Shapes: N samples, C columns."""

from pathlib import Path

import numpy as np
from ehr_core.outcomes import Question
from ehr_core.protocols import Features

from ehr_eval.baselines.columns import Columns, check_positive, load, save
from ehr_eval.settings import LinearConfig


class Linear:
    """Least squares with an L2 penalty; the penalty is the one with the lowest squared error on tuning."""

    def __init__(self, settings: LinearConfig):
        check_positive("linear.penalties", settings.penalties, settings.clip_quantile)
        self.settings = settings
        self.columns = Columns(settings.clip_quantile)

    def fit(self, question: Question, train: Features, tuning: Features) -> None:
        """Fit on train; without tuning the middle penalty is taken."""
        self.columns.fit(train.value_NF)
        column_NC = self.columns(train.value_NF).astype(np.float64)
        self.bias = train.label.mean()
        # One decomposition serves all penalties: columns have mean 0, so the bias is the mean.
        variance_C, basis_CC = np.linalg.eigh(column_NC.T @ column_NC)
        target_C = basis_CC.T @ (column_NC.T @ (train.label - self.bias))
        penalties = sorted(self.settings.penalties)
        if not len(tuning.label):
            penalties = [penalties[len(penalties) // 2]]
        column_MC = self.columns(tuning.value_NF)
        best = np.inf
        for penalty in penalties:
            weight_C = basis_CC @ (target_C / (np.maximum(variance_C, 0.0) + penalty))
            error_M = column_MC @ weight_C + self.bias - tuning.label
            error = float(np.mean(error_M**2)) if len(error_M) else 0.0
            if error < best:
                best, self.penalty, self.weight_C = error, penalty, weight_C

    def predict(self, value_NF: np.ndarray) -> np.ndarray:
        """Expected numbers (N,)."""
        return np.asarray(self.columns(value_NF) @ self.weight_C + self.bias)

    def save(self, folder: Path) -> None:
        """Write arrays."""
        save(folder, self.columns, weight_C=self.weight_C, bias=np.array(self.bias))

    def load(self, folder: Path, question: Question) -> None:
        """Read back what `save` wrote."""
        self.weight_C, bias = load(folder, self.columns, "weight_C", "bias")
        self.bias = float(bias)
