"""Proportional hazards (Cox 1972): risk is linear in the columns, and what is fitted is the partial likelihood.

Ties are handled as Breslow (1974) did. Shapes: N samples ordered from the longest time down, C columns.
"""

from pathlib import Path

import numpy as np
from ehr_core.outcomes import Question
from ehr_core.protocols import Features

from ehr_eval.baselines.columns import Columns, check_positive, load, save
from ehr_eval.settings import CoxConfig


class Cox:
    """L2-penalised; the penalty is the one with the highest partial likelihood on tuning."""

    def __init__(self, settings: CoxConfig):
        check_positive("cox.penalties", settings.penalties, settings.clip_quantile)
        self.settings = settings
        self.columns = Columns(settings.clip_quantile)

    def fit(self, question: Question, train: Features, tuning: Features) -> None:
        """Fit on train, from the strongest penalty down; without an event in tuning the middle penalty is taken."""
        from scipy.optimize import minimize

        self.columns.fit(train.value_NF)
        learned = _Ordered(self.columns(train.value_NF), train.label)
        judged = _Ordered(self.columns(tuning.value_NF), tuning.label)
        penalties = sorted(self.settings.penalties, reverse=True)
        if not judged.event_N.any():
            penalties = [penalties[len(penalties) // 2]]
        weight_C, best = np.zeros(learned.column_NC.shape[1]), np.inf
        for penalty in penalties:

            def objective(weight_C: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
                loss, slope_C = learned.loss(weight_C)
                return loss + penalty / 2 * float(weight_C @ weight_C), slope_C + penalty * weight_C

            options = {"maxiter": self.settings.max_iter, "ftol": 1e-10, "gtol": 1e-7}
            weight_C = minimize(objective, weight_C, jac=True, method="L-BFGS-B", options=options).x
            loss = judged.loss(weight_C)[0] if judged.event_N.any() else 0.0
            if loss < best:
                best, self.penalty, self.weight_C = loss, penalty, weight_C

    def predict(self, value_NF: np.ndarray) -> np.ndarray:
        """Risk (N,): the logarithm of the relative hazard."""
        return np.asarray(self.columns(value_NF) @ self.weight_C)

    def save(self, folder: Path) -> None:
        """Write arrays."""
        save(folder, self.columns, weight_C=self.weight_C)

    def load(self, folder: Path, question: Question) -> None:
        """Read back what `save` wrote."""
        (self.weight_C,) = load(folder, self.columns, "weight_C")


class _Ordered:
    """Samples from the longest time down, so that who is still at risk at a time is everyone before its last row."""

    def __init__(self, column_NC: np.ndarray, label_N2: np.ndarray):
        order_N = np.argsort(-label_N2[:, 0], kind="stable")
        self.column_NC, time_N = column_NC[order_N].astype(np.float64), label_N2[order_N, 0]
        self.event_N = label_N2[order_N, 1] > 0
        self.last_N = np.searchsorted(-time_N, -time_N, side="right") - 1

    def loss(self, weight_C: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean negative log partial likelihood over events, and its slope (C,)."""
        risk_N = self.column_NC @ weight_C
        power_N = np.exp(risk_N - risk_N.max())
        total_N = np.cumsum(power_N)[self.last_N][self.event_N]
        mean_NC = np.cumsum(power_N[:, None] * self.column_NC, axis=0)[self.last_N][self.event_N] / total_N[:, None]
        loss = np.log(total_N) + risk_N.max() - risk_N[self.event_N]
        return float(loss.mean()), (mean_NC - self.column_NC[self.event_N]).mean(axis=0)
