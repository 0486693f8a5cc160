"""Logistic regression on the shared features."""

import warnings

import numpy as np
from ehr_core.errors import ConfigError

from ehr_eval.plugin import LogisticConfig


class Logistic:
    """Clip, impute the median, add what was missing as columns, standardise, and fit with an L2 penalty."""

    def __init__(self, settings: LogisticConfig):
        if not settings.strengths or min(settings.strengths) <= 0:
            raise ConfigError("predictors.logistic.strengths needs at least one number, all above 0")
        if not 0 <= settings.clip_quantile < 0.5:
            raise ConfigError("predictors.logistic.clip_quantile must be in [0, 0.5)")
        self.settings = settings

    def fit(self, train_NF: np.ndarray, label_N: np.ndarray, tuning_MF: np.ndarray, tuning_M: np.ndarray) -> None:
        """Fit on train; the penalty is the one with the lowest log loss on tuning (the middle one without tuning).

        Penalties are tried from the strongest down, each from the solution of the one before, until two in a row
        are worse than the best.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self._fit_columns(train_NF)
        train = self._columns(train_NF)
        strengths = sorted(self.settings.strengths)
        if not len(tuning_M):
            strengths = [strengths[len(strengths) // 2]]
        model = LogisticRegression(max_iter=self.settings.max_iter, warm_start=True)
        best, worse = np.inf, 0
        for strength in strengths:
            model.set_params(C=strength)
            with warnings.catch_warnings():
                # A fit that stops early is one more candidate; the tuning split judges it.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(train, label_N)
            weight_F, bias = model.coef_[0].astype(np.float64), float(model.intercept_[0])
            loss = _log_loss(tuning_M, self._columns(tuning_MF) @ weight_F + bias) if len(tuning_M) else 0.0
            worse = 0 if loss < best else worse + 1
            if not worse:
                best, self.strength, self.weight_F, self.bias = loss, strength, weight_F, bias
            elif worse == 2:
                break

    def predict_proba(self, features_NF: np.ndarray) -> np.ndarray:
        """Probability (N,) of the positive class."""
        logit_N = self._columns(features_NF) @ self.weight_F + self.bias
        return np.asarray(np.exp(-np.logaddexp(0.0, -logit_N)))

    def _fit_columns(self, train_NF: np.ndarray) -> None:
        """Everything that is fitted before the regression, from the train split."""
        seen_NF = ~np.isnan(train_NF)
        self.used_F = seen_NF.any(axis=0)
        train, seen = train_NF[:, self.used_F], seen_NF[:, self.used_F]
        quantile = self.settings.clip_quantile
        self.low_F, self.median_F, self.high_F = np.nanquantile(train, [quantile, 0.5, 1 - quantile], axis=0).astype(
            np.float32
        )
        # The four values of a code are missing together: one column says so once.
        missing = ~seen
        _, first = np.unique(missing, axis=1, return_index=True)
        self.missing_F = np.sort([column for column in first if missing[:, column].any()]).astype(np.int64)
        filled = self._fill(train_NF)
        self.mean_F = filled.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation_F = filled.std(axis=0, dtype=np.float64).astype(np.float32)
        self.scale_F = np.where(deviation_F > 1e-6, deviation_F, np.inf).astype(np.float32)  # constant becomes 0

    def _fill(self, features_NF: np.ndarray) -> np.ndarray:
        used = features_NF[:, self.used_F]
        missing = np.isnan(used)
        filled = np.where(missing, self.median_F, np.clip(used, self.low_F, self.high_F))
        return np.concatenate([filled, missing[:, self.missing_F].astype(np.float32)], axis=1)

    def _columns(self, features_NF: np.ndarray) -> np.ndarray:
        return np.asarray((self._fill(features_NF) - self.mean_F) / self.scale_F)


def _log_loss(label_N: np.ndarray, logit_N: np.ndarray) -> float:
    """Mean negative log likelihood of logits."""
    return float(np.mean(np.logaddexp(0.0, np.where(label_N, -logit_N, logit_N))))
